"""How well a fit predicts shapes that it has not seen, beside the textbook roofline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from moesim.calibrate.cpu_layers import expert_frame, layers_of
from moesim.calibrate.fit_cpu import (
    CPU_EXPERTS,
    FEW_TO_MANY,
    FEWEST_POINTS,
    CpuTable,
    fit_roofline,
)
from moesim.calibrate.frame import Frame
from moesim.calibrate.measurements import Measurements
from moesim.calibrate.metrics import Score, score
from moesim.errors import InputError
from moesim.operators.cpu_experts import CpuExpertProfile

__all__ = ["HeldOut", "fit_profile", "held_out", "repeat_noise"]

FOLDS = 5
INTERVAL = (0.1, 0.9)


@dataclass(frozen=True)
class HeldOut:
    """Errors on held-out shapes; every shape is held out once.

    Attributes:
        shapes: Distinct (hidden, inter).
        ours: The fitted physics.
        roofline: The textbook roofline, fitted on the same points by the same loss.
        ours_with_noisy: As ``ours``, with the points that were set aside as noisy.
        by_regime: ``ours`` by number type, rows per expert and residency.
        intervals: By number type, 10th and 90th percentile of measured over predicted.
    """

    shapes: int
    ours: Score
    roofline: Score
    ours_with_noisy: Score
    by_regime: dict[str, Score]
    intervals: dict[str, tuple[float, float]]

    @property
    def ratio(self) -> float | None:
        """Median error over the roofline's."""
        if self.ours.median_ape is None or not self.roofline.median_ape:
            return None
        return self.ours.median_ape / self.roofline.median_ape

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "shapes": self.shapes,
            "folds": FOLDS,
            **self.ours.to_dict(),
            "roofline": self.roofline.to_dict(),
            "ratio_to_roofline": self.ratio,
            "with_noisy": self.ours_with_noisy.to_dict(),
            "by_regime": {name: part.to_dict() for name, part in self.by_regime.items()},
        }


def held_out(measurements: Measurements, seed: int) -> HeldOut:
    """Fit on four fifths of the shapes and predict the rest, until each was held out once.

    Args:
        measurements: A run.
        seed: Seed of the order in which shapes are dealt into folds.

    Raises:
        InputError: If there are too few usable points.
    """
    table = CpuTable(expert_frame(measurements))
    frame = table.frame
    if len(frame) < 2 * FEWEST_POINTS:
        raise InputError(
            "too few usable points to hold some out",
            field="points",
            found=len(frame),
            allowed=f"at least {2 * FEWEST_POINTS}",
            fix="measure again with more --minutes",
        )
    every = CpuTable(expert_frame(measurements, noisy=True))
    usable_folds, every_folds = _folds(frame, every.frame, seed)
    predicted_s, roofline_s = np.full(len(frame), np.nan), np.full(len(frame), np.nan)
    with_noisy_s = np.full(len(every.frame), np.nan)
    for fold in range(FOLDS):
        test, test_with_noisy = usable_folds == fold, every_folds == fold
        fits = CPU_EXPERTS.fit(table, ~test)
        predicted_s[test] = CPU_EXPERTS.predict(table, fits)[test]
        roofline_s[test] = _roofline(table, ~test)[test]
        with_noisy_s[test_with_noisy] = CPU_EXPERTS.predict(every, fits)[test_with_noisy]
    measured_s = frame["latency_s"]
    ratio = measured_s / predicted_s
    low_s, high_s = predicted_s.copy(), predicted_s.copy()
    for fold in range(FOLDS):
        for dtype in frame.labels["dtype"]:
            same = frame.is_label("dtype", dtype)
            low, high = _interval(ratio[same & (usable_folds != fold)])
            low_s[same & (usable_folds == fold)] *= low
            high_s[same & (usable_folds == fold)] *= high
    whole = {d: _interval(ratio[frame.is_label("dtype", d)]) for d in frame.labels["dtype"]}
    return HeldOut(
        int(CPU_EXPERTS.shape_key(table).max()) + 1,
        score(predicted_s, measured_s, low_s, high_s),
        score(roofline_s, measured_s),
        score(with_noisy_s, every.frame["latency_s"]),
        {
            name: score(predicted_s[rows], measured_s[rows], low_s[rows], high_s[rows])
            for name, rows in _regimes(frame).items()
        },
        {dtype: ends for dtype, ends in whole.items() if np.isfinite(ends).all()},
    )


