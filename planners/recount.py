"""Other numbers of copies for the hottest experts, where the usual ones do not pack.

Which numbers pack well is no question of the hottest copy alone: six copies of 0.81 of a device's
fair share leave room beside each, five of 0.97 do not. In layers that miss the load bound, numbers
around those of replicate.py are tried for the hottest experts; the spare slots that are left split
the coldest, whose copies fit anywhere.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from moesim.planners.greedy_pack import copies_from_counts, largest_finish, pack
from moesim.planners.replicate import replicate

__all__ = ["recount"]

FEWER, MORE = (3, 2, 1, 1), (1, 2, 2, 2)
"""Copies that the hottest experts are given less or more; the fifth's share is seldom large enough
to matter. Up to 5 · 5 · 4 · 4 trials per layer."""

MOST_COPIES = 2_000_000
"""Packed in all trials of all layers together: about half a second."""


def recount(
    loads: np.ndarray,
    speeds: np.ndarray,
    bound: np.ndarray,
    enough: np.ndarray,
    expert: np.ndarray,
    finish: np.ndarray,
) -> None:
    """Improve placements by other numbers of copies.

    Args:
        loads: [L, E] tokens of every expert.
        speeds: [G] float64, descending.
        bound: [L] load over speed that no placement beats.
        enough: [L] load over speed that is not improved on.
        expert: [L, G, S/G] int64 logical expert in every slot, changed in place.
        finish: [L] load over speed of the last device, changed in place.
    """
    from moesim.planners.swap import swap_pairs  # numba: half a second

    slots, experts, devices = expert[0].size, loads.shape[1], len(speeds)
    if slots == experts:
        return
    packed = 0
    for layer in np.flatnonzero(finish > enough):
        by_load = np.argsort(-loads[layer], kind="stable")
        _, usual = replicate(loads[layer, by_load][None], slots, largest_count=devices)
        count = _other_counts(usual[0].tolist(), slots - experts, devices)
        packed += len(count) * slots
        if packed > MOST_COPIES:
            return
        if not len(count):
            continue
        rows = np.repeat(loads[[layer]], len(count), 0)
        copies = copies_from_counts(rows, np.repeat(by_load[None], len(count), 0), count)
        tried, load = pack(copies, speeds)
        swap_pairs(tried, load, speeds, np.repeat(bound[layer], len(count)))
        reached = largest_finish(load, speeds)
        best = reached.argmin()
        if reached[best] < finish[layer] * (1 - 1e-9):
            expert[layer], finish[layer] = tried[best], reached[best]


def _other_counts(usual: list[int], spare: int, devices: int) -> np.ndarray:
    """[X, E] numbers of copies, hottest expert first."""
    experts, hot = len(usual), min(len(FEWER), len(usual))
    ranges = [
        range(max(1, usual[rank] - FEWER[rank]), min(devices, usual[rank] + MORE[rank]) + 1)
        for rank in range(hot)
    ]
    found = []
    for numbers in product(*ranges):
        left = spare + hot - sum(numbers)
        if 0 <= left <= experts - hot and (left == 0 or devices > 1):
            cold = experts - hot - left
            found.append([*numbers, *[1] * cold, *[2] * left])
    return np.array(found, np.int64).reshape(-1, experts)
