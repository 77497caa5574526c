"""The rows of one measured operator after hygiene, grouped by the kernel that ran them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from moesim.calibrate.frame import Frame
from moesim.calibrate.hygiene import HygieneReport, clean
from moesim.calibrate.metrics import LARGE, SMALL
from moesim.calibrate.operators import OPERATORS, read_operator
from moesim.calibrate.tables import PACKAGE, open_catalogue
from moesim.errors import InputError
from moesim.hardware import load_device
from moesim.operators.processor import Processor

__all__ = [
    "KERNEL",
    "MeasuredRows",
    "kernel_groups",
    "kernel_name",
    "load_rows",
    "matching_rows",
    "processor_of",
    "regimes",
]

KERNEL = ("system", "engine", "version", "kernel", "dtype")
"""What tells kernels apart in every operator."""
PROFILES = {"b60": "arc_b60"}
"""Systems of the tables whose device profile has another name."""
SUBSTITUTES = {"fp4": "fp8", "fp8": "bf16"}
"""Where a device has no peak for a format, its kernels convert to the next wider one."""


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


def matching_rows(frame: Frame, values: dict[str, str | int]) -> np.ndarray:
    """Row numbers where the columns have these values; text is compared by label."""
    found = np.ones(len(frame), bool)
    for name, value in values.items():
        if name in frame.labels:
            found &= frame.is_label(name, str(value))
        else:
            found &= frame[name] == value
    return np.flatnonzero(found)


@lru_cache
def processor_of(system: str, arithmetic: str) -> Processor:
    """Peaks of a measured system out of its device profile.

    Raises:
        InputError: If the profile has neither a peak for the format nor for a wider one, or does
            not say how many cores there are.
    """
    device = load_device(PROFILES.get(system, system))
    if device.cores is None:
        raise InputError("the profile does not say how many cores it has", field="cores")
    while True:
        try:
            peak = device.peak_flop_per_s(arithmetic)
            break
        except InputError:
            if arithmetic not in SUBSTITUTES:
                raise
            arithmetic = SUBSTITUTES[arithmetic]
    return Processor(
        peak_flop_per_s=peak,
        memory_bytes_per_s=device.memory_bytes_per_s,
        cores=device.cores.value,
    )
