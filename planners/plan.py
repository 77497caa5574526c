"""From a routing trace to a placement: run planners, re-check them, price them, choose one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import moesim
from moesim.bound import step_lower_bound
from moesim.cluster import Cluster, load_cluster
from moesim.errors import InfeasibleError, InputError, UsageError
from moesim.memory import check_memory
from moesim.model import ModelSpec, load_model
from moesim.model.transforms import check_routing_of_trace, transform_model
from moesim.placement import Placement, read_plan
from moesim.planners.moves import limit_moves
from moesim.planners.outcome import Bound, PlannerScore, PlanOutcome, PlanRequest
from moesim.planners.problem import PlacementProblem
from moesim.planners.registry import PLANNERS, find_planner, run_planner
from moesim.planners.sources import PlanWorkload, from_counts, from_trace
from moesim.safe_io import sha256_file
from moesim.step import StepEvaluator
from moesim.traces.bundle import open_trace

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BASELINE", "make_plan"]

AUTO = ("contiguous", "random", "lpt", "lpt-swap", "eplb", "moetuner", "joint")
"""What ``auto`` runs and compares: one of every kind whose plan engines can load."""

BASELINE = "contiguous"
"""What engines do without a plan, so what every gain is counted against."""

SAMPLE_MODEL = "small-moe-30b-dims"
SAMPLE_CLUSTER = "2x8xh100_sxm"


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
    if request.trace and request.load:
        raise UsageError(
            "a TRACE and --load COUNTS were both given\n"
            "fix: leave out one of them (TRACE or --load)"
        )
    if request.max_moves is not None and request.warm_start is None:
        raise UsageError(
            "--max-moves counts changes against a plan\nfix: give it with --warm-start FILE"
        )
    names = [BASELINE, *([request.planner] if request.planner != "auto" else AUTO)]
    names += request.beside
    for name in names:
        find_planner(name)
    sample = request.trace is None and request.load is None
    cluster = load_cluster(request.cluster or SAMPLE_CLUSTER)
    model = transform_model(_model(request, sample), request.transforms)
    check_routing_of_trace(model)
    slots = _slots(model, cluster, request.redundant)
    check_memory(model, cluster, slots)
    say("reading the trace")
    if request.load is not None:
        work = from_counts(request, request.load, model, cluster)
    else:
        work = from_trace(request, model, cluster)
    problem = PlacementProblem(
        loads=work.loads,
        devices=cluster.devices,
        nodes=int(cluster.domain_of_device.max()) + 1,
        slots=slots,
        routing_groups=model.routing_groups,
        speed_factors=cluster.speed_factors,
        transitions=work.transitions,
        pair_bandwidth_bytes_per_s=cluster.pair_bandwidth_bytes_per_s,
        seed=request.seed,
        time_limit_s=request.time_limit_s,
        cost=work.search,
    )
    scores, skipped = {}, {}
    for name in dict.fromkeys(names):
        say(f"planner {name}")
        try:
            scores[name] = _run(name, problem, work)
        except InfeasibleError as error:
            if request.planner == name:
                raise
            skipped[name] = str(error).replace("\nfix: ", "; ")
    wanted = AUTO if request.planner == "auto" else (request.planner,)
    candidates = [name for name in scores if name in wanted]
    chosen = min(candidates, key=lambda name: scores[name].cost.step_s)
    if request.warm_start is not None:
        scores, chosen = _with_current(request, request.warm_start, problem, work, scores, chosen)
    say("bounding the step time from below")
    placement = scores[chosen].placement
    bound_s = step_lower_bound(work.planning, placement.slots)
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
        cost=request.cost,
        engine=request.engine,
        kernels=_kernels(work.planning),
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
    )


def _model(request: PlanRequest, sample: bool) -> ModelSpec:
    if request.model is not None:
        return load_model(request.model)
    if sample:
        return load_model(SAMPLE_MODEL)
    if request.trace is None:
        raise UsageError(
            "--load needs --model: counts do not say which model they are of\n"
            "fix: pass --model NAME or --model path/to/config.json"
        )
    name = open_trace(request.trace).manifest.model
    try:
        return load_model(name)
    except (InputError, UsageError) as error:
        raise UsageError(
            f"the trace names the model {name!r}, which is not in the registry\n"
            "fix: pass --model NAME or --model path/to/config.json"
        ) from error


def _slots(model: ModelSpec, cluster: Cluster, redundant: int) -> int:
    if redundant < 0:
        raise UsageError(
            f"--redundant must be at least 0; found {redundant}\nfix: pass --redundant 0 or more"
        )
    slots = model.experts + redundant
    if slots % cluster.devices:
        fix = -model.experts % cluster.devices
        raise InputError(
            "the slots do not divide by the devices",
            field="--redundant",
            found=f"{model.experts} experts + {redundant} redundant on {cluster.devices} devices",
            allowed="experts + redundant a multiple of the devices",
            fix=f"pass --redundant {fix} (or {fix + cluster.devices}), or use another cluster",
        )
    return slots


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


def _kernels(evaluator: StepEvaluator) -> dict[str, str]:
    """What priced each half of a layer, and what it rests on."""
    experts = evaluator.expert_cost
    found = {"experts": f"{experts.name} ({experts.evidence})"}
    if evaluator.cluster.devices > 1:
        links = evaluator.link_cost
        found["communication"] = f"{links.name} ({links.evidence})"
    return found


def _inputs(request: PlanRequest, work: PlanWorkload) -> dict[str, str]:
    """Name and hash of every file that went in; registry entries belong to the version."""
    hashes = {"trace" if request.load is None else "load": work.sha256}
    named = (
        ("warm start", request.warm_start),
        ("model", request.model),
        ("cluster", request.cluster),
    )
    for name, value in named:
        if value and Path(value).is_file():
            hashes[name] = sha256_file(value)
    return hashes
