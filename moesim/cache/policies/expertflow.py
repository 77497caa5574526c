"""Slots filled ahead by a predictor, as ExpertFlow has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.cache.accesses import Accesses
from moesim.cache.draws import draw, draw_below
from moesim.cache.policy import SizedPolicy
from moesim.compiled import compiled
from moesim.errors import UsageError

__all__ = ["ExpertFlow"]


@dataclass(frozen=True)
class ExpertFlow(SizedPolicy):
    """Load what a predictor names before the layer is reached; evict what was used longest ago.

    The predictive locality-aware expert cache of ExpertFlow (arXiv 2410.17954). Its predictor
    stands here as what was published of it: the part of the experts asked for that it names. Of a
    layer's prediction, as much is loaded as the cache holds; slots of layers that are done are free
    for it; what was predicted wrongly is put right after the gate, and is a miss. Loading ahead
    takes no time here: these are hits, not speed.

    Attributes:
        recall: Probability that an expert which is going to be asked for is named (0.9 is the
            middle of the paper's figures on a batch's union).
        extra: Wrong experts named per expert asked for.
        seed: Of the predictor's errors.
    """

    recall: float = 0.9
    extra: float = 0.1
    seed: int = 0

    name: ClassVar[str] = "expertflow"
    summary: ClassVar[str] = "slots filled ahead by a predictor (ExpertFlow)"
    preloaded: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.recall <= 1:
            raise UsageError(f"expertflow: recall must be in [0, 1]; found {self.recall}")
        if not 0 <= self.extra <= 1000:
            raise UsageError(f"expertflow: extra must be in [0, 1000]; found {self.extra}")

    def hits(self, accesses: Accesses, *, atomic: bool, slots: int) -> np.ndarray:
        """Which accesses hit in a cache of one size: [N] bool."""
        hits = np.empty(accesses.count, bool)
        _hits(
            accesses.ids,
            accesses.starts,
            accesses.resets,
            atomic,
            slots,
            accesses.experts,
            self.recall,
            self.extra,
            np.array([self.seed], np.uint64),
            np.empty(accesses.objects, np.int64),
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
    experts: int,
    recall: float,
    extra: float,
    state: np.ndarray,
    place: np.ndarray,
    hits: np.ndarray,
) -> None:
    # place[e]: slot of an expert, or −1. used[slot]: when it was last named or asked for.
    held, used = np.zeros(slots, np.int64), np.zeros(slots, np.int64)
    named = np.empty(place.size, np.int64)
    clock = 0
    for segment in range(resets.size - 1):
        place[:] = -1
        used[:] = -1
        for event in range(resets[segment], resets[segment + 1]):
            first, last = starts[event], starts[event + 1]
            count = _predict(ids[first:last], experts, recall, extra, state, named)
            for k in range(min(count, slots)):
                clock += 1
                _touch(named[k], clock, held, used, place)
            if atomic:
                for i in range(first, last):
                    hits[i] = place[ids[i]] >= 0
            for i in range(first, last):
                clock += 1
                if not atomic:
                    hits[i] = place[ids[i]] >= 0
                _touch(ids[i], clock, held, used, place)


@compiled
def _predict(
    asked: np.ndarray,
    experts: int,
    recall: float,
    extra: float,
    state: np.ndarray,
    named: np.ndarray,
) -> int:
    """Fill ``named`` with what the predictor names for an event, and say how many that are."""
    count = 0
    for item in asked:
        if draw(state) < recall:
            named[count] = item
            count += 1
    wrong = np.int64(extra * asked.size + draw(state))
    for k in range(wrong if asked.size > 0 else 0):
        if count == named.size:
            break
        named[count] = asked[k % asked.size] // experts * experts + draw_below(state, experts)
        count += 1
    # Wrong ones look as probable as right ones: a full cache takes them as they come.
    for k in range(count - 1, 0, -1):
        other = draw_below(state, k + 1)
        named[k], named[other] = named[other], named[k]
    return count


@compiled
def _touch(item: int, clock: int, held: np.ndarray, used: np.ndarray, place: np.ndarray) -> None:
    """Make an expert resident, in the place of the one used longest ago, and note its use."""
    slot = place[item]
    if slot < 0:
        slot = np.argmin(used)
        if used[slot] >= 0:
            place[held[slot]] = -1
        held[slot] = item
        place[item] = slot
    used[slot] = clock
