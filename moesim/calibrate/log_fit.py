"""Few positive coefficients fitted to times: robust, in logarithms, deterministic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from moesim.extras import require

__all__ = ["robust_log_fit"]

ROBUST_SCALE = 0.1
"""Errors of log time beyond this count linearly."""

BOUND_MARGIN = 1e-3
"""A coefficient within this distance of a bound, in log, counts as on it."""

START_MARGIN = 0.1
"""Least distance of a start from the bounds, in log: on a bound the first step is blind."""


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
    start = np.clip(start, low + START_MARGIN, high - START_MARGIN)
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
