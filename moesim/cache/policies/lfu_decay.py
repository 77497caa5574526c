"""Least frequently used, where old uses count less and less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.cache.accesses import Accesses
from moesim.cache.policy import StackPolicy
from moesim.cache.stack import locate, push_ranked, scratch_type
from moesim.compiled import compiled
from moesim.errors import UsageError

__all__ = ["LFUDecay"]


@dataclass(frozen=True)
class LFUDecay(StackPolicy):
    """Evict the expert with the fewest uses, of which each fades: S ← d · S + 1[used] per token.

    Attributes:
        decay: d, what a use counts after one more token.
    """

    decay: float = 0.95

    name: ClassVar[str] = "lfu-decay"
    summary: ClassVar[str] = "evict the expert with the fewest uses, which fade with time"

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1:
            raise UsageError(f"lfu-decay: decay must be in (0, 1]; found {self.decay}")

    def depths(self, accesses: Accesses, *, atomic: bool) -> np.ndarray:
        """The smallest number of slots at which each access hits: [N] uint16."""
        depths = np.empty(accesses.count, np.uint16)
        place_type = scratch_type(accesses)
        _depths(
            accesses.ids,
            accesses.starts,
            accesses.resets,
            atomic,
            self.decay ** (1 / accesses.events_per_step),
            np.empty(accesses.objects, np.float64),
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
    decay: float,
    priority: np.ndarray,
    last_use: np.ndarray,
    stack: np.ndarray,
    place: np.ndarray,
    depths: np.ndarray,
) -> None:
    for segment in range(resets.size - 1):
        height = 0
        priority[:] = 0
        for event in range(resets[segment], resets[segment + 1]):
            first, last = starts[event], starts[event + 1]
            for e in range(priority.size):
                priority[e] *= decay
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
                priority[item] += 1
                last_use[item] = i
