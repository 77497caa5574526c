"""Belady's optimum: evict the expert whose next use is farthest away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.cache.accesses import Accesses
from moesim.cache.policy import StackPolicy
from moesim.compiled import compiled

__all__ = ["NEVER", "Belady", "next_uses"]

NEVER = np.uint32(2**32 - 1)
"""Next use of an expert that is not used again before the next reset."""


@dataclass(frozen=True)
class Belady(StackPolicy):
    """Evict the expert whose next use is farthest away; every missing expert is admitted.

    Under the contract ``sequential``, the most hits that any policy can have that admits every
    missing expert (Belady 1966, Mattson et al. 1970). Under ``event-atomic``, it updates the cache
    access by access as all policies do (and as the code of arXiv 2505.16056 does), while an event's
    hits are already decided; another policy can then come out a few hits better, most likely where
    a cache holds little more than an event asks for. ``belady-bypass`` is the bound of both.
    """

    name: ClassVar[str] = "belady"
    summary: ClassVar[str] = "evict the expert whose next use is farthest away; admit all"

    def depths(self, accesses: Accesses, *, atomic: bool) -> np.ndarray:
        """The smallest number of slots at which each access hits: [N] uint16."""
        depths = np.empty(accesses.count, np.uint16)
        _depths(
            accesses.starts,
            accesses.resets,
            atomic,
            next_uses(accesses),
            np.empty(accesses.objects + 1, np.uint32),
            depths,
        )
        return depths


def next_uses(accesses: Accesses) -> np.ndarray:
    """The next access to the same expert before the next reset: [N] uint32, or ``NEVER``."""
    following = np.empty(accesses.count, np.uint32)
    seen = np.empty(accesses.objects, np.uint32)
    _next_uses(accesses.ids, accesses.segments, seen, following)
    return following


@compiled
def _next_uses(
    ids: np.ndarray, segments: np.ndarray, seen: np.ndarray, following: np.ndarray
) -> None:
    for segment in range(segments.size - 1):
        seen[:] = NEVER
        for i in range(segments[segment + 1] - 1, segments[segment] - 1, -1):
            following[i] = seen[ids[i]]
            seen[ids[i]] = i


@compiled
def _depths(
    starts: np.ndarray,
    resets: np.ndarray,
    atomic: bool,
    following: np.ndarray,
    stack: np.ndarray,
    depths: np.ndarray,
) -> None:
    # A priority stack (moesim.cache.stack) of next uses instead of experts. The entry of an access
    # says the number of that access, so an entry is found without knowing the expert, and the one
    # that sinks is the larger of two numbers. Experts never used again look alike; it does not
    # matter which of them is which.
    for segment in range(resets.size - 1):
        height = 0
        for event in range(resets[segment], resets[segment + 1]):
            first, last = starts[event], starts[event + 1]
            if atomic:
                for level in range(height):
                    if stack[level] < last:
                        depths[stack[level]] = level + 1
            for i in range(first, last):
                access = np.uint32(i)
                sinking = stack[0]
                stack[0] = following[i]
                level = 0
                if height > 0 and sinking != access:
                    level = 1
                    while level < height:
                        other = stack[level]
                        if other == access:
                            break
                        stack[level] = min(sinking, other)
                        sinking = max(sinking, other)
                        level += 1
                    stack[level] = sinking
                height += level == height
                if not atomic:
                    depths[i] = level + 1
