"""Three queues: a small one on trial, the main one, and a memory of what was evicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.cache.accesses import Accesses
from moesim.cache.lists import clear, push_front, unlink
from moesim.cache.policy import SizedPolicy
from moesim.compiled import compiled
from moesim.errors import UsageError

__all__ = ["S3FIFO"]

_NOWHERE, _SMALL, _MAIN, _GHOST = -1, 0, 1, 2


@dataclass(frozen=True)
class S3FIFO(SizedPolicy):
    """Load into a small queue; only what is used again there reaches the main queue.

    Yang et al., FIFO queues are all you need for cache eviction, SOSP 2023. As in libCacheSim, what
    is loaded before the cache is full goes to the main queue once the small one is full, and an
    expert that moves to the main queue starts to count anew.

    Attributes:
        small: Part of the slots that are the small queue's; at least one slot is.
        ghost: Experts remembered after their eviction, per slot.
    """

    small: float = 0.1
    ghost: float = 0.9

    name: ClassVar[str] = "s3-fifo"
    summary: ClassVar[str] = "a small queue on trial before the main queue (S3-FIFO)"

    def __post_init__(self) -> None:
        if not 0 < self.small < 1:
            raise UsageError(f"s3-fifo: small must be in (0, 1); found {self.small}")
        if not self.ghost >= 0:
            raise UsageError(f"s3-fifo: ghost must be at least 0; found {self.ghost}")

    def hits(self, accesses: Accesses, *, atomic: bool, slots: int) -> np.ndarray:
        """Which accesses hit in a cache of one size: [N] bool."""
        hits = np.empty(accesses.count, bool)
        small = max(1, int(slots * self.small))
        _hits(
            accesses.ids,
            accesses.starts,
            accesses.resets,
            atomic,
            small,
            slots - small,
            int(min(slots * self.ghost, accesses.objects)),
            np.empty(accesses.objects, np.int8),
            np.empty(accesses.objects, np.int64),
            np.empty(accesses.objects + 3, np.int64),
            np.empty(accesses.objects + 3, np.int64),
            hits,
        )
        return hits


@compiled
def _hits(
    ids: np.ndarray,
    starts: np.ndarray,
    resets: np.ndarray,
    atomic: bool,
    small: int,
    main: int,
    ghosts: int,
    where: np.ndarray,
    uses: np.ndarray,
    following: np.ndarray,
    previous: np.ndarray,
    hits: np.ndarray,
) -> None:
    # uses: since the expert came into its queue, 3 at most.
    size = np.zeros(3, np.int64)
    for segment in range(resets.size - 1):
        clear(following, previous)
        where[:] = _NOWHERE
        size[:] = 0
        filling = True
        for event in range(resets[segment], resets[segment + 1]):
            first, last = starts[event], starts[event + 1]
            if atomic:
                for i in range(first, last):
                    hits[i] = (where[ids[i]] == _SMALL) | (where[ids[i]] == _MAIN)
            for i in range(first, last):
                item = ids[i]
                found = where[item]
                if not atomic:
                    hits[i] = (found == _SMALL) | (found == _MAIN)
                if found in (_SMALL, _MAIN):
                    uses[item] = min(uses[item] + 1, 3)
                    continue
                remembered = found == _GHOST
                if remembered:
                    unlink(following, previous, item)
                    size[_GHOST] -= 1
                    where[item] = _NOWHERE
                while size[_SMALL] + size[_MAIN] >= small + main:
                    filling = False
                    if size[_MAIN] > main or size[_SMALL] == 0:
                        _evict_main(where, uses, following, previous, size)
                    else:
                        _evict_small(where, uses, following, previous, size, ghosts)
                past_small = filling and size[_SMALL] >= small
                goal = _MAIN if remembered or past_small else _SMALL
                uses[item] = 0
                where[item] = goal
                size[goal] += 1
                push_front(following, previous, where.size + goal, item)


@compiled
def _evict_small(
    where: np.ndarray,
    uses: np.ndarray,
    following: np.ndarray,
    previous: np.ndarray,
    size: np.ndarray,
    ghosts: int,
) -> None:
    """Take the last of the small queue: used twice or more, it goes to main; else it is evicted."""
    while size[_SMALL] > 0:
        item = previous[where.size + _SMALL]
        unlink(following, previous, item)
        size[_SMALL] -= 1
        goal = _MAIN if uses[item] > 1 else _GHOST
        if goal == _GHOST and size[_GHOST] >= ghosts:
            if ghosts == 0:
                where[item] = _NOWHERE
                return
            oldest = previous[where.size + _GHOST]
            unlink(following, previous, oldest)
            where[oldest] = _NOWHERE
            size[_GHOST] -= 1
        where[item] = goal
        size[goal] += 1
        push_front(following, previous, where.size + goal, item)
        if goal == _GHOST:
            return
        uses[item] = 0


@compiled
def _evict_main(
    where: np.ndarray,
    uses: np.ndarray,
    following: np.ndarray,
    previous: np.ndarray,
    size: np.ndarray,
) -> None:
    """Evict the last of the main queue; whoever was used goes round again, counting one less."""
    while size[_MAIN] > 0:
        item = previous[where.size + _MAIN]
        unlink(following, previous, item)
        if uses[item] == 0:
            size[_MAIN] -= 1
            where[item] = _NOWHERE
            return
        uses[item] -= 1
        push_front(following, previous, where.size + _MAIN, item)
