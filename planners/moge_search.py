"""Equal groups of experts by swaps: first on weights of pairs, then on the exact lost mass.

Swaps of experts between groups A and B change the kept mass of A and B alone, so swaps in disjoint
pairs of groups add up, and several are made from one table of gains.
"""

from __future__ import annotations

import time

import numpy as np

from moesim.compiled import compiled

__all__ = ["swap_exact", "swap_pairwise"]

_GAIN = 1e-12
"""A swap must gain more than rounding does, as a share of the mass."""


def swap_pairwise(pairs: np.ndarray, group: np.ndarray, groups: int) -> np.ndarray:
    """Swap experts until no swap lowers the weight of pairs within groups (steepest descent).

    Args:
        pairs: [E, E] symmetric, zero diagonal.
        group: [E] of every expert to start from.
        groups: M.

    Returns:
        [E] int64 groups of the same sizes.
    """
    group = group.astype(np.int64)
    member = np.eye(groups)[group]
    experts = np.arange(len(group))
    least = _GAIN * max(float(pairs.sum()), 1e-300)
    while True:
        to = pairs @ member
        change = to[:, group] - to[experts, group][:, None]
        change = change + change.T - 2 * pairs
        change[group[:, None] == group] = 0.0
        one, two = np.unravel_index(int(change.argmin()), change.shape)
        if change[one, two] >= -least:
            return group
        group[one], group[two] = group[two], group[one]
        member[[one, two]] = member[[two, one]]


def swap_exact(
    expert: np.ndarray,
    weight: np.ndarray,
    group: np.ndarray,
    groups: int,
    per_group: int,
    deadline_s: float = np.inf,
) -> np.ndarray:
    """Swap experts until no swap of two lowers the lost mass of a layer.

    Args:
        expert: [T, K] by falling gate, −1 where an entry does not count.
        weight: [T, K].
        group: [E] to start from.
        groups: M.
        per_group: K'.
        deadline_s: Of ``time.monotonic``; the groups found until then are returned.
    """
    group = group.astype(np.int64)
    least = _GAIN * max(float(weight.sum()), 1e-300)
    while time.monotonic() < deadline_s:
        gain = swap_gains(expert, weight, group, groups, per_group)
        gain[group[:, None] == group] = 0.0
        changed = False
        while True:
            one, two = np.unravel_index(int(gain.argmax()), gain.shape)
            if gain[one, two] <= least:
                break
            busy = (group == group[one]) | (group == group[two])
            group[one], group[two] = group[two], group[one]
            gain[busy], gain[:, busy] = 0.0, 0.0
            changed = True
        if not changed:
            break
    return group


@compiled
def swap_gains(
    expert: np.ndarray, weight: np.ndarray, group: np.ndarray, groups: int, per_group: int
) -> np.ndarray:
    """[E, E] mass that every swap of two experts keeps more; entries within a group mean nothing.

    Moving one expert out of and another into a group is told apart where a token has only one of
    the two; tokens that have both are recomputed.
    """
    count, width = len(group), expert.shape[1]
    out, into = np.zeros(count), np.zeros((count, groups))
    both = np.zeros((count, count))
    leave, enter = np.zeros(width), np.zeros((width, groups))
    seen = np.zeros(groups, np.int64)
    own = np.zeros(width, np.int64)
    for token in range(expert.shape[0]):
        used = 0
        while used < width and expert[token, used] >= 0:
            own[used] = group[expert[token, used]]
            used += 1
        seen[:] = 0
        for place in range(used):
            gate, name = weight[token, place], expert[token, place]
            for other in range(groups):
                enter[place, other] = 0.0
                if other != own[place] and seen[other] < per_group:
                    enter[place, other] = gate - _nth(weight[token], own, used, other, per_group)
                into[name, other] += enter[place, other]
            leave[place] = 0.0
            if seen[own[place]] < per_group:
                leave[place] = gate - _nth(weight[token], own, used, own[place], per_group + 1)
            out[name] += leave[place]
            seen[own[place]] += 1
        for one in range(used):
            for two in range(one):
                if own[one] == own[two]:
                    continue
                apart = enter[one, own[two]] - leave[one] + enter[two, own[one]] - leave[two]
                before = _kept(weight[token], own, used, own[one], per_group)
                before += _kept(weight[token], own, used, own[two], per_group)
                own[one], own[two] = own[two], own[one]
                after = _kept(weight[token], own, used, own[one], per_group)
                after += _kept(weight[token], own, used, own[two], per_group)
                own[one], own[two] = own[two], own[one]
                a, b = expert[token, one], expert[token, two]
                both[a, b] += after - before - apart
                both[b, a] += after - before - apart
    gain = both
    for a in range(count):
        for b in range(count):
            gain[a, b] += into[a, group[b]] - out[a] + into[b, group[a]] - out[b]
    return gain


@compiled
def _nth(weight: np.ndarray, own: np.ndarray, used: int, group: int, number: int) -> float:
    """Gate of the n-th choice (from 1) in a group, 0 if there are fewer."""
    for place in range(used):
        if own[place] == group:
            number -= 1
            if number == 0:
                return float(weight[place])
    return 0.0


@compiled
def _kept(weight: np.ndarray, own: np.ndarray, used: int, group: int, per_group: int) -> float:
    """The largest K' gates in a group."""
    total, left = 0.0, per_group
    for place in range(used):
        if left > 0 and own[place] == group:
            total += weight[place]
            left -= 1
    return total
