"""How many redundant slots pay: step time against memory, and what cleverer division would add.

For every number of redundant slots the planners decide afresh which experts get copies and where
they go. Tokens are priced three ways:

* **even**: every copy of an expert takes the same share, as serving engines do;
* **fixed shares**: the shares that suit the mean loads of the part that was planned on;
* **ideal**: the best shares of every batch and layer (``token_split.py``), which LPLB computes on
  the device. No division of tokens among these copies is more even.

The last two change the seconds of the experts; the all-to-alls are taken as with even division.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moesim.cluster import Cluster
from moesim.errors import InfeasibleError, UsageError
from moesim.memory import check_memory
from moesim.model import ModelSpec
from moesim.placement import Placement
from moesim.planners.outcome import PlanRequest
from moesim.planners.registry import find_planner, run_planner
from moesim.planners.search_cost import histograms
from moesim.planners.setting import (
    expert_slots,
    model_and_cluster,
    placement_problem,
    workload,
)
from moesim.planners.sources import PlanWorkload
from moesim.planners.token_split import even_split, ideal_split, split_by_weights
from moesim.step import StepCost, StepEvaluator

__all__ = ["LARGEST", "ReplicaPoint", "ReplicaSweep", "default_redundant", "replica_sweep"]

AUTO = ("lpt-swap", "joint")
"""What ``auto`` runs at every point: the most even placement, and the search on seconds."""

LARGEST = 64
"""Redundant slots that a sweep goes to unless told otherwise: twice DeepSeek's 32 (V3 §3.4.1)."""

CLOSE = 0.01
"""More slots must save more than this share of a step to be worth their memory."""


@dataclass(frozen=True)
class ReplicaPoint:
    """One number of redundant slots.

    Attributes:
        redundant: Slots per layer beyond one per expert.
        placement: The planner's.
        planner: Whose placement it is.
        device_bytes: Routed experts' weights on every device.
        added_bytes: Weights of the redundant slots, on all devices together.
        step: With even division, on the part of the trace that was kept back if there is one.
        fixed_share_s: Seconds of a step with fixed shares.
        ideal_s: Seconds of a step with the ideal division.
        ideal_balance: Mean over batches and layers of mean over largest device load, divided so.
        copied: Mean over layers of the experts that have copies.
        most_copies: Of one expert, in any layer.
        solve_s: Of the planner.
    """

    redundant: int
    placement: Placement
    planner: str
    device_bytes: float
    added_bytes: float
    step: StepCost
    fixed_share_s: float
    ideal_s: float
    ideal_balance: float
    copied: float
    most_copies: int
    solve_s: float


@dataclass(frozen=True)
class ReplicaSweep:
    """All points, fewest slots first.

    Attributes:
        model: Sizes.
        cluster: Devices.
        work: The workload.
        request: What was asked.
        points: One per number of redundant slots.
        skipped: Numbers of redundant slots that do not fit, and why.
        recommended: Index of the point with the fewest slots within 1 % of the fastest.
    """

    model: ModelSpec
    cluster: Cluster
    work: PlanWorkload
    request: PlanRequest
    points: tuple[ReplicaPoint, ...]
    skipped: dict[int, str]
    recommended: int


