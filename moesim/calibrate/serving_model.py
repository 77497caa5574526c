"""Fitted coefficients of serving: what kernels alone do not say of an engine's steps.

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

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import ClassVar

import numpy as np
from pydantic import Field

from moesim.calibrate.serving_setups import HOST_PARTS, TIME_PARTS, RunParts
from moesim.calibrate.serving_terms import (
    TTFT_PARTS,
    release_of,
    residual_points,
    stacked,
    ttft_parts,
)
from moesim.calibrate.smooth_residual import SmoothResidual
from moesim.hardware import profiles_folder
from moesim.schema import Document, Evidence
from moesim.serving.coefficients import ServingCoefficients

__all__ = ["GroupFit", "Predicted", "ServingModel", "shipped_serving", "step_coefficients"]


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
        points = residual_points(runs, marks, self.systems)
        tpot = stacked(runs, "tpot") @ self._coefficients * np.exp(self.drafting_log * marks)
        parts = ttft_parts(runs, tpot, self.service)
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
