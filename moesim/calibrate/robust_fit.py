"""Fitting a few bounded positive coefficients to measured times.

Coefficients are fitted by their logarithms, on the logarithm of the time: an error counts by its
ratio, whatever the size of the row. Large residuals count linearly, so that single disturbed rows
do not pull the rest (the soft L1 loss of ``scipy.optimize.least_squares``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moesim.extras import require

__all__ = ["Coefficient", "Fitted", "coefficients_of", "evenly_drawn", "fit_log"]

SOFT_FROM = 0.1
"""Residuals beyond 10 % count linearly rather than squared."""
SHIFT = 1e-3
"""Relative step of the numerical derivative: above the kinks of tile counts, below curvature."""
START_MARGIN = 0.1
"""Least distance of a start from its ends, in log: on an end the first step is blind."""


@dataclass(frozen=True)
class Coefficient:
    """One coefficient: where the search starts and what physics allows."""

    name: str
    start: float
    lower: float
    upper: float


def coefficients_of(bounds: Mapping[str, tuple[float, float, float]]) -> list[Coefficient]:
    """Coefficients from start, lower and upper end of each, their starts moved off the ends."""
    away = np.exp(START_MARGIN)
    return [
        Coefficient(name, float(np.clip(start, lower * away, upper / away)), lower, upper)
        for name, (start, lower, upper) in bounds.items()
    ]


@dataclass(frozen=True)
class Fitted:
    """A fit.

    Attributes:
        values: By coefficient.
        loss: Mean robust loss per row; comparable between fits of the same rows.
        at_bound: Coefficients within 1 % of a bound.
    """

    values: dict[str, float]
    loss: float
    at_bound: tuple[str, ...]


def fit_log(
    seconds: Callable[[Mapping[str, float]], np.ndarray],
    measured_s: np.ndarray,
    coefficients: Sequence[Coefficient],
    *,
    evaluations: int = 40,
) -> Fitted:
    """Fit coefficients so that ``seconds`` meets the measured times.

    Args:
        seconds: Predicted seconds ``[rows]`` for values of the coefficients.
        measured_s: ``[rows]`` seconds.
        coefficients: What is fitted.
        evaluations: Steps of the search at most (each evaluates all derivatives).

    Raises:
        MissingExtraError: If scipy is not installed.
    """
    optimize = require("scipy.optimize", "measured", "fitting coefficients")
    names = [c.name for c in coefficients]
    lower = np.log([c.lower for c in coefficients])
    upper = np.log([c.upper for c in coefficients])
    margin = 1e-6 * (upper - lower)
    start = np.clip(np.log([c.start for c in coefficients]), lower + margin, upper - margin)
    target = np.log(measured_s)

    def residual(logs: np.ndarray) -> np.ndarray:
        values = dict(zip(names, np.exp(logs).tolist(), strict=True))
        return np.log(seconds(values)) - target

    found = optimize.least_squares(
        residual,
        start,
        bounds=(lower, upper),
        loss="soft_l1",
        f_scale=SOFT_FROM,
        diff_step=SHIFT,
        max_nfev=evaluations,
    )
    near = np.log(1.01)
    at_bound = [
        name
        for name, x, a, b in zip(names, found.x, lower, upper, strict=True)
        if x - a < near or b - x < near
    ]
    values = dict(zip(names, np.exp(found.x).tolist(), strict=True))
    return Fitted(values, float(found.cost) / len(target), tuple(at_bound))


def evenly_drawn(rows: np.ndarray, limit: int, seed: int = 0) -> np.ndarray:
    """At most ``limit`` of some row numbers, drawn at random by the seed, in order."""
    if len(rows) <= limit:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, limit, replace=False))
