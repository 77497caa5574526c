"""Random eviction, the baseline of baselines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.cache.accesses import Accesses
from moesim.cache.draws import draw_below
from moesim.cache.policy import SizedPolicy
from moesim.compiled import compiled

__all__ = ["RandomEviction"]


@dataclass(frozen=True)
class RandomEviction(SizedPolicy):
    """Evict any resident with equal probability.

    Attributes:
        seed: Of the choices.
    """

    seed: int = 0

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "evict any expert with equal probability"

    def hits(self, accesses: Accesses, *, atomic: bool, slots: int) -> np.ndarray:
        """Which accesses hit in a cache of one size: [N] bool."""
        hits = np.empty(accesses.count, bool)
        _hits(
            accesses.ids,
            accesses.starts,
            accesses.resets,
            atomic,
            slots,
            np.array([self.seed], np.uint64),
            np.empty(accesses.objects, bool),
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
    state: np.ndarray,
    resident: np.ndarray,
    hits: np.ndarray,
) -> None:
    held = np.zeros(slots, np.int64)
    for segment in range(resets.size - 1):
        resident[:] = False
        count = 0
        for event in range(resets[segment], resets[segment + 1]):
            first, last = starts[event], starts[event + 1]
            if atomic:
                for i in range(first, last):
                    hits[i] = resident[ids[i]]
            for i in range(first, last):
                item = ids[i]
                if not atomic:
                    hits[i] = resident[item]
                if resident[item]:
                    continue
                place = count
                if count == slots:
                    place = draw_below(state, slots)
                    resident[held[place]] = False
                else:
                    count += 1
                held[place] = item
                resident[item] = True
