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
from moesim.calibrate.frame import Frame
from moesim.calibrate.measurements import Measurements
from moesim.calibrate.robust_fit import coefficients_of, fit_log
from moesim.errors import InputError, UsageError
from moesim.operators.cpu_experts import (
    CpuExpertCoefficients,
    CpuExpertFit,
    cpu_experts_s,
)

__all__ = [
    "CPU_EXPERTS",
    "CpuExperts",
    "CpuTable",
    "FittedRoofline",
    "fit_layers",
    "fit_roofline",
]

FEWEST_POINTS = 16
"""Points of a number type below which nothing is fitted: there are ten coefficients."""

FEWEST_CACHED = 6
"""Points with weights in the cache below which its bandwidth is not fitted."""

FEW_TO_MANY = (4, 32)
"""Rows per expert that divide the regimes: decode up to 4, small batches, prefill beyond 32."""

FEW_ROWS = (0, 1, 2, 3, 4, 6, 8, 10, 12, 16, 24, 32)
"""Candidates for the most rows that run without packing."""
FEW_ROWS_GAIN = 0.1
"""A second kernel has to lower the loss by this share: it adds three coefficients."""

VISIBLE_CHANGE = 0.01
"""Least change of any layer's time, as a share, that shows a coefficient to matter."""

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
STEPS = 200
"""Steps of a search at most: points are few, and a step takes milliseconds."""
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


@dataclass(frozen=True)
class CpuTable:
    """Measured expert layers; the rules for noise were applied when they were measured."""

    frame: Frame
    report: None = None


class CpuExperts:
    """The operator as the calibration sees it: load, split, fit, predict."""

    name = OPERATOR

    def load(
        self,
        source: str | Path,
        systems: Sequence[str] | None = None,
        versions: str | Sequence[str] = "newest",
        engines: Sequence[str] | None = None,
    ) -> CpuTable:
        """Points of a measurements file that no rule sets aside.

        Raises:
            InputError: If the file is none, is of a GPU, or nothing in it is left.
            UsageError: If it holds none of the systems, versions or engines.
        """
        measurements = Measurements.load(source)
        if measurements.device != "cpu":
            raise InputError(
                "measurements of a GPU",
                file=source,
                field="device",
                found=measurements.device,
                allowed="cpu",
                fix="fit another operator, or measure with --device cpu",
            )
        for what, own, wanted in (
            ("system", measurements.system, systems),
            ("engine", measurements.engine, engines),
            ("version", measurements.version, None if versions in ("newest", "all") else versions),
        ):
            if wanted is not None and own not in ([wanted] if isinstance(wanted, str) else wanted):
                raise UsageError(
                    f"{source} holds measurements of the {what} {own}\nfix: leave out --{what}s"
                )
        try:
            return CpuTable(expert_frame(measurements))
        except InputError as error:
            raise error.within(source) from None

    def shape_key(self, table: CpuTable) -> np.ndarray:
        """[rows] code of (hidden, inter): what leave-shape-out holds out together."""
        return table.frame.groups(["hidden", "inter"])

    def fit(self, table: CpuTable, rows: np.ndarray) -> dict[str, CpuExpertFit]:
        """Fit every number type on some rows; types with too few of them are left out.

        Args:
            table: Of :meth:`load`.
            rows: [rows] bool.
        """
        fits = {}
        for dtype in table.frame.labels["dtype"]:
            chosen = table.frame.is_label("dtype", dtype) & rows
            if chosen.sum() >= FEWEST_POINTS:
                fits[dtype] = _fit_frame(table.frame.take(chosen), dtype)
        return fits

    def predict(self, table: CpuTable, coefficients: Mapping[str, CpuExpertFit]) -> np.ndarray:
        """[rows] seconds; NaN where the number type or the residency was not fitted."""
        seconds = np.full(len(table.frame), np.nan)
        for dtype, fit in coefficients.items():
            chosen = table.frame.is_label("dtype", dtype)
            layers = layers_of(table.frame.take(chosen), dtype)
            seconds[chosen] = _seconds(fit.coefficients, layers)
        return seconds

    def regimes(self, table: CpuTable) -> dict[str, np.ndarray]:
        """[rows] codes along which errors differ, the finest division first."""
        frame = table.frame
        rows = np.digitize(frame["tokens"] / frame["experts"], FEW_TO_MANY, right=True)
        dtype = frame["dtype"].astype(np.int64)
        return {"dtype, rows per expert": dtype * 3 + rows, "dtype": dtype}


