"""Expert layers on a measured CPU: reading measurements, fitting, predicting, scoring.

The fit minimises a robust loss (soft L1 beyond 10 %) of log time over the few coefficients of
:mod:`moesim.operators.cpu_experts`, once for every candidate of ``few_rows``. It is deterministic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moesim.calibrate.cpu_layers import OPERATOR, Layers, expert_frame, layers_of
from moesim.calibrate.frame import Frame, dense_groups
from moesim.calibrate.measurements import Measurements
from moesim.calibrate.robust_fit import robust_log_fit
from moesim.errors import InputError, UsageError
from moesim.operators.cpu_experts import (
    CpuExpertCoefficients,
    CpuExpertFit,
    CpuExpertProfile,
    cpu_experts_s,
)

__all__ = [
    "CPU_EXPERTS",
    "CpuExperts",
    "FittedRoofline",
    "fit_profile",
    "fit_roofline",
]

FEWEST_POINTS = 12
"""Points of a number type below which nothing is fitted: there are ten coefficients."""

INTERVAL = (0.1, 0.9)
INTERVAL_FOLDS = 4

FEW_ROWS = (0, 1, 2, 3, 4, 6, 8, 10, 12, 16, 24, 32)
"""Candidates for the most rows that run without packing."""
FEW_ROWS_GAIN = 0.02
"""A larger candidate has to lower the loss by this share, or the smaller one stays."""

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

    name = OPERATOR

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
        frame = expert_frame(Measurements.load(source), noisy=noisy)
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
        layers, measured_s = layers_of(table, dtype), table["latency_s"]
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
            layers = layers_of(table.take(chosen), dtype)
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
            layers, fit_rows = layers_of(table.take(chosen), dtype), rows[chosen]
            if fit_rows.sum() >= FEWEST_POINTS:
                model = fit_roofline(layers.take(fit_rows), table["latency_s"][chosen][fit_rows])
                seconds[chosen] = model.seconds(layers)
        return seconds

    def regimes(self, table: Frame) -> dict[str, np.ndarray]:
        """Rows of each regime, ``[rows] bool`` by name: number type, rows per expert, residency."""
        rows = table["tokens"] / table["experts"]
        found = {
            "rows<=4": rows <= 4,
            "4<rows<=32": (rows > 4) & (rows <= 32),
            "rows>32": rows > 32,
        }
        for name in ("dtype", "residency"):
            found |= {f"{name}={x}": table.is_label(name, x) for x in table.labels[name]}
        return {name: mask for name, mask in found.items() if mask.any()}


CPU_EXPERTS = CpuExperts()


def fit_profile(measurements: Measurements) -> CpuExpertProfile:
    """All points of a run fitted, as the document that simulations read.

    Raises:
        InputError: If no number type has enough points.
    """
    table = expert_frame(measurements)
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
