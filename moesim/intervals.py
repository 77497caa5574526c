"""Adding up intervals: errors of one operator go together, those of different ones do not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from math import hypot

__all__ = ["add_intervals"]


def add_intervals(parts: Iterable[tuple[str, float, float, float]]) -> tuple[float, float, float]:
    """The sum of predictions with its interval.

    Within an operator all calls err the same way (one wrong coefficient makes them all too slow),
    so the ends add up; between operators errors are independent: distances from the prediction add
    up by their squares, those to the lower ends and those to the upper ends apart. A roofline lies
    below the times that kernels reach; the nearest end of its interval stands in for it. So the
    sum is within its interval where all predictions are within theirs.

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
    nearest = {name: min(max(time_s, lo), hi) for name, (time_s, lo, hi) in sums.items()}
    below = hypot(*(nearest[name] - lo for name, (_, lo, _) in sums.items()))
    above = hypot(*(hi - nearest[name] for name, (_, _, hi) in sums.items()))
    center = sum(nearest.values())
    return total, center - below, center + above
