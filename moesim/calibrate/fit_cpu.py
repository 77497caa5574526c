"""Expert layers on a measured CPU: reading measurements, fitting, predicting, scoring.

The fit minimises a robust loss (soft L1 beyond 10 %) of log time over the few coefficients of
:mod:`moesim.operators.cpu_experts`, once for every candidate of ``few_rows``. It is deterministic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moesim.calibrate.frame import Frame, dense_groups
from moesim.calibrate.measurements import Measurements, Point
from moesim.errors import InputError, UsageError
from moesim.extras import require
from moesim.operators.cpu_experts import (
    CpuExpertCoefficients,
    CpuExpertFit,
    CpuExpertProfile,
    ExpertShape,
    cpu_experts_s,
)

__all__ = [
    "CPU_EXPERTS",
    "CpuExperts",
    "FittedRoofline",
    "Layers",
    "fit_profile",
    "fit_roofline",
    "robust_log_fit",
]

FEWEST_POINTS = 12
"""Points of a number type below which nothing is fitted: there are ten coefficients."""

INTERVAL = (0.1, 0.9)
INTERVAL_FOLDS = 4

FEW_ROWS = (0, 1, 2, 3, 4, 6, 8, 10, 12, 16, 24, 32)
"""Candidates for the most rows that run without packing."""
FEW_ROWS_GAIN = 0.02
"""A larger candidate has to lower the loss by this share, or the smaller one stays."""

ROBUST_SCALE = 0.1
"""Errors of log time beyond this count linearly."""

# name: (start, low, high); the bounds are what a CPU can be, from one core to two sockets.
BOUNDS: dict[str, tuple[float, float, float]] = {
    "call_s": (2e-6, 1e-8, 1e-3),
    "expert_s": (2e-5, 1e-7, 1e-3),
    "memory_bytes_per_s": (1e10, 5e8, 2e12),
    "cache_bytes_per_s": (2e10, 1e9, 2e13),
    "few_rows_flop_per_s": (3e10, 1e9, 2e14),
    "flop_per_s": (1e11, 1e9, 2e14),
    "pack_bytes_per_s": (2e10, 5e8, 1e13),
    "activation_bytes_per_s": (1e10, 2e8, 1e13),
    "overlap_exponent": (1.3, 1.001, 10.0),
}
ROOFLINE_BOUNDS = {
    "flop_per_s": (1e11, 1e9, 2e14),
    "memory_bytes_per_s": (1e10, 5e8, 2e12),
    "call_s": (1e-5, 1e-8, 1e-2),
}
BOUND_MARGIN = 1e-3
"""A coefficient within this distance of a bound, in log, counts as on it."""


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


@dataclass(frozen=True)
class FittedRoofline:
    """The textbook roofline with fitted rates: ``max(F / P, B / W) + o`` (Williams et al. 2009)."""

    flop_per_s: float
    memory_bytes_per_s: float
    call_s: float = 0.0

    def seconds(self, layers: Layers) -> np.ndarray:
        """[N] seconds."""
        arithmetic_s = layers.flops / self.flop_per_s
        return np.maximum(arithmetic_s, layers.moved_bytes / self.memory_bytes_per_s) + self.call_s


class CpuExperts:
    """The operator as the calibration sees it: load, split, fit, predict."""

    name = "cpu_experts"

    def load(
        self,
        source: str | Path,
        systems: Sequence[str] | None = None,
        versions: str | Sequence[str] = "newest",
        *,
        noisy: bool = False,
    ) -> Frame:
        """Points of a measurements file; those set aside as noisy only if asked for.

        Raises:
            InputError: If the file is none, or nothing in it is left.
        """
        frame = self.frame(Measurements.load(source), noisy=noisy)
        if systems is not None and frame.labels["system"][0] not in systems:
            raise UsageError(
                f"{source} holds measurements of {frame.labels['system'][0]}\n"
                f"fix: leave out the systems, or name that one"
            )
        if versions not in ("newest", "all") and frame.labels["version"][0] not in versions:
            raise UsageError(
                f"{source} holds version {frame.labels['version'][0]}\nfix: leave out the versions"
            )
        return frame

    def frame(self, measurements: Measurements, *, noisy: bool = False) -> Frame:
        """Points of expert layers as columns.

        ``load`` is the text of the rows of each expert (``8,4,2``), ``latency_s`` the median.
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
        texts = {
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
        set_aside = sum(1 for p in measurements.points if p.noisy is not None)
        notes = (*measurements.notes, f"{set_aside} noisy points of {len(measurements.points)}")
        return Frame(self.name, columns, labels, notes)

    def shape_key(self, table: Frame) -> np.ndarray:
        """[rows] code of (hidden, inter): what leave-shape-out holds out together."""
        return dense_groups([table["hidden"], table["inter"]], len(table))

    def fit(self, table: Frame, rows: np.ndarray) -> dict[str, CpuExpertFit]:
        """Fit every number type on some rows; types with too few of them are left out.

        Args:
            table: Of :meth:`load`.
            rows: [rows] bool.
        """
        fits = {}
        for dtype in table.labels["dtype"]:
            chosen = table.is_label("dtype", dtype) & rows
            if chosen.sum() >= FEWEST_POINTS:
                fits[dtype] = self._fit_dtype(table.take(chosen), dtype)
        return fits

    def _fit_dtype(self, table: Frame, dtype: str) -> CpuExpertFit:
        layers, measured_s = _layers(table, dtype), table["latency_s"]
        coefficients, at_bound = _fit_layers(layers, measured_s)
        low, high = _interval(layers, measured_s, self.shape_key(table), coefficients)
        row = table.describe(0)
        return CpuExpertFit(
            system=str(row["system"]),
            engine=str(row["engine"]),
            version=str(row["version"]),
            kernel=str(row["kernel"]),
            rows=len(table),
            at_bound=at_bound,
            ratio_low=low,
            ratio_high=high,
            coefficients=coefficients,
        )

    def predict(self, table: Frame, coefficients: Mapping[str, CpuExpertFit]) -> np.ndarray:
        """[rows] seconds; NaN where the number type or the residency was not fitted."""
        seconds = np.full(len(table), np.nan)
        for dtype, fit in coefficients.items():
            chosen = table.is_label("dtype", dtype)
            layers = _layers(table.take(chosen), dtype)
            seconds[chosen] = _seconds(fit.coefficients, layers)
        return seconds

    def interval(
        self, table: Frame, coefficients: Mapping[str, CpuExpertFit]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper ends of the 80 % intervals, each [rows] seconds."""
        seconds = self.predict(table, coefficients)
        low, high = seconds.copy(), seconds.copy()
        for dtype, fit in coefficients.items():
            chosen = table.is_label("dtype", dtype)
            low[chosen] *= fit.ratio_low
            high[chosen] *= fit.ratio_high
        return low, high

    def roofline(self, table: Frame, rows: np.ndarray) -> np.ndarray:
        """[rows] seconds of the textbook roofline, its rates fitted on some rows per type."""
        seconds = np.full(len(table), np.nan)
        for dtype in table.labels["dtype"]:
            chosen = table.is_label("dtype", dtype)
            layers, fit_rows = _layers(table.take(chosen), dtype), rows[chosen]
            if fit_rows.sum() >= FEWEST_POINTS:
                model = fit_roofline(layers.take(fit_rows), table["latency_s"][chosen][fit_rows])
                seconds[chosen] = model.seconds(layers)
        return seconds

    def regimes(self, table: Frame) -> dict[str, np.ndarray]:
        """[rows] code of each row by what may matter for the error.

        ``rows``: 0 up to 4 rows per expert (decode), 1 up to 32, 2 beyond.
        """
        per_expert = table["tokens"] / table["experts"]
        return {
            "rows<=4 | <=32 | >32": np.digitize(per_expert, (4, 32), right=True),
            "dtype": table["dtype"],
            "residency": table["residency"],
        }


CPU_EXPERTS = CpuExperts()


def fit_profile(measurements: Measurements) -> CpuExpertProfile:
    """All points of a run fitted, as the document that simulations read.

    Raises:
        InputError: If no number type has enough points.
    """
    table = CPU_EXPERTS.frame(measurements)
    fits = CPU_EXPERTS.fit(table, np.ones(len(table), bool))
    if not fits:
        raise InputError(
            "too few points to fit anything",
            field="points",
            found=len(table),
            allowed=f"at least {FEWEST_POINTS} of one number type",
            fix="measure again with more --minutes",
        )
    environment = measurements.environment
    return CpuExpertProfile(
        system=measurements.system,
        processor=environment.processor,
        threads=environment.threads,
        clock=environment.clock,
        read_bytes_per_s=measurements.bandwidth_bytes_per_s("read"),
        copy_bytes_per_s=measurements.bandwidth_bytes_per_s("copy"),
        fits=tuple(fits.values()),
        versions=environment.versions,
        load_average=environment.load_average,
        date=measurements.date,
        command=measurements.command,
        notes=measurements.notes,
    )


def fit_roofline(layers: Layers, measured_s: np.ndarray) -> FittedRoofline:
    """Rates of the textbook roofline by the same loss as ours."""
    values, _, _ = robust_log_fit(
        lambda x: FittedRoofline(**x).seconds(layers), measured_s, ROOFLINE_BOUNDS
    )
    return FittedRoofline(**values)


def robust_log_fit(
    seconds: Callable[[dict[str, float]], np.ndarray],
    measured_s: np.ndarray,
    bounds: Mapping[str, tuple[float, float, float]],
) -> tuple[dict[str, float], float, tuple[str, ...]]:
    """Coefficients that minimise the soft L1 loss of log time.

    Args:
        seconds: Coefficients by name to [N] seconds.
        measured_s: [N] seconds.
        bounds: Start, low and high of each coefficient, all above 0.

    Returns:
        The coefficients, the loss, and the names of those that ended on a bound.
    """
    optimize = require("scipy.optimize", "measured", "fitting")
    names = list(bounds)
    start, low, high = np.log(np.array([bounds[name] for name in names])).T
    log_measured = np.log(measured_s)

    def residuals(x: np.ndarray) -> np.ndarray:
        values = dict(zip(names, np.exp(x).tolist(), strict=True))
        return np.log(seconds(values)) - log_measured

    found: Any = optimize.least_squares(
        residuals, start, bounds=(low, high), loss="soft_l1", f_scale=ROBUST_SCALE
    )
    on_bound = (found.x - low < BOUND_MARGIN) | (high - found.x < BOUND_MARGIN)
    at_bound = tuple(name for name, on in zip(names, on_bound, strict=True) if on)
    values = dict(zip(names, np.exp(found.x).tolist(), strict=True))
    return values, float(found.cost), at_bound


def _fit_layers(
    layers: Layers, measured_s: np.ndarray, candidates: Sequence[int] = FEW_ROWS
) -> tuple[CpuExpertCoefficients, tuple[str, ...]]:
    best: tuple[CpuExpertCoefficients, tuple[str, ...]] | None = None
    best_loss = np.inf
    some_cached = bool(layers.in_cache.any())
    for few_rows in candidates:
        bounds = dict(BOUNDS)
        if not some_cached:
            del bounds["cache_bytes_per_s"]
        if few_rows == 0:
            del bounds["few_rows_flop_per_s"]
        elif not _both_sides(layers.rows, few_rows):
            continue

        def made(values: dict[str, float], few_rows: int = few_rows) -> CpuExpertCoefficients:
            whole = {"cache_bytes_per_s": None, "few_rows_flop_per_s": values["flop_per_s"]}
            return CpuExpertCoefficients.model_validate(
                whole | values | {"dtype": layers.dtype, "few_rows": few_rows}
            )

        values, loss, at_bound = robust_log_fit(
            lambda x, made=made: _seconds(made(x), layers),  # type: ignore[misc]
            measured_s,
            bounds,
        )
        if best is None or loss < best_loss * (1 - FEW_ROWS_GAIN):
            best, best_loss = (made(values), at_bound), loss
    if best is None:
        raise InputError("no candidate for few_rows", field="few_rows", found=list(candidates))
    return best


def _both_sides(rows: np.ndarray, few_rows: int) -> bool:
    """Whether three layers at least lie on either side, so that both kernels are seen."""
    most = rows.max(1)
    least = np.where(rows > 0, rows, np.inf).min(1)
    return bool((most <= few_rows).sum() >= 3 and (least > few_rows).sum() >= 3)


def _interval(
    layers: Layers, measured_s: np.ndarray, shapes: np.ndarray, fitted: CpuExpertCoefficients
) -> tuple[float, float]:
    """Quantiles of measured over predicted on shapes that a fit has not seen.

    Shapes are dealt into folds in the order of their widths; ``few_rows`` stays as it was chosen.
    """
    ratios = []
    folds = min(INTERVAL_FOLDS, int(shapes.max()) + 1)
    for fold in range(folds):
        test = shapes % folds == fold
        fit = ~test
        if folds == 1 or fit.sum() < FEWEST_POINTS:
            test = fit = np.ones(len(shapes), bool)  # nothing to hold out
        coefficients, _ = _fit_layers(layers.take(fit), measured_s[fit], (fitted.few_rows, 0))
        ratios.append(measured_s[test] / _seconds(coefficients, layers.take(test)))
    every = np.concatenate(ratios)
    low, high = np.quantile(every[np.isfinite(every)], INTERVAL)
    return float(low), float(high)


def _seconds(coefficients: CpuExpertCoefficients, layers: Layers) -> np.ndarray:
    return cpu_experts_s(coefficients, layers.rows, layers.shape, layers.in_cache).total_s


def _layers(table: Frame, dtype: str) -> Layers:
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


def _coded(texts: Mapping[str, list[str]]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Columns of codes, and the label of every code in order of appearance."""
    columns: dict[str, np.ndarray] = {}
    labels: dict[str, Any] = {}
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
