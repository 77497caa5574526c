"""Least frequently and recently used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.cache.accesses import Accesses
from moesim.cache.policy import StackPolicy
from moesim.cache.stack import locate, scratch_type
from moesim.compiled import compiled

__all__ = ["LFRU"]


@dataclass(frozen=True)
class LFRU(StackPolicy):
    """Evict the expert with the fewest uses per age, the age being events since its last use.

    The best of the causal policies in arXiv 2608.07911 (section 2.3: frequency / age), here with
    every missing expert admitted.
    """

    name: ClassVar[str] = "lfru"
    summary: ClassVar[str] = "evict the expert with the fewest uses per events since the last"

    def depths(self, accesses: Accesses, *, atomic: bool) -> np.ndarray:
        """The smallest number of slots at which each access hits: [N] uint16."""
        depths = np.empty(accesses.count, np.uint16)
        place_type = scratch_type(accesses)
        _depths(
            accesses.ids,
            accesses.starts,
            accesses.resets,
            atomic,
            np.empty(accesses.objects, np.int64),
            np.empty(accesses.objects, np.int64),
            np.empty(accesses.objects, np.int64),
            np.empty(accesses.objects + 1, place_type),
            np.zeros(accesses.objects, place_type),
            depths,
        )
        return depths


@compiled
def _depths(
    ids: np.ndarray,
    starts: np.ndarray,
    resets: np.ndarray,
    atomic: bool,
    uses: np.ndarray,
    last_use: np.ndarray,
    last_event: np.ndarray,
    stack: np.ndarray,
    place: np.ndarray,
    depths: np.ndarray,
) -> None:
    # last_use counts accesses; last_event, from which the age is taken, counts events.
    for segment in range(resets.size - 1):
        height = 0
        uses[:] = 0
        for event in range(resets[segment], resets[segment + 1]):
            first, last = starts[event], starts[event + 1]
            if atomic:
                locate(stack, height, place)
                for i in range(first, last):
                    depths[i] = place[ids[i]] + 1
            for i in range(first, last):
                item = ids[i]
                level = _push(stack, height, uses, last_use, last_event, event + 1, item)
                height += level == height
                if not atomic:
                    depths[i] = level + 1
                uses[item] += 1
                last_use[item] = i
                last_event[item] = event


@compiled
def _push(
    stack: np.ndarray,
    height: int,
    uses: np.ndarray,
    last_use: np.ndarray,
    last_event: np.ndarray,
    now: int,
    item: int,
) -> int:
    """As :func:`moesim.cache.stack.push_ranked`; uses / age are compared by products."""
    if height == 0:
        stack[0] = item
        return 0
    sinking = stack[0]
    if sinking == item:
        return 0
    stack[0] = item
    count, age, used = uses[sinking], now - last_event[sinking], last_use[sinking]
    level = 1
    while level < height:
        other = stack[level]
        if other == item:
            break
        other_count, other_used = uses[other], last_use[other]
        other_age = now - last_event[other]
        other_worth, worth = other_count * age, count * other_age
        lower = (other_worth < worth) | ((other_worth == worth) & (other_used < used))
        stack[level] = sinking if lower else other
        sinking = other if lower else sinking
        count = other_count if lower else count
        age = other_age if lower else age
        used = other_used if lower else used
        level += 1
    stack[level] = sinking
    return level
