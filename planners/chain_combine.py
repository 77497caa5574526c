"""The best combination of known rows of a small chain, and of everything two swaps away from it.

A chain's cost is a sum over layers and over pairs of neighbouring layers, so that among given rows
per layer the best combination is found exactly, by dynamic programming over the layers. Searches
from many starts leave such rows: one has the best first half, another the best second half, or the
same clusters under other numbers. From the best combination the search goes on to all rows that
two swaps make of its own, in all layers at once, until that gains nothing.

The result is no worse than any combination of the rows, and nothing is proven about the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np

__all__ = ["ChainCost", "combine"]

MOST_NAMES = 24
"""Up to so many ways to number the devices are tried (4 devices)."""

MOST_ROWS = 3000
"""Rows per layer, at most; without double swaps where they are more."""


IMPROVED = 8
"""Placements of different cost, the cheapest, that the search goes on from."""


class ChainCost(NamedTuple):
    """What a placement of a chain costs.

    Attributes:
        flow: [L − 1, S, S] vectors per step between copies of neighbouring layers.
        copy_s: [L, W, 2, S] seconds that a copy adds, of its device and of the links.
        speed: [G] relative speed of every device.
        node_of: [G] node of every device.
        near_s: Seconds per vector between devices of a node.
        far_s: Seconds per vector between nodes.
    """

    flow: np.ndarray
    copy_s: np.ndarray
    speed: np.ndarray
    node_of: np.ndarray
    near_s: float
    far_s: float

    @property
    def hop_s(self) -> np.ndarray:
        """[G, G] seconds per vector between devices."""
        hop = np.where(self.node_of[:, None] == self.node_of, self.near_s, self.far_s)
        return hop * ~np.eye(len(hop), dtype=bool)


def combine(cost: ChainCost, found: Sequence[np.ndarray]) -> np.ndarray:
    """[L, S] device of every copy: the best that placements ``found`` [L, S] lead to."""
    seconds = [_best_of(cost, list(placement[:, None]))[1] for placement in found]
    _, first = np.unique(np.round(np.array(seconds) / min(seconds), 9), return_index=True)
    best = [_crossed(cost, found), *(found[at] for at in first[:IMPROVED])]
    improved = [_two_swaps_on(cost, placement) for placement in best]
    return _two_swaps_on(cost, _crossed(cost, improved))


def _crossed(cost: ChainCost, found: Sequence[np.ndarray]) -> np.ndarray:
    """The best combination of the placements' rows, under all numberings of few devices."""
    devices = len(cost.speed)
    names: list[np.ndarray] = [np.arange(devices)]
    if np.prod(np.arange(1, devices + 1)) <= MOST_NAMES:
        names = [np.array(order) for order in permutations(range(devices))]
    every = np.stack([name[place] for place in found for name in names])  # [R, L, S]
    return _best_of(cost, [np.unique(every[:, layer], axis=0) for layer in range(every.shape[1])])[
        0
    ]


def _two_swaps_on(cost: ChainCost, best: np.ndarray) -> np.ndarray:
    """A placement after rows were replaced by those two swaps away while that gains something."""
    seconds = np.inf
    while True:
        further, less_s = _best_of(cost, [_swapped(row) for row in best])
        if less_s >= seconds * (1 - 1e-9):
            return best
        best, seconds = further, less_s


def _best_of(cost: ChainCost, rows: Sequence[np.ndarray]) -> tuple[np.ndarray, float]:
    """The best row [S] of every layer's rows [R, S], and what they cost together."""
    devices = np.arange(len(cost.speed))
    reached, came_from = np.zeros(len(rows[0])), []
    for layer, here in enumerate(rows):
        on = (here[:, :, None] == devices).astype(np.float64)  # [R, S, G]
        if layer:
            # Seconds of a vector from copy i to a device, for every row of the layer before.
            away = cost.hop_s[rows[layer - 1]]  # [R', S, G]
            into = cost.flow[layer - 1].T.astype(np.float64) @ away  # [R', S, G]
            travel = into.reshape(len(into), -1) @ on.reshape(len(on), -1).T
            total = reached[:, None] + travel
            came_from.append(total.argmin(axis=0))
            reached = total.min(axis=0)
        busy = np.einsum("wps,rsg->rwpg", cost.copy_s[layer].astype(np.float64), on)
        finish = busy[:, :, 0] / cost.speed + busy[:, :, 1]
        reached = reached + finish.max(axis=2).mean(axis=1)
    at = [int(reached.argmin())]
    for before in reversed(came_from):
        at.append(int(before[at[-1]]))
    best = np.stack([row[index] for row, index in zip(rows, reversed(at), strict=True)])
    return best, float(reached.min())


def _swapped(row: np.ndarray) -> np.ndarray:
    """[R, S] the row, and all that one or two swaps make of it."""
    once = _swap_each(row[None])
    rows = np.concatenate((row[None], once))
    if len(once) ** 2 / 2 <= 4 * MOST_ROWS:
        twice = np.unique(_swap_each(once), axis=0)
        if len(twice) <= MOST_ROWS:
            rows = np.concatenate((rows, twice))
    return np.unique(rows, axis=0)


def _swap_each(rows: np.ndarray) -> np.ndarray:
    """[R', S] every row with every two copies on different devices exchanged."""
    first, second = np.triu_indices(rows.shape[1], 1)
    row, pair = np.nonzero(rows[:, first] != rows[:, second])
    swapped = rows[row]
    every, i, f = np.arange(len(row)), first[pair], second[pair]
    swapped[every, i], swapped[every, f] = rows[row, f], rows[row, i]
    return swapped