CPU_EXPERTS = CpuExperts()


def fit_roofline(layers: Layers, measured_s: np.ndarray) -> FittedRoofline:
    """Rates of the textbook roofline by the same loss as ours."""
    found = fit_log(
        lambda x: FittedRoofline(**x).seconds(layers),
        measured_s,
        coefficients_of(ROOFLINE_BOUNDS),
        evaluations=STEPS,
    )
    return FittedRoofline(**found.values)


def _fit_frame(frame: Frame, dtype: str) -> CpuExpertFit:
    layers = layers_of(frame, dtype)
    coefficients, at_bound = fit_layers(layers, frame["latency_s"])
    row = frame.describe(0)
    return CpuExpertFit(
        system=str(row["system"]),
        engine=str(row["engine"]),
        version=str(row["version"]),
        kernel=str(row["kernel"]),
        rows=len(frame),
        at_bound=at_bound,
        undetermined=_undetermined(coefficients, layers),
        coefficients=coefficients,
    )


def _undetermined(coefficients: CpuExpertCoefficients, layers: Layers) -> tuple[str, ...]:
    """Coefficients of which neither twice nor half makes a visible difference to any layer."""
    fitted_s = _seconds(coefficients, layers)
    covered = np.isfinite(fitted_s)
    unused = {"overlap_exponent"}  # a shape, not a rate: at_bound speaks of it
    if coefficients.few_rows == 0:
        unused.add("few_rows_flop_per_s")
    names = []
    for name in sorted(BOUNDS.keys() - unused):
        value = getattr(coefficients, name)
        if value is None:
            continue
        changes = []
        for factor in (0.5, 2.0):
            changed = coefficients.model_copy(update={name: value * factor})
            ratio = _seconds(changed, layers)[covered] / fitted_s[covered]
            changes.append(float(np.abs(ratio - 1).max()))
        if max(changes) < VISIBLE_CHANGE:
            names.append(name)
    return tuple(names)


def fit_layers(
    layers: Layers, measured_s: np.ndarray
) -> tuple[CpuExpertCoefficients, tuple[str, ...]]:
    """Coefficients that fit measured layers best, and those that ended on a bound.

    Args:
        layers: All of one number type.
        measured_s: [N] seconds.

    Raises:
        InputError: If no candidate can be fitted.
    """
    best: tuple[CpuExpertCoefficients, tuple[str, ...]] | None = None
    best_loss = np.inf
    some_cached = int(layers.in_cache.sum()) >= FEWEST_CACHED
    if not some_cached:
        layers, measured_s = layers.take(~layers.in_cache), measured_s[~layers.in_cache]
    found: dict[str, float] = {}
    for few_rows in FEW_ROWS:
        # Each candidate starts where the one before it ended.
        bounds = {n: (found.get(n, start), low, high) for n, (start, low, high) in BOUNDS.items()}
        if not some_cached:
            del bounds["cache_bytes_per_s"]
        if few_rows == 0:
            del bounds["few_rows_flop_per_s"], bounds["pack_bytes_per_s"]
        elif not _both_sides(layers.rows, few_rows):
            continue

        def made(values: dict[str, float], few_rows: int = few_rows) -> CpuExpertCoefficients:
            whole = {"cache_bytes_per_s": None, "few_rows_flop_per_s": values["flop_per_s"]}
            return CpuExpertCoefficients.model_validate(
                whole | values | {"dtype": layers.dtype, "few_rows": few_rows}
            )

        fitted = fit_log(
            lambda x, made=made: _seconds(made(dict(x)), layers),  # type: ignore[misc]
            measured_s,
            coefficients_of(bounds),
            evaluations=STEPS,
        )
        found |= fitted.values
        if fitted.loss < best_loss:
            best = (made(fitted.values), fitted.at_bound)
            best_loss = fitted.loss * (1 - FEW_ROWS_GAIN) if few_rows == 0 else fitted.loss
    if best is None:
        raise InputError("nothing could be fitted", field="points", found=len(measured_s))
    return best


def _both_sides(rows: np.ndarray, few_rows: int) -> bool:
    """Whether three layers at least lie on either side, so that both kernels are seen."""
    most = rows.max(1)
    least = np.where(rows > 0, rows, np.inf).min(1)
    return bool((most <= few_rows).sum() >= 3 and (least > few_rows).sum() >= 3)


def _seconds(coefficients: CpuExpertCoefficients, layers: Layers) -> np.ndarray:
    return cpu_experts_s(coefficients, layers.rows, layers.shape, layers.in_cache).total_s
