"""Expert layers of a measurements file as arrays: a frame for splitting, layers for physics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moesim.calibrate.frame import Frame
from moesim.calibrate.measurements import Measurements, Point
from moesim.errors import InputError
from moesim.operators.cpu_experts import ExpertShape

__all__ = ["OPERATOR", "Layers", "expert_frame", "layers_of"]

OPERATOR = "cpu_experts"


@dataclass(frozen=True)
class Layers:
    """Expert layers as arrays.

    Attributes:
        rows: [N, A] rows of each active expert, 0 where there is none.
        hidden: [N].
        inter: [N].
        in_cache: [N] bool.
        dtype: Their number type.
    """

    rows: np.ndarray
    hidden: np.ndarray
    inter: np.ndarray
    in_cache: np.ndarray
    dtype: str

    @property
    def shape(self) -> ExpertShape:
        """Widths and number type."""
        return ExpertShape(self.hidden, self.inter, dtype=self.dtype)

    @property
    def flops(self) -> np.ndarray:
        """[N] arithmetic of a layer."""
        return self.rows.sum(1) * self.shape.row_flops

    @property
    def moved_bytes(self) -> np.ndarray:
        """[N] weights of active experts, and activations."""
        active = (self.rows > 0).sum(1)
        return active * self.shape.weight_bytes + self.rows.sum(1) * self.shape.row_bytes

    def take(self, chosen: np.ndarray) -> Layers:
        """Some of them."""
        return Layers(
            self.rows[chosen],
            self.hidden[chosen],
            self.inter[chosen],
            self.in_cache[chosen],
            self.dtype,
        )


def expert_frame(measurements: Measurements, *, noisy: bool = False) -> Frame:
    """Points of expert layers as columns, those set aside as noisy only if asked for.

    ``load`` is the text of the rows of each expert (``8,4,2``), ``latency_s`` the median of the
    samples; the other columns are those of the tables of measured kernels.

    Raises:
        InputError: If no usable point is left.
    """
    points = [
        point
        for point in measurements.points
        if point.workload.kind == "experts" and (noisy or point.noisy is None)
    ]
    if not points:
        raise InputError(
            "no usable measurement of an expert layer",
            field="points",
            found=f"{len(measurements.points)} points",
            allowed="points of the kind experts that no rule sets aside",
            fix="measure again with more --minutes, or on a quieter machine",
        )
    texts: dict[str, list[str]] = {
        "system": [measurements.system] * len(points),
        "engine": [measurements.engine] * len(points),
        "version": [measurements.version] * len(points),
        "device": [measurements.environment.processor] * len(points),
        "kernel": [measurements.kernel] * len(points),
        "dtype": [point.workload.dtype for point in points],
        "residency": [point.workload.residency for point in points],
        "load": [",".join(map(str, point.workload.expert_rows)) for point in points],
    }
    columns, labels = _coded(texts)
    columns |= _numbers(points)
    set_aside = sum(1 for point in measurements.points if point.noisy is not None)
    notes = (*measurements.notes, f"{set_aside} noisy points of {len(measurements.points)}")
    return Frame(OPERATOR, columns, labels, notes)


def layers_of(table: Frame, dtype: str) -> Layers:
    """Rows of a frame, all of one number type, as layers."""
    loads = [[int(rows) for rows in label.split(",")] for label in table.labels["load"]]
    codes = table["load"]
    padded = np.zeros((len(loads), max((len(load) for load in loads), default=1)))
    for place, load in enumerate(loads):
        padded[place, : len(load)] = load
    return Layers(
        padded[codes],
        table["hidden"],
        table["inter"],
        table.is_label("residency", "cache"),
        dtype,
    )


def _coded(
    texts: Mapping[str, list[str]],
) -> tuple[dict[str, np.ndarray], dict[str, tuple[str, ...]]]:
    """Columns of codes, and the label of every code in order of appearance."""
    columns: dict[str, np.ndarray] = {}
    labels: dict[str, tuple[str, ...]] = {}
    for name, values in texts.items():
        codes = {label: code for code, label in enumerate(dict.fromkeys(values))}
        columns[name] = np.array([codes[value] for value in values], np.int32)
        labels[name] = tuple(codes)
    return columns, labels


def _numbers(points: Sequence[Point]) -> dict[str, np.ndarray]:
    unknown = np.full(len(points), np.nan)
    return {
        "hidden": np.array([p.workload.hidden for p in points], np.int64),
        "inter": np.array([p.workload.inter for p in points], np.int64),
        "experts": np.array([len(p.workload.expert_rows) for p in points], np.int64),
        "tokens": np.array([sum(p.workload.expert_rows) for p in points], np.int64),
        "latency_s": np.array([p.time_s for p in points], np.float64),
        "power_w": unknown,
        "power_limit_w": unknown.copy(),
    }
