"""Least frequently and recently used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.cache.accesses import Accesses
from moesim.cache.policy import StackPolicy
from moesim.cache.stack import locate, push_ranked, scratch_type
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
            np.empty(accesses.objects, np.float64),
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
    priority: np.ndarray,
    uses: np.ndarray,
    last_use: np.ndarray,
    stack: np.ndarray,
    place: np.ndarray,
    depths: np.ndarray,
) -> None:
    # last_use counts accesses; last_event, from which the age is taken, counts events.
    last_event = np.empty(uses.size, np.int64)
    for segment in range(resets.size - 1):
        height = 0
        uses[:] = 0
        last_event[:] = resets[segment]
        for event in range(resets[segment], resets[segment + 1]):
            first, last = starts[event], starts[event + 1]
            for e in range(uses.size):
                priority[e] = uses[e] / (event - last_event[e] + 1)
            if atomic:
                locate(stack, height, place)
                for i in range(first, last):
                    depths[i] = place[ids[i]] + 1
            for i in range(first, last):
                item = ids[i]
                level = push_ranked(stack, height, priority, last_use, item)
                height += level == height
                if not atomic:
                    depths[i] = level + 1
                uses[item] += 1
                priority[item] = uses[item]
                last_use[item] = i
                last_event[item] = event
