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

__all__ = ["STABLE_UP_TO", "descending_order"]

STABLE_UP_TO = 16
"""libstdc++'s ``_S_threshold``: at most so many elements are insertion-sorted, stably."""


def descending_order(keys: Sequence[float]) -> list[int]:
    """Indices that sort the keys from large to small, equal keys in ``std::sort``'s order."""
    order = list(range(len(keys)))
    if len(keys) > STABLE_UP_TO:
        depth_limit = 2 * (len(keys).bit_length() - 1)
        _introsort(keys, order, 0, len(keys), depth_limit)
        _insertion_sort(keys, order, STABLE_UP_TO)
        for place in range(STABLE_UP_TO, len(keys)):
            _sink(keys, order, place)
    else:
        _insertion_sort(keys, order, len(keys))
    return order


def _introsort(keys: Sequence[float], order: list[int], first: int, last: int, depth: int) -> None:
    while last - first > STABLE_UP_TO:
        if depth == 0:
            _heapsort(keys, order, first, last)
            return
        depth -= 1
        middle = first + (last - first) // 2
        _median_to_front(keys, order, first, (first + 1, middle, last - 1))
        cut = _partition(keys, order, first + 1, last, keys[order[first]])
        _introsort(keys, order, cut, last, depth)
        last = cut


def _median_to_front(
    keys: Sequence[float], order: list[int], front: int, places: tuple[int, int, int]
) -> None:
    one, two, three = places
    a, b, c = (keys[order[place]] for place in places)
    if a > b:
        median = two if b > c else three if a > c else one
    else:
        median = one if a > c else three if b > c else two
    order[front], order[median] = order[median], order[front]


def _partition(keys: Sequence[float], order: list[int], low: int, high: int, pivot: float) -> int:
    # The pivot is a median of three, so both scans meet something that stops them.
    while True:
        while keys[order[low]] > pivot:
            low += 1
        high -= 1
        while pivot > keys[order[high]]:
            high -= 1
        if low >= high:
            return low
        order[low], order[high] = order[high], order[low]
        low += 1


def _insertion_sort(keys: Sequence[float], order: list[int], last: int) -> None:
    for place in range(1, last):
        moved = order[place]
        if keys[moved] > keys[order[0]]:
            order[1 : place + 1] = order[:place]
            order[0] = moved
        else:
            _sink(keys, order, place)


def _sink(keys: Sequence[float], order: list[int], place: int) -> None:
    moved = order[place]
    key = keys[moved]
    while key > keys[order[place - 1]]:
        order[place] = order[place - 1]
        place -= 1
    order[place] = moved


def _heapsort(keys: Sequence[float], order: list[int], first: int, last: int) -> None:
    heap = order[first:last]
    for parent in range((len(heap) - 2) // 2, -1, -1):
        _adjust_heap(keys, heap, parent, len(heap), heap[parent])
    for end in range(len(heap) - 1, 0, -1):
        value = heap[end]
        heap[end] = heap[0]
        _adjust_heap(keys, heap, 0, end, value)
    order[first:last] = heap


def _adjust_heap(
    keys: Sequence[float], heap: list[int], hole: int, length: int, value: int
) -> None:
    top = hole
    child = hole
    while child < (length - 1) // 2:
        child = 2 * child + 2
        if keys[heap[child]] > keys[heap[child - 1]]:
            child -= 1
        heap[hole] = heap[child]
        hole = child
    if length % 2 == 0 and child == (length - 2) // 2:
        child = 2 * child + 1
        heap[hole] = heap[child]
        hole = child
    parent = (hole - 1) // 2
    while hole > top and keys[heap[parent]] > keys[value]:
        heap[hole] = heap[parent]
        hole = parent
        parent = (hole - 1) // 2
    heap[hole] = value
