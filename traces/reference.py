"""Plain numpy counting: what :mod:`moesim.traces.counting` must agree with.

It is also what small traces use, since it is done before a compiler would be loaded.
"""

from __future__ import annotations

import numpy as np

__all__ = ["count_groups", "count_ids", "count_pairs"]


def count_ids(ids: np.ndarray, bins: int) -> np.ndarray:
    """How often each id occurs: [bins] int64 from ids [T, K]."""
    return np.bincount(ids.reshape(-1), minlength=bins)


def count_groups(ids: np.ndarray, groups: np.ndarray, table: np.ndarray) -> None:
    """Add every token's ids [T, K] to the row of its group [T] in table [rows, bins]."""
    cells = groups[:, None] * table.shape[1] + ids
    table += np.bincount(cells.reshape(-1), minlength=table.size).reshape(table.shape)


def count_pairs(first: np.ndarray, second: np.ndarray, table: np.ndarray) -> None:
    """Add every ordered pair (id of first [T, K], id of second [T, K]) of the same token."""
    bins = table.shape[1]
    for k in range(first.shape[1]):
        row_ids = first[:, k].astype(np.int64)
        cells = row_ids[:, None] * bins + second
        table += np.bincount(cells.reshape(-1), minlength=table.size).reshape(table.shape)
