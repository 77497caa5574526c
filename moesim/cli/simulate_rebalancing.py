"""``moesim simulate rebalancing``: when to plan placements again while use of experts drifts."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
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
    cost: CostOption = FITTED,
    kernels_of: PlanEngineOption = EngineOption.SGLANG,
    time_limit: Annotated[float, typer.Option(help="Seconds for a planner, each time.")] = 5.0,
    html: Annotated[
        Path | None, typer.Option(help="File that receives the study as one page.")
    ] = None,
    out: ResultOutOption = None,
    seed: SeedOption = 0,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Walk a trace window by window and compare policies of planning again.

    Plans are made from past windows only; oracle alone knows the window it plans for, and moves
    for free. Without a trace the bundled sample is walked: seven kinds of text, one after another.
    """
    from moesim.cost_model import cost_model
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
        cost=cost_model(cost),
        engine=kernels_of.value,
    )
    with console.progress("walking the trace") as say:
        found = simulate_rebalancing(request, drift, listed(policies) or POLICIES, say)
    if html is not None:
        from moesim.reports.rebalancing_report import write_rebalancing_page

        written = write_rebalancing_page(found, html, shlex.join(["moesim", *sys.argv[1:]]))
        console.say(f"written: {written}")
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
                "tokens_per_s": found.tokens_per_s(name),
                "speedup": base.total_s / run.total_s,
                "speedup_without_pauses": base.stepping_s / run.stepping_s,
                "speedup_over_frozen": (
                    found.runs["frozen"].total_s / run.total_s if "frozen" in found.runs else None
                ),
                "rebalances": run.rebalances,
                "moves": run.moves,
                "moved_bytes": run.moved_bytes,
                "balance": run.balance,
                "worst_balance": run.worst_balance,
                "windows": [asdict(window) for window in run.windows],
            }
            for name, run in found.runs.items()
        },
        "evidence": found.evidence,
        "kernels": found.kernels,
        "seed": found.request.seed,
        "version": moesim.__version__,
    }


def _text(found: Rebalancing) -> str:
    from moesim.reports.rebalancing_report import (
        domain_table,
        policy_table,
        rebalancing_setting,
    )
    from moesim.reports.tables import aligned
    from moesim.reports.text import priced_by, sentence

    lines = [
        rebalancing_setting(found),
        sentence(priced_by(found.kernels)),
        "",
        *aligned(policy_table(found)),
    ]
    domains = domain_table(found)
    if domains is not None:
        lines += ["", *aligned(domains)]
    return "\n".join(lines)
