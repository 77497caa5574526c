"""Adding up intervals: errors of one operator go together, those of different ones do not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from math import hypot

__all__ = ["add_intervals"]


def add_intervals(parts: Iterable[tuple[str, float, float, float]]) -> tuple[float, float, float]:
    """The sum of predictions with its interval.

    Within an operator all calls err the same way (one wrong coefficient makes them all too slow),
    so the ends add up; between operators errors are independent: the middles of the intervals add
    up, and their half-widths by their squares. An interval need not hold its prediction: a
    roofline lies below the times that kernels reach.

    Args:
        parts: Operator, prediction, lower and upper end of each.

    Returns:
        Sum, lower end, upper end.
    """
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for operator, time_s, lo_s, hi_s in parts:
        own = sums[operator]
        own[0] += time_s
        own[1] += lo_s
        own[2] += hi_s
    total = sum(values[0] for values in sums.values())
    middle = sum((values[1] + values[2]) / 2 for values in sums.values())
    half = hypot(*((values[2] - values[1]) / 2 for values in sums.values()))
    return total, middle - half, middle + half
