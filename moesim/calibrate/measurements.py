"""The file that a measurement on this machine leaves: what was timed, where, and how noisy it was.

Each point is one workload, with one sample per round: the least of a few repeats in a row. Rounds
visit all points, so that a machine that slows down for a while slows all of them alike. The time of
a point is the median of its samples over the rounds that count.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from moesim.errors import InputError
from moesim.operators.cpu_experts import Residency
from moesim.safe_io import read_json
from moesim.schema import Document

__all__ = [
    "NOISY_SPREAD",
    "SLOW_ROUND",
    "Environment",
    "Measurements",
    "Point",
    "Workload",
    "finish",
    "is_measurements_file",
]

NOISY_SPREAD = 0.25
"""Rule ``spread``: a point whose interquartile range exceeds this share of its median is noisy."""

SLOW_ROUND = 1.25
"""Rule ``slow-round``: a round whose median slowdown against the points' medians exceeds this."""

FEWEST_ROUNDS = 3
"""Rule ``few-rounds``: a point with fewer samples has no spread that could be judged."""

Kind = Literal["experts", "read", "copy", "host-to-device", "device-to-host"]
Seconds = Annotated[float, Field(gt=0)]


class Workload(Document):
    """What one point times; an expert layer, or the reading or copying of some bytes."""

    kind: Kind
    dtype: str = "bytes"
    hidden: int = Field(default=0, ge=0)
    inter: int = Field(default=0, ge=0)
    expert_rows: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Rows of each active expert."""
    residency: Residency = "memory"
    moved_bytes: int = Field(default=0, ge=0)
    """Bytes read, or copied once, where the kind is not ``experts``."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kind == "experts" and not (self.hidden and self.inter and self.expert_rows):
            raise InputError(
                "an expert layer needs its widths and rows",
                field="expert_rows",
                found=f"hidden {self.hidden}, inter {self.inter}, {len(self.expert_rows)} experts",
                allowed="hidden, inter and the rows of at least one expert",
                fix="measure again",
            )
        if self.kind != "experts" and not self.moved_bytes:
            raise InputError(
                "a bandwidth needs the bytes that were moved",
                field="moved_bytes",
                found=self.moved_bytes,
                allowed="> 0",
                fix="measure again",
            )
        return self


class Point(Document):
    """One workload with its samples."""

    workload: Workload
    samples_s: tuple[Seconds, ...] = Field(min_length=1)
    """One per round, in their order."""
    time_s: Seconds
    """Median of the samples of rounds that count."""
    iqr_s: float = Field(ge=0)
    """Their interquartile range."""
    noisy: Literal["spread", "few-rounds"] | None = None
    """The rule by which the point is set aside."""


class Environment(Document):
    """The machine, the programs and how busy it was."""

    processor: str
    processors_usable: int = Field(ge=1)
    threads: int = Field(ge=1)
    clock: Literal["wall", "thread-cpu", "cuda-event"]
    cache_bytes: int | None = None
    """Last-level cache; None if the system does not tell."""
    memory_bytes: int | None = None
    weight_pool_bytes: int = Field(ge=0)
    """Weights are taken from a pool of this size in turn, so that they come from memory."""
    clock_mhz: tuple[float, ...] = ()
    """Of the processors at the start, where the system tells."""
    frequency_governor: str | None = None
    load_average: tuple[float, ...] = ()
    """1-minute load at the start, and at the end."""
    cpu_pressure_percent: tuple[float, ...] = ()
    """Time in which some task waited for a processor (PSI avg10), at the start and at the end."""
    versions: dict[str, str] = Field(default_factory=dict)
    variables: dict[str, str] = Field(default_factory=dict)
    """Environment variables that steer the matrix library."""


