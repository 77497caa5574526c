"""What a request asks to plan: model, cluster, workload, and the problem for the planners."""

from __future__ import annotations

from moesim.cluster import Cluster, load_cluster
from moesim.errors import InputError, UsageError
from moesim.memory import expert_memory_bytes
from moesim.model import ModelSpec, load_model
from moesim.model.transforms import check_routing_of_trace, transform_model
from moesim.planners.outcome import PlanRequest
from moesim.planners.problem import PlacementProblem
from moesim.planners.sources import PlanWorkload, from_counts, from_trace
from moesim.traces.bundle import open_trace

__all__ = ["expert_slots", "model_and_cluster", "placement_problem", "workload"]

SAMPLE_MODEL = "small-moe-30b-dims"
SAMPLE_CLUSTER = "2x8xh100_sxm"


def model_and_cluster(request: PlanRequest) -> tuple[ModelSpec, Cluster]:
    """The model, changed as asked, and the cluster.

    Raises:
        UsageError: If trace and counts are both given, or nothing says which model it is.
        InputError: If model or cluster cannot be read.
    """
    if request.trace and request.load:
        raise UsageError(
            "a TRACE and --load COUNTS were both given\n"
            "fix: leave out one of them (TRACE or --load)"
        )
    sample = request.trace is None and request.load is None
    cluster = load_cluster(request.cluster or SAMPLE_CLUSTER)
    model = transform_model(_model(request, sample), request.transforms)
    check_routing_of_trace(model)
    return model, cluster


def workload(request: PlanRequest, model: ModelSpec, cluster: Cluster) -> PlanWorkload:
    """The routing that is planned for.

    Raises:
        InputError: If trace or counts cannot be used or do not fit the model.
    """
    if request.load is not None:
        return from_counts(request, request.load, model, cluster)
    return from_trace(request, model, cluster)


def placement_problem(
    request: PlanRequest, model: ModelSpec, cluster: Cluster, work: PlanWorkload, slots: int
) -> PlacementProblem:
    """What planners are asked, with S = ``slots`` per layer."""
    return PlacementProblem(
        loads=work.loads,
        devices=cluster.devices,
        nodes=int(cluster.domain_of_device.max()) + 1,
        slots=slots,
        routing_groups=model.routing_groups,
        speed_factors=cluster.speed_factors,
        transitions=work.transitions,
        coactivation=work.coactivation,
        pair_bandwidth_bytes_per_s=cluster.pair_bandwidth_bytes_per_s,
        seed=request.seed,
        time_limit_s=request.time_limit_s,
        memory_factors=None
        if cluster.memory_factors is None
        else expert_memory_bytes(model, cluster),
        distinct_copies=request.distinct_copies,
        cost=work.search,
    )


def expert_slots(model: ModelSpec, cluster: Cluster, redundant: int) -> int:
    """S, the slots per layer.

    Raises:
        UsageError: If there are fewer than no redundant ones.
        InputError: If they do not divide by the devices.
    """
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
