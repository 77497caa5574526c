"""``moesim whatif replicas``: what redundant expert slots cost and bring."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.choices import (
    FITTED,
    CommOption,
    CostOption,
    EngineOption,
    PhaseOption,
    TransformOption,
)
from moesim.cli.console import Console, JsonOption, OutOption, QuietOption, SeedOption
from moesim.cli.plan_options import (
    ClusterOption,
    DistinctCopiesOption,
    HoldoutOption,
    LoadOption,
    ModelOption,
    PlanCommOption,
    PlanEngineOption,
    PlanPhaseOption,
    TokensPerDeviceOption,
    TraceOption,
    positive_seconds,
)

if TYPE_CHECKING:
    from moesim.planners.replica_sweep import ReplicaPoint, ReplicaSweep

__all__ = ["replicas"]

MOST_SLOTS = 65_536
"""Guard against a number that was meant to be something else."""


def replicas(
    trace: TraceOption = None,
    load: LoadOption = None,
    model: ModelOption = None,
    transform: TransformOption = None,
    cluster: ClusterOption = None,
    redundant: Annotated[
        str | None,
        typer.Option(help="Redundant slots per layer, separated by commas [up to 64]."),
    ] = None,
    planner: Annotated[
        str, typer.Option(help="A planner's name, or auto: the better of lpt-swap and joint.")
    ] = "auto",
    distinct_copies: DistinctCopiesOption = False,
    comm: PlanCommOption = CommOption.HOME_RANK,
    phase: PlanPhaseOption = PhaseOption.PREFILL,
    tokens_per_device: TokensPerDeviceOption = None,
    cost: CostOption = FITTED,
    kernels_of: PlanEngineOption = EngineOption.SGLANG,
    time_limit: Annotated[float, typer.Option(help="Seconds for all planning together.")] = 30.0,
    holdout: HoldoutOption = 0.25,
    out: OutOption = None,
    seed: SeedOption = 0,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Step time against redundant expert slots, and what dividing tokens unevenly would add.

    With --out, report.html, whatif-replicas.json and whatif-replicas-plan.json (the recommended
    placement) are written there.
    """
    from moesim.cost_model import cost_model
    from moesim.offload.inputs import numbers
    from moesim.placement import write_plan
    from moesim.planners.outcome import PlanRequest
    from moesim.planners.replica_sweep import replica_sweep
    from moesim.reports.replicas_report import write_replicas_page
    from moesim.safe_io import write_json

    console = Console(as_json=as_json, quiet=quiet)
    request = PlanRequest(
        trace=trace,
        load=load,
        model=model,
        transforms=tuple(transform or ()),
        cluster=cluster,
        planner=planner,
        distinct_copies=distinct_copies,
        comm=comm.value,
        phase=phase.value,
        tokens_per_device=tokens_per_device,
        time_limit_s=positive_seconds(time_limit, "--time-limit"),
        holdout=holdout,
        seed=seed,
        cost=cost_model(cost),
        engine=kernels_of.value,
    )
    given = None if redundant is None else numbers("--redundant", redundant, 0, MOST_SLOTS)
    with console.progress("planning") as say:
        found = replica_sweep(request, given, say)
    files: dict[str, str] = {}
    if out is not None:
        best = found.points[found.recommended]
        plan = write_plan(
            out / "whatif-replicas-plan.json",
            best.placement,
            model=found.model.name,
            cluster=found.cluster.name,
            planner=best.planner,
            trace_sha256=found.work.sha256,
        )
        command = shlex.join(["moesim", *sys.argv[1:]])
        files = {
            "report": str(write_replicas_page(found, out / "report.html", command)),
            "plan": str(plan),
            "result": str(out / "whatif-replicas.json"),
        }
    data = _to_json(found, files)
    if out is not None:
        write_json(out / "whatif-replicas.json", data)
    for number, reason in found.skipped.items():
        console.say(f"{number} redundant slots: {reason}")
    console.result(data, lambda: _show(found, files))


def _to_json(found: ReplicaSweep, files: dict[str, str]) -> dict[str, Any]:
    import moesim

    first, best = found.points[0], found.points[found.recommended]
    return {
        "schema": "moesim.whatif-replicas/1",
        "ok": True,
        "model": found.model.name,
        "cluster": found.cluster.name,
        "trace": found.work.name,
        "trace_sha256": found.work.sha256,
        "comm": found.request.comm,
        "phase": found.request.phase,
        "priced_on": "planning" if found.work.holdout is None else "holdout",
        "points": [_point(point, first) for point in found.points],
        "recommended": {
            "redundant": best.redundant,
            "step_s": best.step.step_s,
            "speedup": first.step.step_s / best.step.step_s,
            "added_bytes": best.added_bytes,
            "planner": best.planner,
        },
        "skipped": {str(number): reason for number, reason in found.skipped.items()},
        "evidence": best.step.evidence.value,
        "kernels": found.work.planning.kernels,
        "seed": found.request.seed,
        "files": files,
        "version": moesim.__version__,
    }


def _point(point: ReplicaPoint, first: ReplicaPoint) -> dict[str, Any]:
    step = point.step
    return {
        "redundant": point.redundant,
        "slots": point.placement.slots,
        "planner": point.planner,
        "device_bytes": point.device_bytes,
        "added_bytes": point.added_bytes,
        "step_s": step.step_s,
        "lo_s": step.lo_s,
        "hi_s": step.hi_s,
        "speedup": first.step.step_s / step.step_s,
        "experts_s": float(step.layer_compute_s.sum()),
        "communication_s": float((step.layer_dispatch_s + step.layer_combine_s).sum()),
        "balance": step.balance,
        "fixed_share_s": point.fixed_share_s,
        "ideal_s": point.ideal_s,
        "ideal_balance": point.ideal_balance,
        "experts_with_copies": point.copied,
        "most_copies": point.most_copies,
        "solve_s": point.solve_s,
    }


def _show(found: ReplicaSweep, files: dict[str, str]) -> None:
    from rich.console import Console as RichConsole

    from moesim.cli.whatif_replicas_terminal import show_replicas

    show_replicas(found, files, RichConsole())
