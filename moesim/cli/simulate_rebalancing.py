"""``moesim simulate rebalancing``: when to plan placements again while use of experts drifts."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.choices import CommOption, CostOption, EngineOption, PhaseOption, TransformOption
from moesim.cli.console import (
    Console,
    JsonOption,
    QuietOption,
    ResultOutOption,
    SeedOption,
    listed,
)
from moesim.cli.plan_options import (
    ClusterOption,
    DistinctCopiesOption,
    ModelOption,
    PlanCommOption,
    PlanCostOption,
    PlanEngineOption,
    PlanPhaseOption,
    TokensPerDeviceOption,
    TraceArgument,
    positive_seconds,
)

if TYPE_CHECKING:
    from moesim.planners.rebalancing import Rebalancing

__all__ = ["rebalancing"]


def rebalancing(
    trace: TraceArgument = None,
    model: ModelOption = None,
    transform: TransformOption = None,
    cluster: ClusterOption = None,
    planner: Annotated[str, typer.Option(help="Who plans.")] = "eplb",
    redundant: Annotated[int, typer.Option(help="Slots per layer for copies of experts.")] = 0,
    distinct_copies: DistinctCopiesOption = False,
    max_moves: Annotated[
        int | None, typer.Option(help="Experts that may move at once, the best layers first.")
    ] = None,
    policies: Annotated[
        str | None,
        typer.Option(help="contiguous, frozen, periodic, threshold, oracle; all if left out."),
    ] = None,
    window_tokens: Annotated[int, typer.Option(help="Tokens of the trace in a window.")] = 2048,
    steps: Annotated[
        int, typer.Option(help="Engine steps that a window stands for (SGLang: 1000).")
    ] = 1000,
    history: Annotated[int, typer.Option(help="Past windows that a plan is made from.")] = 1,
    period: Annotated[int, typer.Option(help="Windows between two plans of periodic.")] = 1,
    below: Annotated[
        float, typer.Option(help="Mean/max device load under which threshold plans again.")
    ] = 0.7,
    pause: Annotated[
        float, typer.Option(help="Seconds without steps of a change (measured: 2 to 3).")
    ] = 2.5,
    comm: PlanCommOption = CommOption.HOME_RANK,
    phase: PlanPhaseOption = PhaseOption.DECODE,
    tokens_per_device: TokensPerDeviceOption = None,
    cost: PlanCostOption = CostOption.FITTED,
    kernels_of: PlanEngineOption = EngineOption.SGLANG,
    time_limit: Annotated[float, typer.Option(help="Seconds for a planner, each time.")] = 5.0,
    out: ResultOutOption = None,
    seed: SeedOption = 0,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Walk a trace window by window and compare policies of planning again.

    Plans are made from past windows only; oracle alone knows the window it plans for, and moves
    for free. Without a trace the bundled sample is walked: seven kinds of text, one after another.
    """
    from moesim.planners.outcome import PlanRequest
    from moesim.planners.rebalancing import POLICIES, Drift, simulate_rebalancing

    console = Console(as_json=as_json, quiet=quiet, out=out)
    drift = Drift(window_tokens, steps, history, period, below, pause)
    request = PlanRequest(
        trace=trace,
        model=model,
        transforms=tuple(transform or ()),
        cluster=cluster,
        planner=planner,
        redundant=redundant,
        distinct_copies=distinct_copies,
        max_moves=max_moves,
        comm=comm.value,
        phase=phase.value,
        tokens_per_device=tokens_per_device,
        time_limit_s=positive_seconds(time_limit, "--time-limit"),
        holdout=0.0,
        seed=seed,
        cost=cost.value,
        engine=kernels_of.value,
    )
    with console.progress("walking the trace") as say:
        found = simulate_rebalancing(request, drift, listed(policies) or POLICIES, say)
    console.result(_to_json(found), _text(found))


def _to_json(found: Rebalancing) -> dict[str, Any]:
    import moesim

    base = found.runs["contiguous"]
    return {
        "schema": "moesim.simulate/1",
        "ok": True,
        "simulation": "rebalancing",
        "model": found.model.name,
        "cluster": found.cluster.name,
        "trace": found.trace_name,
        "trace_sha256": found.trace_sha256,
        "planner": found.request.planner,
        "redundant": found.request.redundant,
        "comm": found.request.comm,
        "phase": found.request.phase,
        "drift": asdict(found.drift),
        "domains": list(found.domains),
        "policies": {
            name: {
                "total_s": run.total_s,
                "stepping_s": run.stepping_s,
                "paused_s": run.paused_s,
                "speedup": base.total_s / run.total_s,
                "speedup_without_pauses": base.stepping_s / run.stepping_s,
                "rebalances": run.rebalances,
                "moves": sum(window.moves for window in run.windows),
                "moved_bytes": sum(window.moved_bytes for window in run.windows),
                "balance": sum(window.balance for window in run.windows) / len(run.windows),
                "worst_balance": min(window.balance for window in run.windows),
                "windows": [asdict(window) for window in run.windows],
            }
            for name, run in found.runs.items()
        },
        "evidence": found.evidence,
        "seed": found.request.seed,
        "version": moesim.__version__,
    }


def _text(found: Rebalancing) -> str:
    from moesim.units import format_seconds, format_si

    drift, base = found.drift, found.runs["contiguous"]
    lines = [
        f"{found.model.name} on {found.cluster.name}, {found.request.phase}: "
        f"{len(base.windows)} windows of {drift.window_tokens:,} tokens, each for "
        f"{drift.steps:,} steps; planner {found.request.planner}, plans from "
        f"{drift.history} past window{'s' if drift.history > 1 else ''}; a change pauses "
        f"{format_seconds(drift.pause_s)} or as long as the links take",
        "",
        f"{'policy':<12}{'total':>10}{'speedup':>9}{'no pauses':>11}{'changes':>9}{'paused':>10}"
        f"{'moved':>10}{'balance':>9}{'worst':>7}",
    ]
    for name, run in found.runs.items():
        moved = sum(window.moved_bytes for window in run.windows)
        balance = sum(window.balance for window in run.windows) / len(run.windows)
        worst = min(window.balance for window in run.windows)
        lines.append(
            f"{name:<12}{format_seconds(run.total_s):>10}{base.total_s / run.total_s:>8.2f}×"
            f"{base.stepping_s / run.stepping_s:>10.2f}×{run.rebalances:>9}"
            f"{format_seconds(run.paused_s) if run.paused_s else '-':>10}"
            f"{format_si(moved, 'B') if moved else '-':>10}{balance:>9.2f}{worst:>7.2f}"
        )
    if found.domains:
        lines += ["", *_by_domain(found)]
    return "\n".join(lines)


def _by_domain(found: Rebalancing) -> list[str]:
    """Speed of steps over contiguous placement, by the domain of the windows."""
    names = [name for name in found.runs if name != "contiguous"]
    base = found.runs["contiguous"].windows
    lines = [f"{'steps in':<12}" + "".join(f"{name:>11}" for name in names)]
    for domain in dict.fromkeys(found.domains):
        places = [place for place, name in enumerate(found.domains) if name == domain]
        total = sum(base[place].step_s for place in places)
        cells = (
            total / sum(found.runs[name].windows[place].step_s for place in places)
            for name in names
        )
        lines.append(f"{domain[:11]:<12}" + "".join(f"{cell:>10.2f}×" for cell in cells))
    return lines
