"""Belady's optimum for a cache that need not keep what it loads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.cache.accesses import Accesses
from moesim.cache.policies.belady import next_uses
from moesim.cache.policy import StackPolicy
from moesim.compiled import compiled

__all__ = ["BeladyBypass"]


@dataclass(frozen=True)
class BeladyBypass(StackPolicy):
    """After every event, keep the residents and experts just used whose next uses are nearest.

    An expert that was loaded may be dropped again at once ("stream and drop"). No policy has more
    hits, under either contract.
    """

    name: ClassVar[str] = "belady-bypass"
    summary: ClassVar[str] = "keep the experts whose next uses are nearest; the true optimum"

    def depths(self, accesses: Accesses, *, atomic: bool) -> np.ndarray:
        """The smallest number of slots at which each access hits: [N] uint16."""
        depths = np.empty(accesses.count, np.uint16)
        following = next_uses(accesses)
        # Entries of the stack have to differ: what is never used again gets a number of its own.
        never = following > accesses.count
        following[never] -= accesses.ids[never]
        stack = np.empty(accesses.objects + 1, np.uint32)
        starts, resets = accesses.starts, accesses.resets
        if not atomic:
            starts, resets = np.arange(accesses.count + 1), accesses.segments
        _depths(starts, resets, following, stack, depths)
        return depths


@compiled
def _depths(
    starts: np.ndarray,
    resets: np.ndarray,
    following: np.ndarray,
    stack: np.ndarray,
    depths: np.ndarray,
) -> None:
    # A priority stack (moesim.cache.stack) of next uses, as in Belady, but the expert just used
    # does not lie on top: it has to compete with the first level, and so on down. Larger caches
    # still hold what smaller ones do: of the residents of a cache and the experts used, the worst
    # go, and the worst of a larger set are no better than the worst of a smaller one.
    for segment in range(resets.size - 1):
        height = 0
        for event in range(resets[segment], resets[segment + 1]):
            first, last = starts[event], starts[event + 1]
            depths[first:last] = 0
            for level in range(height):
                if stack[level] < last:
                    depths[stack[level]] = level + 1
                    stack[level] = following[stack[level]]
            for i in range(first, last):
                mine = following[i]
                sinking = mine
                level = 0
                while level < height:
                    other = stack[level]
                    if other == mine:
                        break
                    stack[level] = min(sinking, other)
                    sinking = max(sinking, other)
                    level += 1
                stack[level] = sinking
                height += level == height
