"""Least frequently used, with counts that begin when an expert is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.cache.accesses import Accesses
from moesim.cache.policy import SizedPolicy
from moesim.compiled import compiled

__all__ = ["LFUResident"]


@dataclass(frozen=True)
class LFUResident(SizedPolicy):
    """Evict the resident used least often since it was loaded; of equals, the oldest.

    What general-purpose caches call LFU (libCacheSim, for one): an evicted expert is forgotten, so
    the cache of a larger size need not hold what the smaller one does.
    """

    name: ClassVar[str] = "lfu-resident"
    summary: ClassVar[str] = "evict the expert used least often since it was loaded"

    def hits(self, accesses: Accesses, *, atomic: bool, slots: int) -> np.ndarray:
        """Which accesses hit in a cache of one size: [N] bool."""
        hits = np.empty(accesses.count, bool)
        place = np.empty(accesses.objects, np.int64)
        _hits(accesses.ids, accesses.starts, accesses.resets, atomic, slots, place, hits)
        return hits


@compiled
def _hits(
    ids: np.ndarray,
    starts: np.ndarray,
    resets: np.ndarray,
    atomic: bool,
    slots: int,
    place: np.ndarray,
    hits: np.ndarray,
) -> None:
    # priority: uses since the load, then the last use.
    held, priority = np.zeros(slots, np.int64), np.zeros(slots, np.int64)
    one = np.int64(1) << 36
    for segment in range(resets.size - 1):
        place[:] = -1
        count = 0
        for event in range(resets[segment], resets[segment + 1]):
            first, last = starts[event], starts[event + 1]
            if atomic:
                for i in range(first, last):
                    hits[i] = place[ids[i]] >= 0
            for i in range(first, last):
                item = ids[i]
                slot = place[item]
                if not atomic:
                    hits[i] = slot >= 0
                if slot < 0:
                    slot = count
                    if count == slots:
                        slot = np.argmin(priority)
                        place[held[slot]] = -1
                    else:
                        count += 1
                    place[item] = slot
                    held[slot] = item
                    priority[slot] = 0
                priority[slot] = (priority[slot] // one + 1) * one + i
