"""Coefficients of serving: what kernels alone do not say of an engine's steps.

One set per engine, family of systems and mode (one pool, or prefill and decode workers), shared by
all models. In three layers, each reported apart:

1. Weights of kernel times and seconds of host time per step, sequence, token and kernel, fitted to
   the logarithm of TPOT. They are drawn towards what all engines have in common, and that towards
   kernels as they were measured (weights 1).
2. Releases that draft: where runs of a model with layers for speculative decoding take much less
   than their kernels do, the release (engine version and date) is marked, and its runs share one
   factor.
3. A smooth residual over sizes and shares of time (:mod:`moesim.calibrate.smooth_residual`), which
   vanishes far from every measured run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import ClassVar

import numpy as np
from pydantic import Field

from moesim.calibrate.serving_setups import (
    DESCRIPTORS,
    HOST_PARTS,
    SPLIT_DESCRIPTORS,
    TIME_PARTS,
    RunParts,
)
from moesim.calibrate.smooth_residual import SmoothResidual, fit_residual
from moesim.extras import require
from moesim.hardware import profiles_folder
from moesim.schema import Document, Evidence
from moesim.serving.coefficients import ServingCoefficients, family_of

__all__ = ["GroupFit", "ServingModel", "fit_serving", "shipped_serving", "step_coefficients"]

HOST_UNITS_S = (1e-3, 1e-3, 1e-5, 1e-6, 1e-6)
"""By host part, what a unit of it may take about; fits start below and are drawn there."""

SOFT_FROM = 0.08
"""Errors beyond 8 % count linearly: that is the noise between repeats of a run."""

WEIGHT_SPREAD = (0.3, 0.25, 0.25)
"""How far weights lie from 1 in common, an engine from all, and a family from its engine, in
logarithms; chosen by cross-validation by configuration."""
HOST_SPREAD = 3.0
"""By how much more host times may differ."""

DRAFTS_BELOW = -0.25
"""Median logarithm of measured over predicted from which a release is taken to draft: drafting
gains 1.4 times and more (DeepSeek-V3, arXiv 2412.19437, section 5.4.3: 1.8 times)."""

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
    "log prefill devices": 2.0,
    "log prefill groups": 2.0,
    "log decode workers": 2.0,
    "log lateness": 2.0,
}
"""Of the residual's descriptors; 3 where none is named. Chosen by cross-validation."""
TTFT_LENGTHS = (
    LENGTHS | {"log osl": 1.5} | {name: 1.0 for name in DESCRIPTORS[-SPLIT_DESCRIPTORS:]}
)
"""Waiting changes faster with them."""

TPOT_RESIDUAL = {"amplitude": 0.25, "noise": 0.05, "outlier": 0.12}
TTFT_RESIDUAL = {"amplitude": 0.6, "noise": 0.12, "outlier": 0.25}
TTFT_PARTS = ("kernels", "request", "input_token", "tpot", "slot", "poll", "queue")
"""Seconds of kernels until the first token, and of host time per request, per input token, per
output-token time (an engine looks for new requests every few steps), per slot of the loop, per
output-token times between two looks where a launch script sets them, and of waiting for prefill
workers."""
TTFT_START = (1.0, 0.03, 3e-6, 3.0, 0.01, 0.5, 1.0)
TTFT_SPREAD = (0.3, 2.0, 2.0, 2.0, 2.0, 0.5, 0.5)

SERVICE = (0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.3)
"""Factors of service that are tried: what waits for it depends on it with a kink."""

BURST_SHARE = 0.1
"""Of a benchmark's requests, those of the first burst: it sends ten times its concurrency."""


@dataclass(frozen=True)
class Predicted:
    """TPOT and TTFT of a run with the ends of their 80 % intervals, in seconds."""

    tpot_s: float
    tpot_lo_s: float
    tpot_hi_s: float
    ttft_s: float
    ttft_lo_s: float
    ttft_hi_s: float
    drafts: bool


