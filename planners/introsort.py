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
    size = len(keys)
    rank = {key: place for place, key in enumerate(sorted(set(keys), reverse=True))}
    # One integer per element, rank · n + index: comparing ranks needs no second look-up.
    codes = [rank[key] * size + index for index, key in enumerate(keys)]
    if size > STABLE_UP_TO:
        _split(codes, 0, size, 2 * (size.bit_length() - 1))
    # The insertion sort at the end is stable, so any stable sort gives its result.
    codes.sort(key=lambda code: code // size)
    return [code % size for code in codes]


def _split(codes: list[int], first: int, last: int, depth: int) -> None:
    """Quicksort's part: split until at most 16 elements are left in every section."""
    size = len(codes)
    while last - first > STABLE_UP_TO:
        if depth == 0:
            _heapsort(codes, first, last)
            return
        depth -= 1
        middle = first + (last - first) // 2
        _median_to_front(codes, first, (first + 1, middle, last - 1))
        pivot = codes[first] // size
        cut = _partition(codes, first + 1, last, pivot * size, (pivot + 1) * size)
        _split(codes, cut, last, depth)
        last = cut


def _median_to_front(codes: list[int], front: int, places: tuple[int, int, int]) -> None:
    one, two, three = places
    a, b, c = (codes[place] // len(codes) for place in places)
    if a < b:
        median = two if b < c else three if a < c else one
    else:
        median = one if a < c else three if b < c else two
    codes[front], codes[median] = codes[median], codes[front]


def _partition(codes: list[int], low: int, high: int, before: int, behind: int) -> int:
    """Codes below ``before`` go before the pivot's rank, codes from ``behind`` on behind it."""
    # The pivot is a median of three, so both scans meet something that stops them.
    while True:
        while codes[low] < before:
            low += 1
        high -= 1
        while codes[high] >= behind:
            high -= 1
        if low >= high:
            return low
        codes[low], codes[high] = codes[high], codes[low]
        low += 1


def _heapsort(codes: list[int], first: int, last: int) -> None:
    heap = codes[first:last]
    size = len(codes)
    for parent in range((len(heap) - 2) // 2, -1, -1):
        _adjust_heap(heap, parent, len(heap), heap[parent], size)
    for end in range(len(heap) - 1, 0, -1):
        value = heap[end]
        heap[end] = heap[0]
        _adjust_heap(heap, 0, end, value, size)
    codes[first:last] = heap


def _adjust_heap(heap: list[int], hole: int, length: int, value: int, size: int) -> None:
    """Sink the hole to the bottom along the larger ranks, then raise the value from there."""
    top = hole
    child = hole
    while child < (length - 1) // 2:
        child = 2 * child + 2
        if heap[child] // size < heap[child - 1] // size:
            child -= 1
        heap[hole] = heap[child]
        hole = child
    if length % 2 == 0 and child == (length - 2) // 2:
        child = 2 * child + 1
        heap[hole] = heap[child]
        hole = child
    parent = (hole - 1) // 2
    while hole > top and heap[parent] // size < value // size:
        heap[hole] = heap[parent]
        hole = parent
        parent = (hole - 1) // 2
    heap[hole] = value
