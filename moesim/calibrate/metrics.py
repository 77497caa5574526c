"""How far predictions are from measurements, over all rows and by regime.

Percentages are shares here (0.12 is 12 %). The absolute percentage error of a row is
``|predicted - measured| / measured``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from moesim.calibrate.frame import Frame
from moesim.calibrate.operators import OPERATORS
from moesim.errors import InputError

__all__ = ["Score", "by_regime", "interval_coverage", "regimes", "score"]

SMALL, LARGE = 64, 1024
"""Bounds of the token regimes: decode up to 64, mixed up to 1024, prefill beyond."""


@dataclass(frozen=True)
class Score:
    """Errors over some rows, as shares.

    Attributes:
        rows: How many rows there are.
        covered: For how many of them there is a prediction; the errors are over those.
        mape: Mean absolute percentage error.
        median_ape: Median of the absolute percentage errors.
        p90_ape: Their 90th percentile.
        bias: Median of the signed errors; positive is too slow.
        interval_coverage: Share of measurements inside the predicted interval, if one is given.
    """

    rows: int
    covered: int
    mape: float | None
    median_ape: float | None
    p90_ape: float | None
    bias: float | None
    interval_coverage: float | None = None

    def to_dict(self) -> dict[str, float | int | None]:
        """For JSON."""
        return asdict(self)


def score(
    predicted_s: np.ndarray,
    measured_s: np.ndarray,
    lo_s: np.ndarray | None = None,
    hi_s: np.ndarray | None = None,
) -> Score:
    """Score predictions; NaN means: no prediction for this row.

    Args:
        predicted_s: ``[rows]`` seconds.
        measured_s: ``[rows]`` seconds, above 0.
        lo_s: Lower ends of the intervals, ``[rows]``, if there are any.
        hi_s: Upper ends.

    Raises:
        InputError: If lengths differ or a measurement is not a positive number.
    """
    if predicted_s.shape != measured_s.shape:
        raise InputError(
            "predictions and measurements differ in number",
            found=f"{predicted_s.shape} and {measured_s.shape}",
        )
    if not (np.isfinite(measured_s) & (measured_s > 0)).all():
        raise InputError("a measured time is not a positive number", field="measured_s")
    there = np.isfinite(predicted_s)
    rows, covered = len(measured_s), int(there.sum())
    if not covered:
        return Score(rows, 0, None, None, None, None)
    signed = predicted_s[there] / measured_s[there] - 1
    ape = np.abs(signed)
    coverage = None
    if lo_s is not None and hi_s is not None:
        coverage = interval_coverage(measured_s[there], lo_s[there], hi_s[there])
    return Score(
        rows,
        covered,
        float(ape.mean()),
        float(np.median(ape)),
        float(np.quantile(ape, 0.9)),
        float(np.median(signed)),
        coverage,
    )


def interval_coverage(measured_s: np.ndarray, lo_s: np.ndarray, hi_s: np.ndarray) -> float:
    """Share of measurements that lie within their interval, its ends included.

    Raises:
        InputError: If there are no rows, or an interval ends before it begins.
    """
    if not len(measured_s) or (lo_s > hi_s).any():
        raise InputError("intervals need rows, and lo not above hi", field="lo_s, hi_s")
    return float(((lo_s <= measured_s) & (measured_s <= hi_s)).mean())


def regimes(frame: Frame) -> dict[str, np.ndarray]:
    """Rows of each regime, ``[rows] bool`` by name such as ``tokens<=64`` or ``dtype=fp8``.

    By tokens (or what the operator's series counts, if that is not tokens: ``m`` of a GEMM), and
    by dtype, kernel, distribution, system and engine where the operator has them. Empty regimes
    are left out.
    """
    axis = OPERATORS[frame.operator].series
    places = frame[axis]
    found = {
        f"{axis}<={SMALL}": places <= SMALL,
        f"{SMALL}<{axis}<={LARGE}": (places > SMALL) & (places <= LARGE),
        f"{axis}>{LARGE}": places > LARGE,
    }
    for name in ("dtype", "kernel", "distribution", "system", "engine"):
        if name in frame.columns:
            for code, label in enumerate(frame.labels[name]):
                found[f"{name}={label}"] = frame[name] == code
    return {name: mask for name, mask in found.items() if mask.any()}


def by_regime(
    frame: Frame,
    predicted_s: np.ndarray,
    lo_s: np.ndarray | None = None,
    hi_s: np.ndarray | None = None,
) -> dict[str, Score]:
    """Score the predictions in every regime of ``regimes``."""
    measured_s = frame["latency_s"]
    return {
        name: score(
            predicted_s[mask],
            measured_s[mask],
            None if lo_s is None else lo_s[mask],
            None if hi_s is None else hi_s[mask],
        )
        for name, mask in regimes(frame).items()
    }