class GroupFit(Document):
    """Coefficients of an engine on a family of systems, in one mode.

    Attributes:
        engine: The engine; ``any`` for all.
        family: ``hopper``, ``blackwell`` or ``any``.
        mode: ``agg`` or ``disagg``.
        rows: Fitted.
        systems: Fitted on.
        weights: By :data:`TIME_PARTS`.
        host_s: Seconds by unit of :data:`HOST_PARTS`.
        ttft: By :data:`TTFT_PARTS`.
        service: Factor on the kernels of prefill workers that are full.
        drafting: Releases that draft.
        drafting_log: Logarithm of the factor that they share.
        tpot_band: Ends of the 80 % interval of the physics alone, as factors.
        ttft_band: The same of TTFT.
        points: [N, D] where the residuals' rows lie: descriptors, drafting, systems.
        tpot_residual: On top of the weights; None in groups that stand in for others.
        ttft_residual: The same of TTFT.
    """

    engine: str
    family: str
    mode: str
    rows: int
    systems: tuple[str, ...]
    weights: dict[str, float]
    host_s: dict[str, float]
    ttft: dict[str, float]
    service: float
    drafting: tuple[str, ...]
    drafting_log: float
    tpot_band: tuple[float, float]
    ttft_band: tuple[float, float]
    points: tuple[tuple[float, ...], ...] = ()
    tpot_residual: SmoothResidual | None = None
    ttft_residual: SmoothResidual | None = None

    @cached_property
    def _coefficients(self) -> np.ndarray:
        times = [self.weights[name] for name in TIME_PARTS]
        return np.array(times + [self.host_s[name] for name in HOST_PARTS])

    def drafts(self, run: RunParts) -> bool:
        """Whether a run drafts, by what is known of it or of its release."""
        if run.run.drafting is not None:
            return run.run.drafting
        return release_of(run) in self.drafting

    def predict(
        self,
        runs: Sequence[RunParts],
        residual: bool = True,
        drafting: Sequence[bool] | None = None,
    ) -> list[Predicted]:
        """TPOT and TTFT with their intervals.

        Args:
            runs: Of the group's engine.
            residual: Whether the smooth residual sits on top.
            drafting: By run, instead of what is known.
        """
        drafting = [self.drafts(run) for run in runs] if drafting is None else drafting
        marks = np.array(drafting, float)
        points = _points(runs, marks, self.systems)
        tpot = _stack(runs, "tpot") @ self._coefficients * np.exp(self.drafting_log * marks)
        parts = _ttft_parts(runs, tpot, self.service)
        ttft = parts @ np.array([self.ttft[name] for name in TTFT_PARTS])
        found = []
        for physics, process, band in (
            (tpot, self.tpot_residual, self.tpot_band),
            (ttft, self.ttft_residual, self.ttft_band),
        ):
            if residual and process is not None:
                mean, half = process.predict(np.array(self.points), points)
                middle = physics * np.exp(mean)
                found += [middle, middle * np.exp(-half), middle * np.exp(half)]
            else:
                found += [physics, physics * band[0], physics * band[1]]
        columns = zip(*(column.tolist() for column in found), strict=True)
        return [
            Predicted(tpot, tpot_lo, tpot_hi, ttft, ttft_lo, ttft_hi, bool(mark))
            for (tpot, tpot_lo, tpot_hi, ttft, ttft_lo, ttft_hi), mark in zip(
                columns, marks, strict=True
            )
        ]


class ServingModel(Document):
    """All groups, and what they were fitted to."""

    schema_id: ClassVar[str] = "moesim.serving-fit/1"

    source: str
    rows: int
    date: str
    command: str
    notes: tuple[str, ...] = ()
    groups: tuple[GroupFit, ...] = Field(min_length=1)

    def find(self, engine: str, family: str, mode: str) -> GroupFit:
        """The group of a run, or the widest that says something of it."""
        for wanted in ((engine, family, mode), (engine, "any", mode), ("any", "any", mode)):
            for group in self.groups:
                if (group.engine, group.family, group.mode) == wanted:
                    return group
        return self.groups[-1]


def step_coefficients(model: ServingModel) -> tuple[ServingCoefficients, ...]:
    """What the simulation of one pool takes of a fit: the physics, without residuals."""
    return tuple(
        ServingCoefficients(
            engine="" if group.engine == "any" else group.engine,
            family="" if group.family == "any" else group.family,
            systems=group.systems,
            weights=_by_kind(group.weights),
            step_host_s=(group.host_s["steps.decode"], group.host_s["steps.prefill"]),
            sequence_host_s=group.host_s["sequences"],
            token_host_s=group.host_s["tokens"],
            kernel_host_s=group.host_s["kernels"],
            request_host_s=group.ttft["request"],
            tpot_band=group.tpot_band,
            ttft_band=group.ttft_band,
            evidence=Evidence.FITTED,
        )
        for group in model.groups
        if group.mode == "agg"
    )


def _by_kind(weights: dict[str, float]) -> dict[str, tuple[float, float]]:
    """By component, factors in decode-only steps and in steps with prefill."""
    names = dict.fromkeys(name.partition(".")[0] for name in TIME_PARTS)
    return {
        name: (
            weights.get(f"{name}.decode", weights.get(name, 1.0)),
            weights.get(f"{name}.prefill", weights.get(name, 1.0)),
        )
        for name in names
    }


@cache
def shipped_serving() -> ServingModel:
    """The fit that comes with moesim."""
    return ServingModel.load(profiles_folder() / "fitted" / "serving.json")


