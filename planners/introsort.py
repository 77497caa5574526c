"""The order in which ``std::sort`` leaves equal keys.

``torch.sort`` is not stable by default. On the CPU it calls C++ ``std::sort`` on (key, index)
pairs, so with GNU's libstdc++ (every Linux wheel of torch) the order of equal keys is that of
introsort: quicksort around a median of three down to 16 elements, heapsort where that recursion
gets too deep, insertion sort at the end. Up to 16 elements it is a plain insertion sort, which is
stable. A planner that has to agree with one written in torch has to break ties in the same way.

The algorithm: D. R. Musser, "Introspective sorting and selection algorithms", 1997; the choices
that fix the order of ties (pivot, threshold, depth limit) are those of libstdc++'s ``stl_algo.h``.
Checked against torch 2.13.0: tests/planners/test_introsort.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moesim.compiled import compiled

__all__ = ["STABLE_UP_TO", "descending_order"]

STABLE_UP_TO = 16
"""libstdc++'s ``_S_threshold``: at most so many elements are insertion-sorted, stably."""


def descending_order(keys: Sequence[float] | np.ndarray) -> np.ndarray:
    """Indices that sort the keys from large to small, equal keys in ``std::sort``'s order.

    Args:
        keys: [n] real numbers, no NaN.

    Returns:
        [n] int64.
    """
    _, rank = np.unique(-np.asarray(keys), return_inverse=True)
    order = np.arange(rank.size)
    rank = rank.astype(np.int64).ravel()
    if rank.size > STABLE_UP_TO:
        _split(rank, order, 2 * (rank.size.bit_length() - 1))
    # The insertion sort at the end is stable, so any stable sort gives its result.
    result: np.ndarray = order[np.argsort(rank, kind="stable")]
    return result


@compiled
def _split(rank: np.ndarray, order: np.ndarray, depth: int) -> None:
    """Quicksort's part: split until at most 16 elements are left in every section.

    libstdc++ recurses into the right section; the sections share no element, so taking them from
    a stack leaves them in the same order.
    """
    sections = [(0, len(rank), depth)]
    while len(sections) > 0:
        first, last, left = sections.pop()
        while last - first > STABLE_UP_TO:
            if left == 0:
                _heapsort(rank, order, first, last)
                break
            left -= 1
            _median_to_front(rank, order, first, last)
            cut = _partition(rank, order, first + 1, last, rank[first])
            sections.append((cut, last, left))
            last = cut


@compiled
def _exchange(rank: np.ndarray, order: np.ndarray, one: int, other: int) -> None:
    kept = rank[one]
    rank[one] = rank[other]
    rank[other] = kept
    kept = order[one]
    order[one] = order[other]
    order[other] = kept


@compiled
def _median_to_front(rank: np.ndarray, order: np.ndarray, first: int, last: int) -> None:
    one, two, three = first + 1, first + (last - first) // 2, last - 1
    a, b, c = rank[one], rank[two], rank[three]
    if a < b:
        median = two if b < c else (three if a < c else one)
    else:
        median = one if a < c else (three if b < c else two)
    _exchange(rank, order, first, median)


@compiled
def _partition(rank: np.ndarray, order: np.ndarray, low: int, high: int, pivot: int) -> int:
    """Lower ranks than the pivot's go before the cut, higher ones behind it."""
    # The pivot is a median of three, so both scans meet something that stops them.
    while True:
        while rank[low] < pivot:
            low += 1
        high -= 1
        while rank[high] > pivot:
            high -= 1
        if low >= high:
            return low
        _exchange(rank, order, low, high)
        low += 1


@compiled
def _heapsort(rank: np.ndarray, order: np.ndarray, first: int, last: int) -> None:
    keys, items = rank[first:last], order[first:last]
    size = last - first
    for parent in range((size - 2) // 2, -1, -1):
        _adjust_heap(keys, items, parent, size, keys[parent], items[parent])
    for end in range(size - 1, 0, -1):
        key, item = keys[end], items[end]
        keys[end], items[end] = keys[0], items[0]
        _adjust_heap(keys, items, 0, end, key, item)


@compiled
def _adjust_heap(
    keys: np.ndarray, items: np.ndarray, hole: int, length: int, key: int, item: int
) -> None:
    """Sink the hole to the bottom along the larger ranks, then raise the value from there."""
    top = hole
    child = hole
    while child < (length - 1) // 2:
        child = 2 * child + 2
        if keys[child] < keys[child - 1]:
            child -= 1
        keys[hole], items[hole] = keys[child], items[child]
        hole = child
    if length % 2 == 0 and child == (length - 2) // 2:
        child = 2 * child + 1
        keys[hole], items[hole] = keys[child], items[child]
        hole = child
    parent = (hole - 1) // 2
    while hole > top and keys[parent] < key:
        keys[hole], items[hole] = keys[parent], items[parent]
        hole = parent
        parent = (hole - 1) // 2
    keys[hole], items[hole] = key, item
