"""From a routing trace to a placement: run planners, re-check them, price them, choose one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import moesim
from moesim.bound import step_lower_bound
from moesim.cluster import Cluster
from moesim.errors import InfeasibleError, InputError, UsageError
from moesim.measured_kernels import MeasuredKernels
from moesim.memory import check_memory
from moesim.model import ModelSpec
from moesim.placement import Placement, read_plan
from moesim.planners.align import align
from moesim.planners.migration import Migration, migration
from moesim.planners.moves import limit_moves
from moesim.planners.outcome import Bound, PlannerScore, PlanOutcome, PlanRequest
from moesim.planners.problem import PlacementProblem
from moesim.planners.registry import PLANNERS, find_planner, run_planner
from moesim.planners.setting import (
    expert_slots,
    model_and_cluster,
    placement_problem,
    workload,
)
from moesim.planners.sources import PlanWorkload
from moesim.safe_io import sha256_file

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BASELINE", "make_plan"]

AUTO = (
    "contiguous",
    "random",
    "lpt",
    "lpt-swap",
    "eplb",
    "eplb-global",
    "cooccurrence",
    "exflow",
    "grace",
    "moetuner",
    "joint",
)
"""What ``auto`` runs and compares: one of every kind whose plan engines can load."""

FREE = (*AUTO, "lpt-swap-free", "moetuner-free")
"""What ``auto`` runs where devices may hold unequally many experts in a layer."""

BASELINE = "contiguous"
"""What engines do without a plan, so what every gain is counted against."""


def make_plan(request: PlanRequest, say: Callable[[str], object] = lambda _: None) -> PlanOutcome:
    """Plan the placement of every expert.

    Args:
        request: What to plan.
        say: Told of each step as it starts.

    Raises:
        UsageError: If options contradict each other.
        InputError: If trace, model, cluster or warm start cannot be used or do not fit together.
        InfeasibleError: If the experts do not fit into the devices' memory, or a solver proves
            that no placement exists.
    """
    if request.max_moves is not None and request.warm_start is None:
        raise UsageError(
            "--max-moves counts changes against a plan\nfix: give it with --warm-start FILE"
        )
    free = request.slots == "free-per-layer"
    auto = FREE if free else AUTO
    wanted: tuple[str, ...] = auto if request.planner == "auto" else (request.planner,)
    names = [BASELINE, *wanted, *request.beside]
    for name in names:
        find_planner(name)
    if free and wanted != auto and PLANNERS[request.planner].engine_ready:
        raise UsageError(
            f"--slots free-per-layer: {request.planner} gives every device equally many slots\n"
            "fix: use --planner lpt-swap-free or moetuner-free, or leave out --slots"
        )
    model, cluster = model_and_cluster(request)
    slots = expert_slots(model, cluster, request.redundant)
    wanted, skipped = _that_fit(wanted, model, cluster, slots)
    say("reading the trace")
    work = workload(request, model, cluster)
    problem = placement_problem(request, model, cluster, work, slots)
    scores = {}
    for name in dict.fromkeys((BASELINE, *wanted, *request.beside)):
        say(f"planner {name}")
        try:
            scores[name] = _run(name, problem, work)
        except InfeasibleError as error:
            if wanted == (name,):
                raise
            skipped[name] = str(error).replace("\nfix: ", "; ")
    candidates = [name for name in scores if name in wanted]
    chosen = min(candidates, key=lambda name: scores[name].cost.step_s)
    if request.warm_start is not None:
        scores, chosen = _with_current(request, request.warm_start, problem, work, scores, chosen)
    say("bounding the step time from below")
    placement = scores[chosen].placement
    bound_s = step_lower_bound(
        work.planning,
        placement.slots,
        tighten_s=request.time_limit_s,
        known=None if (placement.physical_to_logical < 0).any() else placement,
    )
    step_s = scores[chosen].cost.step_s
    return PlanOutcome(
        model=model,
        cluster=cluster,
        trace_name=work.name,
        trace_sha256=work.sha256,
        trace_note=work.note,
        tokens=work.tokens,
        moe_layers=work.moe_layers,
        experts=model.experts,
        top_k=model.top_k,
        loads=work.loads,
        holdout_fraction=request.holdout if work.holdout else 0.0,
        comm=request.comm,
        phase=request.phase,
        tokens_per_device=work.planning.batches.tokens_per_device,
        redundant=request.redundant,
        seed=request.seed,
        cost=str(request.cost),
        engine=request.engine,
        kernels=work.planning.kernels,
        scores=scores,
        chosen=chosen,
        baseline=BASELINE,
        bound=Bound(bound_s, step_s / bound_s - 1, step_s <= bound_s * (1 + 1e-9)),
        command=request.command,
        version=moesim.__version__,
        inputs=_inputs(request, work),
        skipped=skipped,
        planning_batches=work.planning.batches,
        holdout_batches=work.holdout.batches if work.holdout else None,
        migration=_migration(scores, placement, model, cluster),
    )


def _that_fit(
    wanted: tuple[str, ...], model: ModelSpec, cluster: Cluster, slots: int
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The planners whose plans can be loaded, and why the others' cannot.

    Raises:
        InfeasibleError: If none can.
    """
    following = tuple(name for name in wanted if PLANNERS[name].follows_memory)
    check_memory(model, cluster, slots, free=bool(following))
    try:
        check_memory(model, cluster, slots)
    except InfeasibleError as error:
        reason = str(error).replace("\nfix: ", "; ")
        return following, {name: reason for name in wanted if name not in following}
    return wanted, {}