class Measurements(Document):
    """All points of one run."""

    schema_id: ClassVar[str] = "moesim.measurements/1"

    system: str = Field(pattern=r"^[a-z0-9][a-z0-9_]*$", max_length=64)
    """Name of the machine, as a profile would be called."""
    device: Literal["cpu", "cuda"]
    engine: str
    version: str
    kernel: str
    date: str
    command: str
    seed: int
    planned: int = Field(ge=1)
    """Points of the plan; what did not fit into the time is missing below."""
    rounds: int = Field(ge=0)
    """Rounds that visited all points."""
    slow_rounds: tuple[int, ...] = ()
    """Rounds set aside by the rule ``slow-round``."""
    interrupted: bool = False
    environment: Environment
    notes: tuple[str, ...] = ()
    points: tuple[Point, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for place, point in enumerate(self.points):
            time_s, iqr_s = _summary(point.samples_s, self.slow_rounds)
            if not np.allclose([point.time_s, point.iqr_s], [time_s, iqr_s], rtol=1e-6, atol=1e-12):
                raise InputError(
                    "the time is not the median of the samples",
                    field=f"points[{place}].time_s",
                    found=f"{point.time_s:g} (interquartile range {point.iqr_s:g})",
                    allowed=f"{time_s:g} (interquartile range {iqr_s:g})",
                    fix="measure again, or restore the file",
                )
        return self

    def bandwidth_bytes_per_s(self, kind: Kind) -> float | None:
        """Best measured rate of a kind (a copy counts its bytes once), None if none was measured.

        Noisy points count too: a rate that was seen is a rate that the memory can give.
        """
        rates = [p.workload.moved_bytes / p.time_s for p in self.points if p.workload.kind == kind]
        return max(rates, default=None)


def finish(
    workloads: Sequence[Workload], samples_s: Sequence[Sequence[float]]
) -> tuple[tuple[Point, ...], tuple[int, ...]]:
    """Points from their samples, and the rounds that do not count.

    Args:
        workloads: [P] what was timed.
        samples_s: [P] samples of each, one per round; points without any are left out.

    Returns:
        The points, and the rounds set aside by the rule ``slow-round``.
    """
    kept = [place for place, values in enumerate(samples_s) if len(values)]
    slow = _slow_rounds([samples_s[place] for place in kept])
    points = []
    for place in kept:
        samples = tuple(float(value) for value in samples_s[place])
        time_s, iqr_s = _summary(samples, slow)
        counted = sum(1 for round_ in range(len(samples)) if round_ not in slow)
        noisy: Literal["spread", "few-rounds"] | None = None
        if counted < FEWEST_ROUNDS:
            noisy = "few-rounds"
        elif iqr_s > NOISY_SPREAD * time_s:
            noisy = "spread"
        points.append(
            Point(
                workload=workloads[place],
                samples_s=samples,
                time_s=time_s,
                iqr_s=iqr_s,
                noisy=noisy,
            )
        )
    return tuple(points), slow


def is_measurements_file(path: str | Path) -> bool:
    """Whether a file says that it holds measurements made by ``calibrate measure``."""
    path = Path(path)
    if path.suffix != ".json" or not path.is_file():
        return False
    data = read_json(path)
    return isinstance(data, dict) and data.get("schema") == Measurements.schema_id


def _summary(samples_s: Sequence[float], slow: Sequence[int]) -> tuple[float, float]:
    counted = [value for place, value in enumerate(samples_s) if place not in slow]
    low, middle, high = np.quantile(counted or samples_s, (0.25, 0.5, 0.75))
    return float(middle), float(high - low)


def _slow_rounds(samples_s: Sequence[Sequence[float]]) -> tuple[int, ...]:
    """Rounds in which most points were slow, never more than half of them."""
    rounds = min((len(values) for values in samples_s), default=0)
    if rounds < FEWEST_ROUNDS:
        return ()
    times = np.array([values[:rounds] for values in samples_s])
    slowdown = np.median(times / np.median(times, axis=1, keepdims=True), axis=0)
    slow = np.flatnonzero(slowdown > SLOW_ROUND)
    worst_first = slow[np.argsort(-slowdown[slow], kind="stable")]
    return tuple(sorted(int(round_) for round_ in worst_first[: rounds // 2]))
