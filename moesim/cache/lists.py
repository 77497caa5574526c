"""Doubly linked lists over experts, for policies that keep several queues.

All lists share two arrays of ``objects + number of lists`` numbers. The head of list k is the entry
``objects + k``; an empty list's head points at itself. The front of a list follows its head, the
back comes before it.
"""

from __future__ import annotations

import numpy as np

from moesim.compiled import compiled

__all__ = ["clear", "push_front", "unlink"]


@compiled
def clear(following: np.ndarray, previous: np.ndarray) -> None:
    """Empty all lists."""
    for entry in range(following.size):
        following[entry] = entry
        previous[entry] = entry


@compiled
def push_front(following: np.ndarray, previous: np.ndarray, head: int, item: int) -> None:
    """Put an expert that is in no list at the front of one."""
    front = following[head]
    following[head] = item
    previous[item] = head
    following[item] = front
    previous[front] = item


@compiled
def unlink(following: np.ndarray, previous: np.ndarray, item: int) -> None:
    """Take an expert out of its list."""
    before, after = previous[item], following[item]
    following[before] = after
    previous[after] = before