def _run(name: str, problem: PlacementProblem, work: PlanWorkload) -> PlannerScore:
    answer = run_planner(name, problem)
    placement = Placement(
        answer.physical_to_logical, problem.devices, problem.loads.shape[1], work.moe_layers
    )
    return _score(
        name,
        placement,
        work,
        answer.solve_s,
        str(answer.outcome),
        PLANNERS[name].summary,
        dict(answer.detail),
    )


def _score(
    name: str,
    placement: Placement,
    work: PlanWorkload,
    solve_s: float,
    outcome: str,
    summary: str,
    detail: dict[str, float | str] | None = None,
) -> PlannerScore:
    return PlannerScore(
        name=name,
        placement=placement,
        cost=work.planning.evaluate(placement),
        holdout=work.holdout.evaluate(placement) if work.holdout else None,
        solve_s=solve_s,
        outcome=outcome,
        summary=summary,
        detail=detail or {},
    )


def _with_current(
    request: PlanRequest,
    file: Path,
    problem: PlacementProblem,
    work: PlanWorkload,
    scores: dict[str, PlannerScore],
    chosen: str,
) -> tuple[dict[str, PlannerScore], str]:
    """Add the plan in use and, under a move budget, the best that the budget allows."""
    _, current = read_plan(file)
    for what, found, needed in (
        ("slots", current.slots, problem.slots),
        ("devices", current.devices, problem.devices),
        ("experts", current.experts, problem.loads.shape[1]),
        ("moe_layers", current.moe_layers, work.moe_layers),
    ):
        if found != needed:
            raise InputError(
                "the plan is for another set-up",
                file=file,
                field=what,
                found=found,
                allowed=str(needed),
                fix="use the plan's own --model, --cluster and --redundant",
            )
    scores = dict(scores)
    scores["current"] = _score("current", current, work, 0.0, "given", "the plan in use now")
    wanted = scores[chosen]
    named = align(
        current, wanted.placement, work.planning.cluster, by_layer=request.comm == "home-rank"
    )
    scores[chosen] = _score(
        chosen, named, work, wanted.solve_s, wanted.outcome, wanted.summary, wanted.detail
    )
    if request.max_moves is not None:
        limited = limit_moves(
            scores["current"].placement,
            scores[chosen].placement,
            scores["current"].cost,
            scores[chosen].cost,
            request.max_moves,
        )
        name = f"{chosen}-limited"
        scores[name] = _score(
            name,
            limited.placement,
            work,
            scores[chosen].solve_s,
            "heuristic",
            f"{chosen}, at most {request.max_moves} moved slots",
            {"moves": float(limited.moves)},
        )
        chosen = name
    if scores["current"].cost.step_s <= scores[chosen].cost.step_s:
        chosen = "current"
    return scores, chosen


def _migration(
    scores: dict[str, PlannerScore], chosen: Placement, model: ModelSpec, cluster: Cluster
) -> Migration | None:
    """From the plan in use, if there is one."""
    if "current" not in scores:
        return None
    return migration(scores["current"].placement, chosen, model, cluster)


def _inputs(request: PlanRequest, work: PlanWorkload) -> dict[str, str]:
    """Name and hash of every file that went in; registry entries belong to the version."""
    hashes = {"trace" if request.load is None else "load": work.sha256}
    named = (
        ("warm start", request.warm_start),
        ("model", request.model),
        ("cluster", request.cluster),
        ("cost", request.cost.path if isinstance(request.cost, MeasuredKernels) else None),
    )
    for name, value in named:
        if value and Path(value).is_file():
            hashes[name] = sha256_file(value)
    return hashes
