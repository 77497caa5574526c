"""Fit the coefficients of :mod:`moesim.calibrate.serving_model` to measured runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from moesim.calibrate.serving_model import GroupFit, ServingModel
from moesim.calibrate.serving_setups import DESCRIPTORS, HOST_PARTS, TIME_PARTS, RunParts
from moesim.calibrate.serving_terms import (
    TTFT_PARTS,
    release_of,
    residual_points,
    stacked,
    ttft_parts,
)
from moesim.calibrate.smooth_residual import fit_residual
from moesim.extras import require
from moesim.serving.coefficients import family_of

__all__ = ["fit_serving"]

HOST_UNITS_S = (1e-3, 1e-3, 1e-5, 1e-6, 1e-6)
"""By host part, what a unit of it may take about; fits start below and are drawn there."""

SOFT_FROM = 0.08
"""Errors beyond 8 % count linearly: that is the noise between repeats of a run."""

WEIGHT_SPREAD = (0.03, 0.1, 0.1)
"""How far weights lie from 1 in common, an engine from all, and a family from its engine, in
logarithms; chosen by leaving out one model after the other."""
HOST_SPREAD = 30.0
"""By how much more host times may differ: no table says them."""

DRAFTS_BELOW = -0.25
"""Median logarithm of measured over predicted from which a release is taken to draft: drafting
gains 1.4 times and more (DeepSeek-V3, arXiv 2412.19437, section 5.4.3: 1.8 times)."""

DRAFTING_LOG = -0.588
"""The logarithm of those 1.8 times, where none of a group's runs drafted."""

LEAST_ROWS = 15
"""A group with fewer rows takes a wider one's coefficients."""

LENGTHS = {
    "log ep": 2.0,
    "attention dp": 2.0,
    "log devices": 2.0,
    "share of gemm": 2.0,
    "share of experts": 2.0,
    "share of collectives": 2.0,
    "share of attention": 2.0,
    "share of small kernels": 2.0,
    "share of prefill": 2.0,
    "log tpot": 4.0,
    "bits": 2.0,
    "dense": 2.0,
    "months": 4.0,
    "split": 1.0,
    "log layers": 0.3,
    "log hidden size": 0.3,
    "log experts": 0.3,
    "log expert width": 0.3,
    "log prefill devices": 2.0,
    "log prefill groups": 2.0,
    "log decode workers": 2.0,
    "log lateness": 2.0,
}
"""Of the residual's descriptors; 3 where none is named. Chosen by cross-validation. What is short
of a model's shape keeps a residual among models that are built alike."""
TTFT_LENGTHS = LENGTHS | {
    "log osl": 1.5,
    "log prefill devices": 1.0,
    "log prefill groups": 1.0,
    "log decode workers": 1.0,
    "log lateness": 0.5,
}
"""Waiting changes faster with what it is made of."""

TPOT_RESIDUAL = {"amplitude": 0.25, "noise": 0.05, "outlier": 0.12}
TTFT_RESIDUAL = {"amplitude": 0.6, "noise": 0.12, "outlier": 0.25}
TTFT_START = (1.0, 0.03, 3e-6, 3.0, 0.01, 0.5, 1.0)
TTFT_SPREAD = (0.3, 2.0, 2.0, 2.0, 2.0, 0.5, 0.5)

SERVICE = (0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.3)
"""Factors of service that are tried: what waits for it depends on it with a kink."""


def fit_serving(
    runs: Sequence[RunParts], *, source: str = "", date: str = "", command: str = ""
) -> ServingModel:
    """Fit all groups.

    Args:
        runs: Measured.
        source: Of the rows, for the document.
        date: Of the fit.
        command: That repeats it.

    Raises:
        MissingExtraError: If scipy is not installed.
    """
    groups: list[GroupFit] = []
    for mode in ("agg", "disagg"):
        own = [run for run in runs if run.run.mode == mode]
        if len(own) < LEAST_ROWS:
            continue
        common = _weights(own, _prior(), 0)
        wide = _group("any", "any", mode, own, common, alone=False)
        by_engine: dict[str, list[RunParts]] = defaultdict(list)
        for run in own:
            by_engine[run.run.engine].append(run)
        for engine, of_engine in sorted(by_engine.items()):
            if len(of_engine) < LEAST_ROWS:
                continue
            middle = _weights(of_engine, common, 1)
            groups.append(_group(engine, "any", mode, of_engine, middle, alone=False))
            for family in ("blackwell", "hopper"):
                near = [run for run in of_engine if family_of(run.run.system) == family]
                if len(near) >= LEAST_ROWS:
                    groups.append(_group(engine, family, mode, near, _weights(near, middle, 2)))
        groups.append(wide)
    return ServingModel(
        source=source, rows=len(runs), date=date, command=command, groups=tuple(groups)
    )


def _prior() -> np.ndarray:
    """[P] logarithms of weights 1 and of small host times."""
    return np.log([*(1.0 for _ in TIME_PARTS), *(unit / np.e for unit in HOST_UNITS_S)])


def _weights(runs: Sequence[RunParts], prior: np.ndarray, level: int) -> np.ndarray:
    """[P] logarithms of coefficients, fitted to runs that do not draft."""
    parts, measured = stacked(runs, "tpot"), np.array([run.run.tpot_s for run in runs])
    spread = np.full(len(prior), WEIGHT_SPREAD[level])
    spread[len(TIME_PARTS) :] *= HOST_SPREAD
    found = _fit(parts, measured, prior, spread, SOFT_FROM)
    marks = _drafting_marks(runs, np.log(measured / (parts @ np.exp(found))))
    plain = marks == 0
    if marks.any() and plain.sum() >= LEAST_ROWS:
        found = _fit(parts[plain], measured[plain], prior, spread, SOFT_FROM)
    return found


