"""Loops that several policies share.

A priority stack holds experts so that a cache of C slots holds the first C of them. The one asked
for last lies on top. The one that it displaces sinks: at every level the one of higher priority
stays and the other sinks on, until the place that the new top left. So the one of lowest priority
leaves every cache that has to make room (Mattson et al. 1970, section on priority replacement).

numba's cache of compiled code does not notice when a function that another file calls has changed:
after an edit here, or in ``lists``, ``draws`` or ``bits``, delete ``policies/__pycache__``.
"""

from __future__ import annotations

import numpy as np

from moesim.cache.accesses import Accesses
from moesim.compiled import compiled

__all__ = ["locate", "push", "push_ranked", "scratch_type"]


def scratch_type(accesses: Accesses) -> type[np.unsignedinteger]:
    """The narrowest type for a place in a stack of all objects."""
    return np.uint8 if accesses.objects <= 256 else np.uint16


@compiled
def locate(stack: np.ndarray, height: int, place: np.ndarray) -> None:
    """Write into ``place`` where each expert of the stack lies."""
    for level in range(height):
        place[stack[level]] = level


@compiled
def push(stack: np.ndarray, height: int, priority: np.ndarray, item: int) -> int:
    """Put an expert on top, from wherever in the stack it is, or from outside.

    Args:
        stack: [objects] experts, of which the first ``height`` count.
        height: Experts in the stack.
        priority: [objects], no two alike among those in the stack; the highest is kept longest.
        item: The expert asked for.

    Returns:
        The level that it left (0 is the top); ``height`` if it was not in the stack, which then is
        one higher.
    """
    if height == 0:
        stack[0] = item
        return 0
    sinking = stack[0]
    if sinking == item:
        return 0
    stack[0] = item
    sinking_priority = priority[sinking]
    level = 1
    while level < height:
        other = stack[level]
        if other == item:
            break
        other_priority = priority[other]
        lower = other_priority < sinking_priority
        stack[level] = sinking if lower else other
        sinking = other if lower else sinking
        sinking_priority = min(other_priority, sinking_priority)
        level += 1
    stack[level] = sinking
    return level


@compiled
def push_ranked(
    stack: np.ndarray, height: int, priority: np.ndarray, last_use: np.ndarray, item: int
) -> int:
    """As :func:`push`, with priorities that may be alike: of equals, the least recent sinks.

    Args:
        stack: [objects] experts, of which the first ``height`` count.
        height: Experts in the stack.
        priority: [objects] numbers without NaN.
        last_use: [objects], no two alike among those in the stack.
        item: The expert asked for.
    """
    if height == 0:
        stack[0] = item
        return 0
    sinking = stack[0]
    if sinking == item:
        return 0
    stack[0] = item
    wanted, used = priority[sinking], last_use[sinking]
    level = 1
    while level < height:
        other = stack[level]
        if other == item:
            break
        other_wanted, other_used = priority[other], last_use[other]
        alike = other_wanted == wanted
        lower = (other_wanted < wanted) | (alike & (other_used < used))
        stack[level] = sinking if lower else other
        sinking = other if lower else sinking
        wanted = min(other_wanted, wanted)
        used = other_used if lower else used
        level += 1
    stack[level] = sinking
    return level
