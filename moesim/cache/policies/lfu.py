"""Least frequently used, with counts that survive eviction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.cache.accesses import Accesses
from moesim.cache.bits import leading_zeros
from moesim.cache.policy import StackPolicy
from moesim.cache.stack import scratch_type
from moesim.compiled import compiled

__all__ = ["LFU"]

_ZERO, _ONE, _ALL = np.uint64(0), np.uint64(1), ~np.uint64(0)


@dataclass(frozen=True)
class LFU(StackPolicy):
    """Evict the expert that was used least often since the last reset; of equals, the oldest.

    Uses count whether the expert was resident or not, and every missing expert is admitted.
    """

    name: ClassVar[str] = "lfu"
    summary: ClassVar[str] = "evict the expert used least often since the last reset"

    def depths(self, accesses: Accesses, *, atomic: bool) -> np.ndarray:
        """The smallest number of slots at which each access hits: [N] uint16."""
        depths = np.empty(accesses.count, np.uint16)
        longest = int(np.diff(accesses.resets).max(initial=0))
        _depths(
            accesses.ids,
            accesses.starts,
            accesses.resets,
            atomic,
            np.empty(accesses.objects, scratch_type(accesses)),
            np.empty(accesses.objects, np.uint32),
            np.empty(longest + 2, np.uint16),
            np.empty(accesses.objects // 64 + 1, np.uint64),
            depths,
        )
        return depths


# Let rank[e] be the number of experts that were used more often than e, or as often and more
# recently. A cache of C slots holds the experts of rank 0 … C − 1, with at most one exception: the
# expert admitted last may rank lower; it then takes the place of rank C − 1, and is the next to go.
# Sizes with such an exception come in runs, and the exception of a run a … b − 1 is the expert of
# rank b − 1 (it is no exception for larger caches). So one bit per size says everything: bit C − 1
# of ``forced``. An access to an expert of rank r clears the bits 0 … r (those sizes have just
# evicted their exception) and, if its new rank is q, sets the bits 0 … q − 1.


@compiled
def _depths(
    ids: np.ndarray,
    starts: np.ndarray,
    resets: np.ndarray,
    atomic: bool,
    rank: np.ndarray,
    uses: np.ndarray,
    at_least: np.ndarray,
    forced: np.ndarray,
    depths: np.ndarray,
) -> None:
    for segment in range(resets.size - 1):
        for e in range(rank.size):
            rank[e] = e
            uses[e] = 0
        # at_least[n]: experts used n times or more.
        at_least[: resets[segment + 1] - resets[segment] + 2] = 0
        forced[:] = _ZERO
        for event in range(resets[segment], resets[segment + 1]):
            first, last = starts[event], starts[event + 1]
            if atomic:
                for i in range(first, last):
                    depths[i] = _depth(forced, np.int64(rank[ids[i]]))
            for i in range(first, last):
                item = ids[i]
                old = rank[item]
                if not atomic:
                    depths[i] = _depth(forced, np.int64(old))
                now = uses[item] + np.uint32(1)
                uses[item] = now
                at_least[now] += np.uint16(1)
                new = rank.dtype.type(at_least[now + np.uint32(1)])
                for e in range(rank.size):
                    r = rank[e]
                    rank[e] = new if r == old else rank.dtype.type(r + ((r >= new) & (r < old)))
                _clear_below(forced, np.int64(old) + 1)
                _set_below(forced, np.int64(new))


@compiled
def _depth(forced: np.ndarray, rank: np.int64) -> np.int64:
    """Smallest size that holds the expert of a rank; without branches where one word is enough."""
    within = rank & 63
    word = forced[rank >> 6]
    excluded = (word >> np.uint64(within)) & _ONE
    # The set bits directly below the rank: those of this word, then of lower ones.
    holes = ~word << np.uint64(63 - within) << _ONE
    run = min(np.int64(leading_zeros(holes)), within)
    if run == within and rank > 63:
        lower = (rank >> 6) - 1
        while lower >= 0 and forced[lower] == _ALL:
            lower -= 1
            run += 64
        if lower >= 0:
            run += np.int64(leading_zeros(~forced[lower]))
    return rank + 2 if excluded else rank + 1 - run


@compiled
def _clear_below(bits: np.ndarray, end: np.int64) -> None:
    for word in range(end >> 6):
        bits[word] = _ZERO
    if end & 63:
        kept = np.uint64(end & 63)
        bits[end >> 6] = bits[end >> 6] >> kept << kept


@compiled
def _set_below(bits: np.ndarray, end: np.int64) -> None:
    for word in range(end >> 6):
        bits[word] = _ALL
    bits[end >> 6] |= (_ONE << np.uint64(end & 63)) - _ONE
