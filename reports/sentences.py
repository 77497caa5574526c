"""What a report says about a plan in sentences, from the outcome's numbers alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesim.reports.arithmetic import holdout_speedup, speedup
from moesim.reports.text import clean, count, excess, ratio, share
from moesim.units import format_seconds

if TYPE_CHECKING:
    from moesim.planners.outcome import PlanOutcome

__all__ = ["bound", "headline", "holdout", "planned", "time"]

EVEN = 0.005
"""Two step times closer than this fraction are called equal in the headline."""


def headline(outcome: PlanOutcome) -> str:
    """What came of it: the chosen planner against the baseline."""
    chosen, gain = clean(outcome.scores[outcome.chosen].name), speedup(outcome, outcome.chosen)
    baseline = clean(outcome.scores[outcome.baseline].name)
    if outcome.chosen == outcome.baseline:
        return _headline_of_baseline(outcome, chosen)
    if gain > 1 + EVEN:
        text = f"{chosen} runs the expert layers {ratio(gain)} as fast as {baseline} placement"
        unseen = holdout_speedup(outcome, outcome.chosen)
        lost = unseen is not None and unseen <= 1 + EVEN
        return f"{text}, but not on the held-out part" if lost else text
    if gain < 1 - EVEN:
        return f"{chosen} is slower than {baseline} placement: {ratio(gain)} its speed"
    return f"{chosen} is as fast as {baseline} placement, within {share(EVEN)}"


def _headline_of_baseline(outcome: PlanOutcome, baseline: str) -> str:
    best = min(outcome.scores, key=lambda key: outcome.scores[key].cost.step_s)
    gain = speedup(outcome, best)
    step = format_seconds(outcome.scores[outcome.baseline].cost.step_s)
    if len(outcome.scores) == 1:
        return f"{baseline} placement takes {step} per step"
    if gain > 1 + EVEN:
        name = clean(outcome.scores[best].name)
        return f"{baseline} placement takes {step} per step; {name} is {ratio(gain)} as fast"
    return f"No planner beats {baseline} placement here"


def planned(outcome: PlanOutcome) -> str:
    """What was planned, for which model and cluster."""
    cluster, placement = outcome.cluster, outcome.scores[outcome.chosen].placement
    layers = len(outcome.moe_layers)
    nodes = "one node" if cluster.nodes == 1 else f"{cluster.nodes} nodes"
    slots = _some(placement.slots_per_device, "expert slot")
    replicas = _some(outcome.redundant, "replica")
    return clean(
        f"{outcome.model.name}: {layers} MoE layers with {outcome.experts} experts, "
        f"top-{outcome.top_k}, on {cluster.name}, which is {cluster.devices} × "
        f"{cluster.device.name} in {nodes}; {slots} per device and layer, "
        f"{replicas} per layer."
    )


def time(outcome: PlanOutcome) -> str:
    """How long a step takes, before and after."""
    chosen, baseline = outcome.scores[outcome.chosen], outcome.scores[outcome.baseline]
    text = (
        f"A {outcome.phase} step with {count(outcome.tokens_per_device)} tokens per device spends "
        f"{format_seconds(chosen.cost.step_s)} in its expert layers"
    )
    if outcome.chosen != outcome.baseline:
        text += f", against {format_seconds(baseline.cost.step_s)} with {baseline.name} placement"
    return clean(text + ".")


def holdout(outcome: PlanOutcome) -> str:
    """How the plan does on what the planners did not see."""
    unseen = outcome.scores[outcome.chosen].holdout
    if unseen is None:
        return (
            "No part of the trace was held out, so nothing here tells how the plan does on "
            "traffic that it has not seen."
        )
    text = (
        f"On the {share(outcome.holdout_fraction)} of the trace that the planners did not see, "
        f"a step takes {format_seconds(unseen.step_s)}"
    )
    gain = holdout_speedup(outcome, outcome.chosen)
    baseline = outcome.scores[outcome.baseline].name
    if outcome.chosen != outcome.baseline and gain is not None:
        text += f", {ratio(gain)} the speed of {baseline} placement there"
    return clean(text + ".")


def bound(outcome: PlanOutcome) -> str:
    """How far from the best possible, and whether that is proven."""
    best, name = outcome.bound, outcome.scores[outcome.chosen].name
    if best.lower_bound_s <= 0:
        return "No useful lower bound is known for this problem."
    limit = format_seconds(best.lower_bound_s)
    if best.proven:
        return clean(
            f"Proven optimal: no placement with these slots takes less than {limit} per step, "
            f"and {name} takes just that."
        )
    parts = " It adds the least that experts and travel between layers take, each by itself."
    return clean(
        f"No placement with these slots takes less than {limit} per step. {name} is "
        f"{excess(best.gap)} above that bound; whether the bound can be reached is open."
        f"{parts if outcome.comm == 'chain' else ''}"
    )


def _some(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"
