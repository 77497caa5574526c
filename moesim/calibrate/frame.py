"""A table of measurements as columns: numpy arrays, text as codes into a list of labels.

Six million rows of short keys fit this better than data frames: a text column is an int32 array
and a tuple, so grouping and selecting never touch a string.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from moesim.errors import InputError

__all__ = ["Frame", "concatenate", "dense_groups"]


@dataclass(frozen=True)
class Frame:
    """Rows of one operator.

    Attributes:
        operator: Name of the operator (``moe``, ``gemm`` …).
        columns: ``name: [rows]``; text columns hold int32 codes, counts int64, the rest float64.
        labels: Of each text column, the text of every code.
        notes: What happened to the data on the way here, as sentences.
    """

    operator: str
    columns: Mapping[str, np.ndarray]
    labels: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def __getitem__(self, name: str) -> np.ndarray:
        """The column as stored; codes for text."""
        try:
            return self.columns[name]
        except KeyError:
            raise InputError(
                f"table of {self.operator} has no such column",
                found=name,
                allowed=", ".join(self.columns),
            ) from None

    def text(self, name: str) -> np.ndarray:
        """A text column decoded, ``[rows] object``."""
        codes = self[name]
        return np.array(self.labels[name], dtype=object)[codes]

    def is_label(self, name: str, *wanted: str) -> np.ndarray:
        """Rows whose text column holds one of the labels, ``[rows] bool``."""
        codes = [code for code, label in enumerate(self.labels[name]) if label in wanted]
        return np.isin(self[name], codes)

    def take(self, rows: np.ndarray) -> Frame:
        """The rows of a mask or an index array."""
        columns = {name: values[rows] for name, values in self.columns.items()}
        return Frame(self.operator, columns, self.labels, self.notes)

    def groups(self, names: Sequence[str]) -> np.ndarray:
        """Dense ids of rows that agree in all these columns, ``[rows] int64`` from 0."""
        return dense_groups([self[name] for name in names], len(self))

    def describe(self, row: int) -> dict[str, str | int | float]:
        """One row with its text decoded, for examples in reports."""
        shown: dict[str, str | int | float] = {}
        for name, values in self.columns.items():
            value = values[row]
            if name in self.labels:
                shown[name] = self.labels[name][value]
            elif np.issubdtype(values.dtype, np.integer):
                shown[name] = int(value)
            elif np.isfinite(value):
                shown[name] = float(value)
        return shown


def dense_groups(columns: Sequence[np.ndarray], rows: int) -> np.ndarray:
    """Dense ids of equal tuples across columns, ``[rows] int64``.

    The ids are in the order of the tuples, column by column.
    """
    ids, count = np.zeros(rows, np.int64), 1
    for column in columns:
        inverse, values = _factorise(column)
        if values > 1:
            ids = ids * values + inverse
            count *= values
        if count > 2**40:  # before the product of the next column could overflow
            ids, count = _factorise(ids)
    return _factorise(ids)[0]


def _factorise(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Rank of every value among the distinct ones, ``[rows] int64``, and how many those are."""
    if not len(values):
        return np.zeros(0, np.int64), 0
    longest = max(2**16, 4 * len(values))
    if np.issubdtype(values.dtype, np.integer) and int(values.max()) - int(values.min()) < longest:
        # Counting beats sorting where the range is no longer than the column.
        places = values - values.min()
        present = np.zeros(int(places.max()) + 1, bool)
        present[places] = True
        ranks = np.cumsum(present) - 1
        return ranks[places].astype(np.int64), int(ranks[-1]) + 1
    distinct, inverse = np.unique(values, return_inverse=True)
    return inverse.astype(np.int64), len(distinct)


def concatenate(frames: Sequence[Frame]) -> Frame:
    """Put frames of one operator below each other, merging the labels of their text columns.

    Raises:
        InputError: If there are none, or they differ in operator or columns.
    """
    if not frames:
        raise InputError("no tables to put together")
    first = frames[0]
    for other in frames[1:]:
        if other.operator != first.operator or set(other.columns) != set(first.columns):
            raise InputError(
                "tables of different columns cannot be put together",
                found=f"{other.operator}: {', '.join(other.columns)}",
                allowed=f"{first.operator}: {', '.join(first.columns)}",
            )
    if len(frames) == 1:
        return first
    columns: dict[str, np.ndarray] = {}
    labels: dict[str, tuple[str, ...]] = {}
    for name in first.columns:
        if name not in first.labels:
            columns[name] = np.concatenate([frame[name] for frame in frames])
            continue
        codes: dict[str, int] = {}
        parts = []
        for frame in frames:
            new = [codes.setdefault(label, len(codes)) for label in frame.labels[name]]
            parts.append(np.array(new, np.int32)[frame[name]])
        columns[name] = np.concatenate(parts)
        labels[name] = tuple(codes)
    notes = tuple(dict.fromkeys(note for frame in frames for note in frame.notes))
    return Frame(first.operator, columns, labels, notes)
