"""The few numbers that reports derive from a plan's outcome."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from moesim.planners.outcome import PlannerScore, PlanOutcome
    from moesim.step import StepCost

__all__ = [
    "before_after",
    "device_load",
    "gap_to_bound",
    "holdout_speedup",
    "layer_time_s",
    "quotient",
    "relative_load",
    "speedup",
]


def before_after(outcome: PlanOutcome) -> tuple[PlannerScore, ...]:
    """The baseline and the chosen placement, or the one that is both."""
    keys = dict.fromkeys((outcome.baseline, outcome.chosen))
    return tuple(outcome.scores[key] for key in keys)


def speedup(outcome: PlanOutcome, key: str) -> float:
    """Step time of the baseline over that of planner ``key``, where it was planned."""
    return quotient(outcome.scores[outcome.baseline].cost.step_s, outcome.scores[key].cost.step_s)


def holdout_speedup(outcome: PlanOutcome, key: str) -> float | None:
    """As :func:`speedup` on the held-out part; ``None`` if nothing was held out."""
    baseline, score = outcome.scores[outcome.baseline].holdout, outcome.scores[key].holdout
    if baseline is None or score is None:
        return None
    return quotient(baseline.step_s, score.step_s)


def gap_to_bound(outcome: PlanOutcome, key: str) -> float | None:
    """(step time − bound) / bound of planner ``key``; ``None`` without a bound."""
    bound_s = outcome.bound.lower_bound_s
    return outcome.scores[key].cost.step_s / bound_s - 1 if bound_s > 0 else None


def layer_time_s(cost: StepCost) -> np.ndarray:
    """[L] seconds per layer: dispatch, experts and combine."""
    total_s: np.ndarray = cost.layer_dispatch_s + cost.layer_compute_s + cost.layer_combine_s
    return total_s


def relative_load(load: np.ndarray) -> np.ndarray:
    """Each row over its own mean, so that 1 is even; a row without load is even."""
    load = np.asarray(load, np.float64)
    mean = load.mean(axis=1, keepdims=True)
    relative: np.ndarray = np.divide(load, mean, out=np.ones_like(load), where=mean > 0)
    return relative


def device_load(outcome: PlanOutcome, cost: StepCost) -> np.ndarray:
    """[L, G] token assignments over the device's speed, relative to the mean of the layer."""
    return relative_load(cost.device_tokens / outcome.cluster.speed_factors)


def quotient(value: float, by: float) -> float:
    """``value / by``, or not-a-number where there is nothing to divide by."""
    return value / by if by > 0 else math.nan
