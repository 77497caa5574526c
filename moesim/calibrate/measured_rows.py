"""The rows of one measured operator after hygiene, grouped by the kernel that ran them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from moesim.calibrate.frame import Frame
from moesim.calibrate.hygiene import HygieneReport, clean
from moesim.calibrate.metrics import LARGE, SMALL
from moesim.calibrate.operators import OPERATORS, read_operator
from moesim.calibrate.tables import PACKAGE, open_catalogue
from moesim.operators.fitted import KernelFit, nearest
from moesim.operators.shipped import as_stand_in
from moesim.operators.systems import device_of

__all__ = [
    "KERNEL",
    "MeasuredRows",
    "kernel_groups",
    "kernel_name",
    "load_rows",
    "predicted_by_nearest",
    "regimes",
]

K = TypeVar("K", bound=KernelFit)

KERNEL = ("system", "engine", "version", "kernel", "dtype")
"""What tells kernels apart in every operator."""


@dataclass(frozen=True)
class MeasuredRows:
    """What ``load`` gives.

    Attributes:
        frame: Rows that stay.
        report: What was dropped, and by which rule.
    """

    frame: Frame
    report: HygieneReport


def load_rows(
    operator: str,
    source: str | Path = PACKAGE,
    systems: Iterable[str] | None = None,
    versions: str | Iterable[str] = "newest",
    engines: Iterable[str] | None = None,
) -> MeasuredRows:
    """Read an operator's tables and drop what is no measurement of its key."""
    frame = read_operator(
        open_catalogue(source), operator, systems=systems, engines=engines, versions=versions
    )
    return MeasuredRows(*clean(frame))


def regimes(frame: Frame, columns: Sequence[str]) -> dict[str, np.ndarray]:
    """Codes ``[rows]`` along which errors differ, the finest division first.

    Args:
        frame: The rows.
        columns: What tells kinds of kernels apart, the same on all systems.
    """
    places = frame[OPERATORS[frame.operator].series]
    size = np.searchsorted([SMALL, LARGE], places, side="left")
    kinds = frame.groups([name for name in columns if name in frame.columns])
    return {"kernel and size": kinds * 3 + size, "size": size}


def kernel_name(label: Mapping[str, object]) -> str:
    """The label's values in a row, ``h200_sxm/vllm/0.24.0/…``."""
    return "/".join(str(value) for value in label.values())


def kernel_groups(
    frame: Frame, columns: Sequence[str], rows: np.ndarray, least: int
) -> Iterator[tuple[dict[str, str | int | float], np.ndarray]]:
    """The chosen rows of each kernel.

    Args:
        frame: All rows.
        columns: What tells kernels apart.
        rows: Which rows may be used, ``[rows] bool``.
        least: Smaller groups are left out.

    Yields:
        The values of the columns, and the group's row numbers.
    """
    ids = frame.groups(columns)
    for code in np.unique(ids[rows]):
        members = np.flatnonzero((ids == code) & rows)
        if len(members) >= least:
            shown = frame.describe(int(members[0]))
            yield {name: shown[name] for name in columns}, members


def predicted_by_nearest(
    frame: Frame,
    fits: Iterable[K],
    labels: Sequence[str],
    seconds: Callable[[K, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Seconds of every row by its own kernel's fit, or by the nearest where it has none.

    A fit of another system is read with the row's own device.

    Args:
        frame: The rows.
        fits: What there is.
        labels: Columns that tell kernels apart; the names of the fits' labels.
        seconds: Times of some rows, given by number, by a fit.

    Returns:
        ``[rows]``; NaN where no fit does the same, or the nearest does not reach.
    """
    result = np.full(len(frame), np.nan)
    every = tuple(fits)
    ids = frame.groups(labels)
    for code in range(int(ids.max()) + 1 if len(frame) and every else 0):
        rows = np.flatnonzero(ids == code)
        shown = frame.describe(int(rows[0]))
        device = device_of(str(shown["system"]))
        wanted = type(every[0]).wanted(device, {name: shown[name] for name in labels})
        found = nearest(every, wanted)
        if found is not None:
            result[rows] = seconds(as_stand_in(found, wanted, device), rows)
    return result