def fit_profile(measurements: Measurements, scores: HeldOut | None = None) -> CpuExpertProfile:
    """All points of a run fitted, as the document that simulations read.

    Args:
        measurements: A run on a CPU.
        scores: Its held-out errors, for the intervals.

    Raises:
        InputError: If no number type has enough points.
    """
    table = CpuTable(expert_frame(measurements))
    fits = CPU_EXPERTS.fit(table, np.ones(len(table.frame), bool))
    if not fits:
        raise InputError(
            "too few points to fit anything",
            field="points",
            found=len(table.frame),
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
        intervals={} if scores is None else scores.intervals,
        versions=environment.versions,
        load_average=environment.load_average,
        date=measurements.date,
        command=measurements.command,
        notes=measurements.notes,
    )


def repeat_noise(measurements: Measurements) -> dict[str, float | int]:
    """Spread of the samples of a point, over all points, and how many are set aside."""
    spread = [point.iqr_s / point.time_s for point in measurements.points]
    return {
        "points": len(spread),
        "set_aside": sum(1 for point in measurements.points if point.noisy is not None),
        "iqr_over_median_median": float(np.median(spread)),
        "iqr_over_median_p90": float(np.quantile(spread, 0.9)),
    }


def _folds(usable: Frame, every: Frame, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Fold of each row of either frame; all rows of a shape are in one fold."""
    shapes = np.unique(np.stack([every["hidden"], every["inter"]], 1), axis=0)
    fold_of_shape = np.random.default_rng(seed).permutation(len(shapes)) % FOLDS
    fold = {tuple(shape): int(f) for shape, f in zip(shapes.tolist(), fold_of_shape, strict=True)}

    def folds(frame: Frame) -> np.ndarray:
        pairs = zip(frame["hidden"].tolist(), frame["inter"].tolist(), strict=True)
        return np.array([fold[pair] for pair in pairs])

    return folds(usable), folds(every)


def _interval(ratio: np.ndarray) -> tuple[float, float]:
    """Ends of the 80 % interval; NaN without any finite ratio.

    Order statistics of rank α (n + 1) hold the next value with the stated probability (conformal
    prediction; Vovk et al. 2005), where plain quantiles of few values hold it less often.
    """
    known = np.sort(ratio[np.isfinite(ratio)])
    if not len(known):
        return np.nan, np.nan
    low = int(np.floor(INTERVAL[0] * (len(known) + 1)))
    high = int(np.ceil(INTERVAL[1] * (len(known) + 1)))
    return float(known[max(low, 1) - 1]), float(known[min(high, len(known)) - 1])


def _roofline(table: CpuTable, rows: np.ndarray) -> np.ndarray:
    """[rows] seconds of the textbook roofline, fitted on some rows of each number type."""
    frame = table.frame
    seconds = np.full(len(frame), np.nan)
    for dtype in frame.labels["dtype"]:
        chosen = frame.is_label("dtype", dtype)
        layers, fit_rows = layers_of(frame.take(chosen), dtype), rows[chosen]
        if fit_rows.sum() >= FEWEST_POINTS:
            model = fit_roofline(layers.take(fit_rows), frame["latency_s"][chosen][fit_rows])
            seconds[chosen] = model.seconds(layers)
    return seconds


def _regimes(frame: Frame) -> dict[str, np.ndarray]:
    """Rows of each regime by name, [rows] bool."""
    rows = frame["tokens"] / frame["experts"]
    few, many = FEW_TO_MANY
    found = {
        f"rows<={few}": rows <= few,
        f"{few}<rows<={many}": (rows > few) & (rows <= many),
        f"rows>{many}": rows > many,
    }
    for name in ("dtype", "residency"):
        found |= {f"{name}={x}": frame.is_label(name, x) for x in frame.labels[name]}
    return {name: mask for name, mask in found.items() if mask.any()}
