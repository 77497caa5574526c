"""Least frequently used among the last tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.cache.accesses import Accesses
from moesim.cache.policy import StackPolicy
from moesim.cache.stack import locate, push, scratch_type
from moesim.compiled import compiled
from moesim.errors import UsageError

__all__ = ["LFUWindow"]

_COUNT_SHIFT = 36  # below it, the number of the access of the last use


@dataclass(frozen=True)
class LFUWindow(StackPolicy):
    """Evict the expert that was used least often in the last tokens; of equals, the oldest.

    Attributes:
        window: Tokens that count, with the one being served.
    """

    window: int = 64

    name: ClassVar[str] = "lfu-window"
    summary: ClassVar[str] = "evict the expert used least often in the last tokens"

    def __post_init__(self) -> None:
        if self.window < 1:
            raise UsageError(f"lfu-window: window must be at least 1 token; found {self.window}")

    def depths(self, accesses: Accesses, *, atomic: bool) -> np.ndarray:
        """The smallest number of slots at which each access hits: [N] uint16."""
        depths = np.empty(accesses.count, np.uint16)
        place_type = scratch_type(accesses)
        _depths(
            accesses.ids,
            accesses.starts,
            accesses.resets,
            atomic,
            self.window * accesses.events_per_step,
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
    window_events: int,
    priority: np.ndarray,
    stack: np.ndarray,
    place: np.ndarray,
    depths: np.ndarray,
) -> None:
    # priority: uses in the window, then the last use.
    one = np.int64(1) << _COUNT_SHIFT
    for segment in range(resets.size - 1):
        begin = resets[segment]
        height = 0
        priority[:] = 0
        for event in range(begin, resets[segment + 1]):
            first, last = starts[event], starts[event + 1]
            gone = event - window_events
            if gone >= begin:
                for i in range(starts[gone], starts[gone + 1]):
                    priority[ids[i]] -= one
            if atomic:
                locate(stack, height, place)
                for i in range(first, last):
                    depths[i] = place[ids[i]] + 1
            for i in range(first, last):
                item = ids[i]
                level = push(stack, height, priority, item)
                height += level == height
                if not atomic:
                    depths[i] = level + 1
                priority[item] = ((priority[item] >> _COUNT_SHIFT) + 1) * one + i + 1
