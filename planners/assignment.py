"""Assignments whose worst pair is as cheap as possible."""

from __future__ import annotations

import numpy as np

__all__ = ["bottleneck_assignment"]


def bottleneck_assignment(cost: np.ndarray) -> np.ndarray:
    """Assign every row to a column of its own so that the dearest chosen entry is least.

    The linear bottleneck assignment problem, exactly: the smallest threshold under which the
    allowed entries hold a perfect matching (R. Burkard et al., "Assignment problems", 2009, §6.2).

    Args:
        cost: [n, n] float64, infinite where not allowed.

    Returns:
        [n] int64, column of every row.

    Raises:
        ValueError: If no perfect matching is allowed.
    """
    thresholds = np.unique(cost[np.isfinite(cost)])
    low, high = 0, len(thresholds) - 1
    best = _perfect_matching(cost <= thresholds[high]) if len(thresholds) else None
    if best is None:
        raise ValueError("no perfect matching is allowed")
    while low < high:
        middle = (low + high) // 2
        matching = _perfect_matching(cost <= thresholds[middle])
        if matching is None:
            low = middle + 1
        else:
            best, high = matching, middle
    return np.array(best)


def _perfect_matching(allowed: np.ndarray) -> list[int] | None:
    """Column of every row, by augmenting paths; sets of columns are the bits of an integer."""
    n = len(allowed)
    free_columns = [sum(1 << int(column) for column in np.flatnonzero(row)) for row in allowed]
    row_of = [-1] * n

    def augment(row: int, untried: int) -> tuple[bool, int]:
        while True:
            options = free_columns[row] & untried
            if not options:
                return False, untried
            column = (options & -options).bit_length() - 1
            untried &= ~(1 << column)
            if row_of[column] < 0:
                done = True
            else:
                done, untried = augment(row_of[column], untried)
            if done:
                row_of[column] = row
                return True, untried

    for row in range(n):
        if not augment(row, (1 << n) - 1)[0]:
            return None
    column_of = [0] * n
    for column, row in enumerate(row_of):
        column_of[row] = column
    return column_of
