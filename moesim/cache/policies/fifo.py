"""First in, first out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.cache.accesses import Accesses
from moesim.cache.policy import SizedPolicy
from moesim.compiled import compiled

__all__ = ["FIFO"]


@dataclass(frozen=True)
class FIFO(SizedPolicy):
    """Evict the expert that was loaded first."""

    name: ClassVar[str] = "fifo"
    summary: ClassVar[str] = "evict the expert that was loaded first"

    def hits(self, accesses: Accesses, *, atomic: bool, slots: int) -> np.ndarray:
        """Which accesses hit in a cache of one size: [N] bool."""
        hits = np.empty(accesses.count, bool)
        _hits(accesses.ids, accesses.starts, accesses.resets, atomic, slots, accesses.objects, hits)
        return hits


@compiled
def _hits(
    ids: np.ndarray,
    starts: np.ndarray,
    resets: np.ndarray,
    atomic: bool,
    slots: int,
    objects: int,
    hits: np.ndarray,
) -> None:
    resident = np.zeros(objects, np.bool_)
    queue = np.zeros(slots, np.int64)
    for segment in range(resets.size - 1):
        resident[:] = False
        loaded = 0
        for event in range(resets[segment], resets[segment + 1]):
            first, last = starts[event], starts[event + 1]
            if atomic:
                for i in range(first, last):
                    hits[i] = resident[ids[i]]
            for i in range(first, last):
                item = ids[i]
                if not atomic:
                    hits[i] = resident[item]
                if not resident[item]:
                    if loaded >= slots:
                        resident[queue[loaded % slots]] = False
                    queue[loaded % slots] = item
                    resident[item] = True
                    loaded += 1