def default_redundant(experts: int, devices: int) -> list[int]:
    """Numbers of redundant slots up to ``LARGEST`` (at least two) that divide by the devices."""
    first = -experts % devices
    numbers = list(range(first, max(LARGEST, first + devices) + 1, devices))
    step = -(-len(numbers) // 9)  # nine points at most
    return numbers[::step]


def replica_sweep(
    request: PlanRequest,
    redundant: Sequence[int] | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> ReplicaSweep:
    """Plan and price every number of redundant slots.

    Args:
        request: What to plan; its ``redundant`` is not read, its time limit is for all points.
        redundant: Slots per layer beyond one per expert; :func:`default_redundant` unless given.
        say: Told of each step as it starts.

    Raises:
        UsageError: If options contradict each other.
        InputError: If an input cannot be used, or slots do not divide by the devices.
        InfeasibleError: If the experts fit with none of the numbers.
    """
    planners = AUTO if request.planner == "auto" else (request.planner,)
    for name in planners:
        if not find_planner(name).engine_ready:
            raise UsageError(
                f"--planner {name} places no copies\nfix: choose a planner that does, like lpt-swap"
            )
    model, cluster = model_and_cluster(request)
    numbers = redundant or default_redundant(model.experts, cluster.devices)
    slots = {number: expert_slots(model, cluster, number) for number in sorted(set(numbers))}
    skipped = {}
    for number, count in slots.items():
        try:
            check_memory(model, cluster, count)
        except InfeasibleError as error:
            skipped[number] = str(error).replace("\nfix: ", "; ")
    fitting = {number: count for number, count in slots.items() if number not in skipped}
    if not fitting:
        raise InfeasibleError(next(iter(skipped.values())).replace("; use", "\nfix: use"))
    say("reading the trace")
    work = workload(request, model, cluster)
    share = replace(request, time_limit_s=request.time_limit_s / len(fitting))
    points = []
    for number, count in fitting.items():
        say(f"{number} redundant slots")
        points.append(_point(share, model, cluster, work, number, count, planners))
    fastest = min(point.step.step_s for point in points)
    recommended = next(
        index for index, point in enumerate(points) if point.step.step_s <= fastest * (1 + CLOSE)
    )
    return ReplicaSweep(model, cluster, work, request, tuple(points), skipped, recommended)


def _point(
    request: PlanRequest,
    model: ModelSpec,
    cluster: Cluster,
    work: PlanWorkload,
    redundant: int,
    slots: int,
    planners: Sequence[str],
) -> ReplicaPoint:
    problem = placement_problem(request, model, cluster, work, slots)
    found = []
    for name in planners:
        answer = run_planner(name, problem)
        placement = Placement(
            answer.physical_to_logical, cluster.devices, model.experts, work.moe_layers
        )
        found.append((work.planning.evaluate(placement), name, placement, answer.solve_s))
    cost, name, placement, solve_s = min(found, key=lambda one: one[0].step_s)
    priced = work.holdout or work.planning
    step = cost if work.holdout is None else priced.evaluate(placement)
    loads = histograms(priced.batches).transpose(1, 0, 2).astype(np.float64)  # [W, L, E]
    speeds = cluster.speed_factors
    weights = ideal_split(work.loads[None], placement, speeds).slot_tokens[0]
    ideal = ideal_split(loads, placement, speeds)
    even_s = _experts_s(priced, placement, even_split(loads, placement))
    fixed_s = _experts_s(priced, placement, split_by_weights(loads, placement, weights))
    ideal_s = _experts_s(priced, placement, ideal.slot_tokens)
    mean = loads.sum(2) / speeds.sum()
    count = placement.replica_count()
    layers = len(model.moe_layers) / model.variant.layer_reuse
    slot_bytes = layers * model.expert_weight_bytes
    return ReplicaPoint(
        redundant=redundant,
        placement=placement,
        planner=name,
        device_bytes=slot_bytes * slots / cluster.devices,
        added_bytes=slot_bytes * redundant,
        step=step,
        fixed_share_s=step.step_s - even_s + fixed_s,
        ideal_s=step.step_s - even_s + ideal_s,
        ideal_balance=float((mean / np.maximum(ideal.finish, 1e-300)).clip(max=1).mean()),
        copied=float((count > 1).sum(1).mean()),
        most_copies=int(count.max()),
        solve_s=solve_s,
    )


def _experts_s(evaluator: StepEvaluator, placement: Placement, slot_tokens: np.ndarray) -> float:
    """Σ over layers of the slowest device's seconds, mean over batches, of [W, L, S] tokens."""
    devices = placement.devices
    per_device = slot_tokens.reshape(*slot_tokens.shape[:2], devices, placement.slots_per_device)
    seconds = evaluator.expert_cost.time(per_device).total_s / evaluator.cluster.speed_factors
    return float(seconds.max(axis=2).mean(axis=0).sum())
