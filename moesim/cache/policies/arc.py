"""Adaptive replacement cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.cache.accesses import Accesses
from moesim.cache.lists import clear, push_front, unlink
from moesim.cache.policy import SizedPolicy
from moesim.compiled import compiled

__all__ = ["ARC"]

_NOWHERE, _T1, _T2, _B1, _B2 = -1, 0, 1, 2, 3


@dataclass(frozen=True)
class ARC(SizedPolicy):
    """Divide the cache between experts used once and often, and learn the division from mistakes.

    Megiddo and Modha, ARC: a self-tuning, low overhead replacement cache, FAST 2003. Fate keeps its
    experts so (arXiv 2502.12224).
    """

    name: ClassVar[str] = "arc"
    summary: ClassVar[str] = "adapt between recency and frequency (ARC)"

    def hits(self, accesses: Accesses, *, atomic: bool, slots: int) -> np.ndarray:
        """Which accesses hit in a cache of one size: [N] bool."""
        hits = np.empty(accesses.count, bool)
        _hits(
            accesses.ids,
            accesses.starts,
            accesses.resets,
            atomic,
            slots,
            np.empty(accesses.objects, np.int8),
            np.empty(accesses.objects + 4, np.int64),
            np.empty(accesses.objects + 4, np.int64),
            hits,
        )
        return hits


@compiled
def _hits(
    ids: np.ndarray,
    starts: np.ndarray,
    resets: np.ndarray,
    atomic: bool,
    slots: int,
    where: np.ndarray,
    following: np.ndarray,
    previous: np.ndarray,
    hits: np.ndarray,
) -> None:
    # The lists of the paper: T1 and T2 hold residents used once and more often, B1 and B2 what was
    # evicted from them lately. Fronts are the most recent.
    size = np.zeros(4, np.int64)
    for segment in range(resets.size - 1):
        clear(following, previous)
        where[:] = _NOWHERE
        size[:] = 0
        target = 0.0  # of T1; p in the paper
        for event in range(resets[segment], resets[segment + 1]):
            first, last = starts[event], starts[event + 1]
            if atomic:
                for i in range(first, last):
                    hits[i] = (where[ids[i]] == _T1) | (where[ids[i]] == _T2)
            for i in range(first, last):
                item = ids[i]
                found = where[item]
                if not atomic:
                    hits[i] = (found == _T1) | (found == _T2)
                if found == _B1:
                    target = min(np.float64(slots), target + max(1.0, size[_B2] / size[_B1]))
                    _replace(where, following, previous, size, target, False)
                elif found == _B2:
                    target = max(0.0, target - max(1.0, size[_B1] / size[_B2]))
                    _replace(where, following, previous, size, target, True)
                elif found == _NOWHERE:
                    _make_room(where, following, previous, size, target, slots)
                goal = _T1 if found == _NOWHERE else _T2
                _move(where, following, previous, size, item, goal)


@compiled
def _make_room(
    where: np.ndarray,
    following: np.ndarray,
    previous: np.ndarray,
    size: np.ndarray,
    target: float,
    slots: int,
) -> None:
    """Before an expert comes that no list knows: case IV of the paper."""
    if size[_T1] + size[_B1] == slots:
        if size[_T1] < slots:
            _drop_last(where, following, previous, size, _B1)
            _replace(where, following, previous, size, target, False)
        else:
            _drop_last(where, following, previous, size, _T1)
    elif size.sum() >= slots:
        if size.sum() == 2 * slots:
            _drop_last(where, following, previous, size, _B2)
        _replace(where, following, previous, size, target, False)


@compiled
def _replace(
    where: np.ndarray,
    following: np.ndarray,
    previous: np.ndarray,
    size: np.ndarray,
    target: float,
    in_b2: bool,
) -> None:
    """Evict the last of T1 or T2 into B1 or B2."""
    of_t1 = size[_T1] > target or (in_b2 and size[_T1] == target)
    source = _T1 if size[_T1] > 0 and of_t1 else _T2
    victim = previous[where.size + source]
    _move(where, following, previous, size, victim, source + 2)


@compiled
def _move(
    where: np.ndarray,
    following: np.ndarray,
    previous: np.ndarray,
    size: np.ndarray,
    item: int,
    goal: int,
) -> None:
    """Put an expert at the front of a list."""
    if where[item] != _NOWHERE:
        unlink(following, previous, item)
        size[where[item]] -= 1
    push_front(following, previous, where.size + goal, item)
    where[item] = goal
    size[goal] += 1


@compiled
def _drop_last(
    where: np.ndarray, following: np.ndarray, previous: np.ndarray, size: np.ndarray, source: int
) -> None:
    """Forget the last of a list."""
    item = previous[where.size + source]
    unlink(following, previous, item)
    where[item] = _NOWHERE
    size[source] -= 1
