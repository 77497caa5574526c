"""The oracle behind the segment cache hit rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.cache.accesses import Accesses
from moesim.cache.policy import StackPolicy
from moesim.cache.stack import locate, push, scratch_type
from moesim.compiled import compiled
from moesim.errors import UsageError

__all__ = ["SCH"]

_COUNT_SHIFT = 36  # below it, the number of the access of the last use
_FEW_OBJECTS = 512  # up to here a stack of all sizes costs as much as a few single sizes


@dataclass(frozen=True)
class SCH(StackPolicy):
    """Evict the expert that the next tokens use least often; of equals, the least recently used.

    The oracle of the segment cache best hit rate, SCH (arXiv 2505.16056, section 2.3; as in its
    code, the window of ``window`` tokens begins with the token that is being served). Since it does
    not see in which order the tokens come, it is no optimum: Belady is the bound.

    Attributes:
        window: Tokens that the oracle looks ahead.
    """

    window: int = 16

    name: ClassVar[str] = "sch"
    summary: ClassVar[str] = "oracle: evict the expert that the next tokens use least often"
    replays_one_size: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.window < 1:
            raise UsageError(f"sch: window must be at least 1 token; found {self.window}")

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

    def hits(self, accesses: Accesses, *, atomic: bool, slots: int) -> np.ndarray | None:
        """Which accesses hit at one size of a large, pooled cache: [N] bool; else None."""
        longest = int(np.diff(accesses.segments).max(initial=0))
        shift = longest.bit_length()
        window_events = min(self.window * accesses.events_per_step, accesses.events)
        if accesses.objects <= _FEW_OBJECTS or shift + window_events.bit_length() > 32:
            return None
        hits = np.empty(accesses.count, bool)
        _hits(
            accesses.ids,
            accesses.starts,
            accesses.resets,
            atomic,
            window_events,
            shift,
            np.empty(accesses.objects, np.uint32),
            np.empty(accesses.objects, np.int32),
            np.zeros(slots, np.uint32),
            hits,
        )
        return hits


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
        begin, end = resets[segment], resets[segment + 1]
        height = 0
        priority[:] = 0
        for i in range(starts[begin], starts[min(begin + window_events, end)]):
            priority[ids[i]] += one
        for event in range(begin, end):
            first, last = starts[event], starts[event + 1]
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
                priority[item] = ((priority[item] >> _COUNT_SHIFT) - 1) * one + i + 1
            if event + window_events < end:
                coming = event + window_events
                for i in range(starts[coming], starts[coming + 1]):
                    priority[ids[i]] += one


@compiled
def _hits(
    ids: np.ndarray,
    starts: np.ndarray,
    resets: np.ndarray,
    atomic: bool,
    window_events: int,
    shift: int,
    priority: np.ndarray,
    place: np.ndarray,
    held: np.ndarray,
    hits: np.ndarray,
) -> None:
    # One size. priority: uses in the window, and below ``shift`` bits the number of the last use
    # (from 1 in each segment), which also tells whose it is. held[place[e]] repeats the priority of
    # resident e, so that the least of all residents is the least number of a dense array.
    unit, low = np.uint32(1) << np.uint32(shift), np.uint32(shift)
    for segment in range(resets.size - 1):
        begin, end = resets[segment], resets[segment + 1]
        before = starts[begin] - 1
        priority[:] = 0
        place[:] = -1
        count = 0
        _add_uses(ids, starts[begin], starts[min(begin + window_events, end)], unit, priority)
        for event in range(begin, end):
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
                    if count == held.size:
                        victim = ids[before + np.int64(_least(held) & (unit - np.uint32(1)))]
                        slot = place[victim]
                        place[victim] = -1
                    count = min(count + 1, held.size)
                    place[item] = slot
                left = (priority[item] >> low) - np.uint32(1)
                priority[item] = (left << low) | np.uint32(i - before)
                held[slot] = priority[item]
            if event + window_events < end:
                coming = event + window_events
                for i in range(starts[coming], starts[coming + 1]):
                    priority[ids[i]] += unit
                    if place[ids[i]] >= 0:
                        held[place[ids[i]]] = priority[ids[i]]


@compiled
def _least(numbers: np.ndarray) -> np.uint32:
    least = numbers[0]
    for i in range(numbers.size):
        least = min(least, numbers[i])
    return least


@compiled
def _add_uses(
    ids: np.ndarray, first: int, last: int, unit: np.uint32, priority: np.ndarray
) -> None:
    for i in range(first, last):
        priority[ids[i]] += unit
