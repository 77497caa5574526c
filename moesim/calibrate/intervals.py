"""80 % intervals from the errors that predictions made on rows they had not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["LEVEL", "Interval", "either_way", "leave_fold_out"]

LEVEL = 0.8
"""Share of measurements that an interval is to hold."""
MIN_RESIDUALS = 50
"""A regime with fewer held-out residuals takes the quantiles of the next coarser one."""


@dataclass(frozen=True)
class Interval:
    """Lower and upper end of each row, ``[rows]`` seconds."""

    lo_s: np.ndarray
    hi_s: np.ndarray

    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """Both ends."""
        return self.lo_s, self.hi_s


def leave_fold_out(
    predicted_s: np.ndarray,
    fold: np.ndarray,
    log_residual: np.ndarray,
    residual_fold: np.ndarray,
    regimes: Mapping[str, np.ndarray],
) -> Interval:
    """Interval of each row from residuals of its regime, those of its own fold left out.

    Args:
        predicted_s: ``[rows]``; NaN gives a NaN interval.
        fold: ``[rows]`` the fold that holds a row out; below 0 for none.
        log_residual: ``[rows]`` log of measured over predicted on held-out rows; NaN for none.
        residual_fold: ``[rows]`` the fold that each residual is of.
        regimes: Codes ``[rows]`` of each division, the finest first.
    """
    divisions = [*regimes.values(), np.zeros(len(fold), np.int64)]
    known = np.isfinite(log_residual)
    low, high = np.full(len(fold), np.nan), np.full(len(fold), np.nan)
    for number in np.unique(fold[fold >= 0]):
        usable = known & (residual_fold != number)
        own = fold == number
        for codes in divisions:
            open_ = own & np.isnan(low)
            if not open_.any():
                break
            quantiles = _quantiles(codes, np.flatnonzero(usable), log_residual)
            low[open_], high[open_] = quantiles[codes[open_]].T
        # Nothing else was held out in any regime: no interval but the point itself.
        rest = own & np.isnan(low)
        low[rest], high[rest] = 0.0, 0.0
    return Interval(predicted_s * np.exp(low), predicted_s * np.exp(high))


def either_way(
    predicted_s: np.ndarray,
    codes: Sequence[np.ndarray],
    log_residual: np.ndarray,
    residual_codes: Sequence[np.ndarray],
) -> Interval:
    """Intervals of equal ratio to both sides, for what is alike to nothing measured.

    The errors of a few other systems or versions tell how far a new one may be off, but not in
    which direction: residuals of both signs count alike.

    Args:
        predicted_s: ``[rows]``.
        codes: ``[rows]`` of each division, the finest first.
        log_residual: ``[residuals]`` log of measured over predicted, by fits that had not seen
            them; not finite for none.
        residual_codes: ``[residuals]`` of each division.
    """
    width = np.full(len(predicted_s), np.nan)
    known = np.isfinite(log_residual)
    everything = (np.zeros(len(predicted_s), np.int64), np.zeros(len(known), np.int64))
    for own, theirs in (*zip(codes, residual_codes, strict=True), everything):
        for code in np.unique(own[np.isnan(width)]):
            found = np.abs(log_residual[known & (theirs == code)])
            if len(found) >= MIN_RESIDUALS:
                width[np.isnan(width) & (own == code)] = np.quantile(found, LEVEL)
    # Nothing at all was held out: no interval but the point itself.
    ratio = np.exp(np.nan_to_num(width))
    return Interval(predicted_s / ratio, predicted_s * ratio)


def _quantiles(codes: np.ndarray, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Ends of the central share of some rows' values by code, ``[codes, 2]``; NaN if few."""
    result = np.full((int(codes.max()) + 1, 2), np.nan)
    order = rows[np.argsort(codes[rows], kind="stable")]
    places = np.searchsorted(codes[order], np.arange(len(result) + 1))
    for code in range(len(result)):
        found = values[order[places[code] : places[code + 1]]]
        if len(found) >= MIN_RESIDUALS:
            result[code] = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return result
