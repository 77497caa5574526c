"""Least recently used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.cache.accesses import Accesses
from moesim.cache.policy import StackPolicy
from moesim.cache.stack import scratch_type
from moesim.compiled import compiled

__all__ = ["LRU"]


@dataclass(frozen=True)
class LRU(StackPolicy):
    """Evict the expert whose last use is oldest; within an event, the one listed first."""

    name: ClassVar[str] = "lru"
    summary: ClassVar[str] = "evict the expert whose last use is oldest"

    def depths(self, accesses: Accesses, *, atomic: bool) -> np.ndarray:
        """The smallest number of slots at which each access hits: [N] uint16."""
        depths = np.empty(accesses.count, np.uint16)
        rank = np.empty(accesses.objects, scratch_type(accesses))
        if atomic:
            before = np.empty_like(rank)
            asked = np.zeros(accesses.objects + 8, rank.dtype)
            arrays = (accesses.ids, accesses.starts, accesses.resets)
            _atomic_depths(*arrays, rank, before, asked, depths)
        else:
            _sequential_depths(accesses.ids, accesses.segments, rank, depths)
        return depths


# rank[e] experts were used more recently than e. An access moves its expert to rank 0, and
# everything that was in front of it back by one.


@compiled
def _sequential_depths(
    ids: np.ndarray, segments: np.ndarray, rank: np.ndarray, depths: np.ndarray
) -> None:
    zero = rank.dtype.type(0)
    for segment in range(segments.size - 1):
        for e in range(rank.size):
            rank[e] = e
        for i in range(segments[segment], segments[segment + 1]):
            mine = rank[ids[i]]
            depths[i] = mine + 1
            # Rank 0 is not written on its own: the next load of many ranks would have to wait
            # for so short a store.
            for e in range(rank.size):
                r = rank[e]
                rank[e] = zero if r == mine else r + (r < mine)


@compiled
def _atomic_depths(
    ids: np.ndarray,
    starts: np.ndarray,
    resets: np.ndarray,
    rank: np.ndarray,
    before: np.ndarray,
    asked: np.ndarray,
    depths: np.ndarray,
) -> None:
    # A whole event moves an expert that it does not ask for back by the number of experts asked for
    # that were behind it. They are compared eight at a time, so that ranks stay in registers;
    # ``asked`` is filled up with rank 0, which is behind nothing.
    for segment in range(resets.size - 1):
        for e in range(rank.size):
            rank[e] = e
        for event in range(resets[segment], resets[segment + 1]):
            first, count = starts[event], starts[event + 1] - starts[event]
            for i in range(count):
                mine = rank[ids[first + i]]
                asked[i] = mine
                depths[first + i] = mine + 1
            for i in range(count, count + 8):
                asked[i] = 0
            for e in range(rank.size):
                before[e] = rank[e]
            for i in range(0, count, 8):
                a, b, c, d = asked[i], asked[i + 1], asked[i + 2], asked[i + 3]
                p, q, r, s = asked[i + 4], asked[i + 5], asked[i + 6], asked[i + 7]
                for e in range(rank.size):
                    me = before[e]
                    rank[e] += (
                        (me < a) + (me < b) + (me < c) + (me < d)
                        + (me < p) + (me < q) + (me < r) + (me < s)
                    )  # fmt: skip
            for i in range(count):
                rank[ids[first + i]] = count - 1 - i