def _fit(
    parts: np.ndarray, measured: np.ndarray, prior: np.ndarray, spread: np.ndarray, soft: float
) -> np.ndarray:
    """[P] logarithms of positive coefficients by robust least squares on logarithms."""
    optimize = require("scipy.optimize", "measured", "fitting serving coefficients")

    def residual(logs: np.ndarray) -> np.ndarray:
        off = np.log(parts @ np.exp(logs) / measured) / soft
        # The square root of the pseudo-Huber loss: large errors count linearly.
        robust = np.sign(off) * np.sqrt(2 * (np.sqrt(1 + off**2) - 1))
        return np.concatenate([robust, (logs - prior) / spread])

    found: np.ndarray = optimize.least_squares(residual, prior, max_nfev=60).x
    return found


def _drafting_marks(runs: Sequence[RunParts], left: np.ndarray) -> np.ndarray:
    """[N] 1 for runs that draft: those known to, and those that take much less than their kernels.

    Where nothing is known, runs of one release are judged together by their median; runs with
    prefill and decode workers one by one, against the middle of both known kinds.
    """
    by_release: dict[str, list[int]] = defaultdict(list)
    marks, open_ = np.zeros(len(runs)), []
    for place, run in enumerate(runs):
        if run.run.drafting is not None:
            marks[place] = float(run.run.drafting)
        elif name := release_of(run):
            by_release[name].append(place)
        elif run.drafts:
            open_.append(place)
    for places in by_release.values():
        if np.median(left[places]) < DRAFTS_BELOW:
            marks[places] = 1.0
    if open_:
        known = np.array([run.run.drafting is not None for run in runs])
        drafting, plain = (left[known & (marks == kind)] for kind in (1.0, 0.0))
        middle = DRAFTS_BELOW
        if drafting.size and plain.size:
            middle = min(middle, float(np.median(drafting) + np.median(plain)) / 2)
        marks[open_] = left[open_] < middle
    return marks


def _ttft_fit(
    runs: Sequence[RunParts], measured: np.ndarray, tpot_s: np.ndarray
) -> tuple[np.ndarray, float, np.ndarray]:
    """Coefficients of :data:`TTFT_PARTS`, the factor of service, and logarithms left over."""
    tried = []
    for service in SERVICE if any(run.servers for run in runs) else (1.0,):
        parts = ttft_parts(runs, tpot_s, service)
        logs = _fit(parts, measured, np.log(TTFT_START), np.array(TTFT_SPREAD), 3 * SOFT_FROM)
        left = np.log(measured / (parts @ np.exp(logs)))
        tried.append((float(np.abs(left).mean()), np.exp(logs), service, left))
    return min(tried, key=lambda one: one[0])[1:]


def _group(
    engine: str,
    family: str,
    mode: str,
    runs: Sequence[RunParts],
    logs: np.ndarray,
    alone: bool = True,
) -> GroupFit:
    """Everything else of a group, given its weights."""
    tpot_s, ttft_s = (
        np.array([getattr(run.run, name) for run in runs]) for name in ("tpot_s", "ttft_s")
    )
    coefficients = np.exp(logs)
    physics = stacked(runs, "tpot") @ coefficients
    left = np.log(tpot_s / physics)
    marks = _drafting_marks(runs, left)
    gain = float(np.median(left[marks > 0])) if marks.any() else DRAFTING_LOG
    left = left - gain * marks
    systems = tuple(sorted({run.run.system for run in runs}))
    points = np.round(residual_points(runs, marks, systems), 3)
    names = (*DESCRIPTORS, "drafting", *systems)
    lengths, ttft_lengths = (
        np.array([of.get(name, 1.0 if name in systems else 3.0) for name in names])
        for of in (LENGTHS, TTFT_LENGTHS)
    )
    ttft, service, ttft_left = _ttft_fit(runs, ttft_s, physics * np.exp(gain * marks))
    together = [run.run.configuration for run in runs]
    residuals = [
        fit_residual(points, values, of, together=together, **settings) if alone else None
        for values, of, settings in (
            (left, lengths, TPOT_RESIDUAL),
            (ttft_left, ttft_lengths, TTFT_RESIDUAL),
        )
    ]
    return GroupFit(
        engine=engine,
        family=family,
        mode=mode,
        rows=len(runs),
        systems=systems,
        weights=dict(zip(TIME_PARTS, _rounded(coefficients), strict=False)),
        host_s=dict(zip(HOST_PARTS, _rounded(coefficients[len(TIME_PARTS) :]), strict=True)),
        ttft=dict(zip(TTFT_PARTS, _rounded(ttft), strict=True)),
        service=service,
        drafting=tuple(sorted({release_of(r) for r, m in zip(runs, marks, strict=True) if m})),
        drafting_log=gain,
        tpot_band=_band(left),
        ttft_band=_band(ttft_left),
        points=tuple(map(tuple, points.tolist())) if alone else (),
        tpot_residual=residuals[0],
        ttft_residual=residuals[1],
    )


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def _band(left: np.ndarray) -> tuple[float, float]:
    """Ends that hold 80 % of the ratios of measured over predicted."""
    low, high = np.exp(np.quantile(left, (0.1, 0.9)))
    return float(min(low, 1.0)), float(max(high, 1.0))