def release_of(run: RunParts) -> str:
    """What a run shares with others of one engine version and one day; empty if it cannot draft.

    Runs with prefill and decode workers change between drafting and not within a day.
    """
    of = run.run
    if not run.drafts or of.mode == "disagg":
        return ""
    return f"{of.engine} {of.version or 'unknown'} {of.date or 'undated'}"


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


def _stack(runs: Sequence[RunParts], name: str) -> np.ndarray:
    return np.array([getattr(run, name) for run in runs])


def _weights(runs: Sequence[RunParts], prior: np.ndarray, level: int) -> np.ndarray:
    """[P] logarithms of coefficients, fitted to runs that do not draft."""
    parts, measured = _stack(runs, "tpot"), np.array([run.run.tpot_s for run in runs])
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


def _ttft_parts(runs: Sequence[RunParts], tpot_s: np.ndarray, service: float) -> np.ndarray:
    """[N, TTFT_PARTS], where prefill workers need so much of their kernels' time per prompt."""
    kernels = _stack(runs, "ttft")[:, : len(TIME_PARTS)].sum(axis=1)
    prompts, output, slots = (
        np.array([float(getattr(run.run, name)) for run in runs])
        for name in ("isl", "osl", "concurrency")
    )
    poll = np.array([run.run.flags.poll_steps - 1.0 if run.run.flags else 0.0 for run in runs])
    # With prefill workers: the first burst waits for half of itself. Later requests come as they
    # were served, unless all requests take longer to prefill than one takes to decode.
    servers = np.array([float(run.servers) for run in runs])
    split = servers > 0
    service_s = service * np.array([run.service_s for run in runs])
    through = np.where(split, slots * service_s / np.maximum(servers, 1.0), 0.0)
    late = np.maximum(0.0, through - output * tpot_s)
    queue = BURST_SHARE * through / 2 + (1 - BURST_SHARE) * np.where(split, late, 0.0)
    ones = np.ones(len(runs))
    columns = [kernels, ones, prompts, tpot_s, slots * tpot_s, poll * tpot_s, queue]
    return np.stack(columns, axis=1)


def _ttft_fit(
    runs: Sequence[RunParts], measured: np.ndarray, tpot_s: np.ndarray
) -> tuple[np.ndarray, float, np.ndarray]:
    """Coefficients of :data:`TTFT_PARTS`, the factor of service, and logarithms left over."""
    best = None
    for service in SERVICE if any(run.servers for run in runs) else (1.0,):
        parts = _ttft_parts(runs, tpot_s, service)
        logs = _fit(parts, measured, np.log(TTFT_START), np.array(TTFT_SPREAD), 3 * SOFT_FROM)
        left = np.log(measured / (parts @ np.exp(logs)))
        loss = float(np.abs(left).mean())
        if best is None or loss < best[0]:
            best = loss, np.exp(logs), service, left
    assert best is not None
    return best[1:]


def _points(runs: Sequence[RunParts], marks: np.ndarray, systems: Sequence[str]) -> np.ndarray:
    """[N, D] where the residual's rows lie: drafting and system are far from anything else."""
    own = np.array([[float(run.run.system == name) for name in systems] for run in runs])
    return np.concatenate([_stack(runs, "descriptors"), 4 * marks[:, None], own], axis=1)


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
    physics = _stack(runs, "tpot") @ coefficients
    left = np.log(tpot_s / physics)
    marks = _drafting_marks(runs, left)
    gain = float(np.median(left[marks > 0])) if marks.any() else 0.0
    left = left - gain * marks
    systems = tuple(sorted({run.run.system for run in runs}))
    points = np.round(_points(runs, marks, systems), 3)
    names = (*DESCRIPTORS, "drafting", *systems)
    lengths, ttft_lengths = (
        np.array([of.get(name, 1.0 if name in systems else 3.0) for name in names])
        for of in (LENGTHS, TTFT_LENGTHS)
    )
    ttft, service, ttft_left = _ttft_fit(runs, ttft_s, physics * np.exp(gain * marks))
    together = [run.run.configuration for run in runs]
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
        tpot_residual=fit_residual(points, left, lengths, together=together, **TPOT_RESIDUAL)
        if alone
        else None,
        ttft_residual=fit_residual(points, ttft_left, ttft_lengths, together=together, **TTFT_RESIDUAL)
        if alone
        else None,
    )


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def _band(left: np.ndarray) -> tuple[float, float]:
    """Ends that hold 80 % of the ratios of measured over predicted."""
    low, high = np.exp(np.quantile(left, (0.1, 0.9)))
    return float(min(low, 1.0)), float(max(high, 1.0))
