"""80 % intervals from the errors that predictions made on rows they had not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moesim.extras import require

__all__ = ["LEVEL", "Interval", "central", "either_way", "leave_fold_out"]

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


def central(values: np.ndarray, folds: np.ndarray) -> tuple[float, float, float]:
    """Ends of the central share of some values, and the end of that share of their sizes.

    Of n + 1 alike folds the n that are seen show n / (n + 1) of what lies outside on the mean, so
    that share of the tails is cut.

    Args:
        values: ``[residuals]``.
        folds: What was held out for each; below 0 where that is no whole thing, but rows at random.
    """
    seen = len(np.unique(folds[folds >= 0]))
    outside = (1 - LEVEL) * (seen / (seen + 1) if seen else 1)
    low, high = np.quantile(values, [outside / 2, 1 - outside / 2])
    return float(low), float(high), float(np.quantile(np.abs(values), 1 - outside))


def leave_fold_out(
    predicted_s: np.ndarray,
    fold: np.ndarray,
    log_residual: np.ndarray,
    residual_fold: np.ndarray,
    regimes: Mapping[str, np.ndarray],
    *,
    few_folds: bool = False,
    borrowed: np.ndarray | None = None,
) -> Interval:
    """Interval of each row from residuals of its regime, those of its own fold left out.

    Args:
        predicted_s: ``[rows]``; NaN gives a NaN interval.
        fold: ``[rows]`` the fold that holds a row out; below 0 for none.
        log_residual: ``[rows]`` log of measured over predicted on held-out rows; NaN for none.
        residual_fold: ``[rows]`` the fold that each residual is of.
        regimes: Codes ``[rows]`` of each division, the finest first.
        few_folds: The folds are few and each is unlike the others (systems, versions, numbers of
            nodes): see :func:`_random_effects`.
        borrowed: ``[rows] bool`` rows predicted by another kernel's coefficients: errors of other
            such pairs say how far off, but not in which direction, so both signs count alike.
    """
    divisions = [*regimes.values(), np.zeros(len(fold), np.int64)]
    known = np.isfinite(log_residual)
    low, high = np.full(len(fold), np.nan), np.full(len(fold), np.nan)
    for number in np.unique(fold[fold >= 0]):
        usable = np.flatnonzero(known & (residual_fold != number))
        own = fold == number
        for codes in divisions:
            open_ = own & np.isnan(low)
            if not open_.any():
                break
            if few_folds:
                quantiles = _random_effects(codes, usable, log_residual, residual_fold)
            else:
                quantiles = _quantiles(codes, usable, log_residual, residual_fold)
            low[open_], high[open_] = quantiles[codes[open_], :2].T
            if borrowed is not None and not few_folds:
                either = open_ & borrowed
                high[either] = quantiles[codes[either], 2]
                low[either] = -high[either]
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


def _random_effects(
    codes: np.ndarray, rows: np.ndarray, values: np.ndarray, folds: np.ndarray
) -> np.ndarray:
    """Ends of the interval of a new fold by code, ``[codes, 2]``; NaN if there are few rows.

    A new fold is off by something of its own, as each of the G others was, besides the spread
    within folds: half the width is hypot(t · RMS of the folds' medians, spread), with t the 90th
    percentile of Student's distribution with G degrees of freedom (the random-effects prediction
    interval of Higgins, Thompson and Spiegelhalter, J. R. Stat. Soc. A 172, 2009, its mean known
    to be 0). In which direction a new fold will be off, the others do not tell.
    """
    stats = require("scipy.stats", "measured", "intervals")
    result = np.full((int(codes.max()) + 1, 2), np.nan)
    for code in np.unique(codes[rows]):
        own = rows[codes[rows] == code]
        if len(own) < MIN_RESIDUALS:
            continue
        numbers = np.unique(folds[own])
        parts = [values[own[folds[own] == number]] for number in numbers]
        medians = np.array([np.median(part) for part in parts])
        inside = np.concatenate([part - np.median(part) for part in parts])
        t = stats.t.ppf((1 + LEVEL) / 2, len(numbers))
        between = t * np.sqrt((medians**2).mean())
        half = np.hypot(between, np.quantile(np.abs(inside), LEVEL))
        result[code] = -half, half
    return result


def _quantiles(
    codes: np.ndarray, rows: np.ndarray, values: np.ndarray, folds: np.ndarray
) -> np.ndarray:
    """What :func:`central` gives of some rows' values by code, ``[codes, 3]``; NaN if few."""
    result = np.full((int(codes.max()) + 1, 3), np.nan)
    order = rows[np.argsort(codes[rows], kind="stable")]
    places = np.searchsorted(codes[order], np.arange(len(result) + 1))
    for code in range(len(result)):
        chosen = order[places[code] : places[code + 1]]
        if len(chosen) >= MIN_RESIDUALS:
            result[code] = central(values[chosen], folds[chosen])
    return result
