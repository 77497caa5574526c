"""``moesim plan``: where every expert goes."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli import plan_validate
from moesim.cli.choices import (
    FITTED,
    CommOption,
    CostOption,
    EngineOption,
    PhaseOption,
    SlotsOption,
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
    TraceArgument,
    positive_seconds,
)
from moesim.errors import InputError, PartialResultError, UsageError

if TYPE_CHECKING:
    from moesim.planners.outcome import PlanOutcome
    from moesim.step import StepCost

__all__ = ["SEE_ALSO", "plan"]

SEE_ALSO = "See also: moesim plan moge --help (Mixture of Grouped Experts)."

DEFAULT_OUT = Path("moesim-plan")
SERVING_ENGINES = ("sglang", "vllm", "vllm-ascend", "tensorrt-llm")


def plan(
    trace: TraceArgument = None,
    load: LoadOption = None,
    model: ModelOption = None,
    transform: TransformOption = None,
    cluster: ClusterOption = None,
    planner: Annotated[
        str, typer.Option(help="A planner's name, or auto: run those that suit, keep the best.")
    ] = "auto",
    redundant: Annotated[int, typer.Option(help="Slots per layer for copies of experts.")] = 0,
    slots: Annotated[
        SlotsOption,
        typer.Option(
            help="Equally many experts per device in every layer, or as memory allows over all "
            "layers (no serving engine loads that)."
        ),
    ] = SlotsOption.EQUAL,
    distinct_copies: DistinctCopiesOption = False,
    comm: PlanCommOption = CommOption.HOME_RANK,
    phase: PlanPhaseOption = PhaseOption.PREFILL,
    tokens_per_device: TokensPerDeviceOption = None,
    cost: CostOption = FITTED,
    kernels_of: PlanEngineOption = EngineOption.SGLANG,
    time_limit: Annotated[float, typer.Option(help="Seconds for all planners together.")] = 30.0,
    holdout: HoldoutOption = 0.25,
    export: Annotated[
        str | None,
        typer.Option(
            help="Engines to write files for, separated by commas, or none; those that can load "
            "the plan if left out."
        ),
    ] = None,
    warm_start: Annotated[Path | None, typer.Option(help="plan.json that is in use now.")] = None,
    max_moves: Annotated[
        int | None, typer.Option(help="Experts that may move against --warm-start.")
    ] = None,
    validate: Annotated[
        bool,
        typer.Option(
            "--validate", help="Run every device's experts here, and set that against prediction."
        ),
    ] = False,
    validate_minutes: Annotated[
        float, typer.Option(help="Time for these runs; Ctrl-C keeps what is there.")
    ] = 3.0,
    validate_device: Annotated[
        str | None, typer.Option(help="cpu or cuda; a GPU if torch sees one.")
    ] = None,
    validate_profile: Annotated[
        Path | None,
        typer.Option(
            help="Predict with these coefficients (of calibrate measure --profile) instead of "
            "fitting them in the same run."
        ),
    ] = None,
    out: OutOption = DEFAULT_OUT,
    force: Annotated[bool, typer.Option("--force", help="Replace another plan in --out.")] = False,
    seed: SeedOption = 0,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Plan where every expert goes, price it, and write files that engines load."""
    from moesim.cost_model import cost_model
    from moesim.planners.outcome import PlanRequest
    from moesim.planners.plan import make_plan

    console = Console(as_json=as_json, quiet=quiet)
    out = out or DEFAULT_OUT
    _check_out(out)
    runs = None
    if validate:
        runs = plan_validate.options(validate_minutes, validate_device, validate_profile, seed)
    elif validate_device is not None or validate_profile is not None:
        raise UsageError("--validate-… options need --validate\nfix: add --validate")
    engines = None if export is None else _engines(export, planner, redundant)
    request = PlanRequest(
        trace=trace,
        load=load,
        model=model,
        transforms=tuple(transform or ()),
        cluster=cluster,
        planner=planner,
        redundant=redundant,
        slots=slots.value,
        distinct_copies=distinct_copies,
        comm=comm.value,
        phase=phase.value,
        tokens_per_device=tokens_per_device,
        time_limit_s=positive_seconds(time_limit, "--time-limit"),
        holdout=holdout,
        seed=seed,
        cost=cost_model(cost),
        engine=kernels_of.value,
        warm_start=warm_start,
        max_moves=max_moves,
        beside=plan_validate.beside() if validate else (),
        command=shlex.join(["moesim", *sys.argv[1:]]),
    )
    with console.progress("planning") as say:
        outcome = make_plan(request, say)
        code, problem = 0, ""
        if runs is not None:
            outcome, code, problem = plan_validate.validated(outcome, runs, say)
        say("writing plan and report")
        outcome = _write(outcome, out, engines, force)
    for name, reason in outcome.skipped.items():
        console.say(f"no plan by {name}: {reason}")
    for engine, reason in outcome.left_out.items():
        console.say(f"no file for {engine}: {reason}")
    if problem:
        console.say(f"{problem}\nplan and report hold what there is: {out}")
    if code == plan_validate.INTERRUPTED:
        raise typer.Exit(code)
    if engines is not None and outcome.left_out:
        code = code or PartialResultError.exit_code
    console.result(_to_json(outcome) | {"ok": code == 0}, lambda: _show(outcome))
    if code:
        raise typer.Exit(code)


def _check_out(out: Path) -> None:
    """Refuse before the planning, not after it, what cannot be written to."""
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise InputError(
            "a folder is needed", file=out, field="--out", found=f"the file {nearest}",
            fix="choose another --out",
        )  # fmt: skip
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(
            "cannot be written to", file=out, field="--out", fix="choose another --out"
        )


def _engines(text: str, planner: str, redundant: int) -> list[str]:
    """The engines asked for, refused where no plan of this kind can be written for them."""
    from moesim.hardware import near_names
    from moesim.planners.exports import EXPORTERS
    from moesim.planners.registry import PLANNERS

    names = [] if text == "none" else [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in EXPORTERS:
            raise UsageError(
                f"--export names no engine we know: {name!r}{near_names(name, list(EXPORTERS))}\n"
                f"fix: choose from {', '.join(EXPORTERS)}, or none"
            )
    equal = planner not in PLANNERS or PLANNERS[planner].engine_ready
    unable = [name for name in names if name != "megatron" and not equal]
    if unable:
        raise UsageError(
            f"--export {','.join(unable)}: {planner} puts unequal numbers of experts on devices, "
            "which these engines cannot load\nfix: --export megatron, or --planner moetuner"
        )
    if "megatron" in names and redundant > 0:
        raise UsageError(
            "--export megatron has one rank per expert, and --redundant asks for copies\n"
            "fix: leave out one of them"
        )
    return names


def _write(outcome: PlanOutcome, out: Path, engines: list[str] | None, force: bool) -> PlanOutcome:
    from moesim.placement import write_plan
    from moesim.reports import write_report

    file = out / "plan.json"
    if file.exists() and not force:
        _refuse_another(file, outcome)
    write_plan(
        file,
        outcome.placement,
        model=outcome.model.name,
        cluster=outcome.cluster.name,
        planner=outcome.chosen,
        trace_sha256=outcome.trace_sha256,
    )
    outcome = _export(replace(outcome, files={"plan": str(file)}), out, engines)
    report = {"report": str(out / "report.html"), "markdown": str(out / "report.md")}
    outcome = replace(outcome, files=outcome.files | report)
    write_report(outcome, out)
    return outcome


def _refuse_another(file: Path, outcome: PlanOutcome) -> None:
    """Refuse to replace a plan by another one."""
    from moesim.placement import read_plan

    try:
        held = read_plan(file)[1].physical_to_logical.tolist()
    except InputError:
        held = None
    if held != outcome.placement.physical_to_logical.tolist():
        raise UsageError(
            f"{file} holds another plan\nfix: pass --force to replace it, or another --out"
        )


def _export(outcome: PlanOutcome, out: Path, engines: list[str] | None) -> PlanOutcome:
    """Write a file for every engine that can load the plan, and note why others cannot.

    Without a choice of engines these are the serving engines; where none of them can load the
    plan, megatron.
    """
    from moesim.planners.exports import export

    files, launch, left_out = dict(outcome.files), {}, {}

    def write(engine: str) -> None:
        try:
            result = export(engine, outcome.placement, outcome.model, out)
        except UsageError as error:
            left_out[engine] = str(error).replace("\nfix: ", "; ")
            return
        files.update({kind: str(path) for kind, path in result.files.items()})
        launch[engine] = list(result.launch)

    for engine in SERVING_ENGINES if engines is None else engines:
        write(engine)
    if engines is None and not launch:
        write("megatron")
    return replace(outcome, files=files, launch=launch, left_out=left_out)


def _to_json(outcome: PlanOutcome) -> dict[str, Any]:
    from moesim.reports.gain import gain_sources, why

    chosen = outcome.scores[outcome.chosen]
    return {
        "schema": "moesim.plan/1",
        "ok": True,
        "model": outcome.model.name,
        "cluster": outcome.cluster.name,
        "planner": outcome.chosen,
        "layers": len(outcome.moe_layers),
        "experts": outcome.experts,
        "slots": chosen.placement.slots,
        "devices": outcome.cluster.devices,
        "comm": outcome.comm,
        "phase": outcome.phase,
        "tokens_per_device": outcome.tokens_per_device,
        "seed": outcome.seed,
        "cost": outcome.cost,
        "engine": outcome.engine,
        "kernels": outcome.kernels,
        "evidence": chosen.cost.evidence.value,
        "solve_s": chosen.solve_s,
        "objective": {
            "value": chosen.cost.step_s,
            "lo": chosen.cost.lo_s,
            "hi": chosen.cost.hi_s,
            "lower_bound": outcome.bound.lower_bound_s,
            "gap": outcome.bound.gap,
            "proven": outcome.bound.proven,
        },
        "gain": asdict(gain_sources(outcome.scores[outcome.baseline].cost, chosen.cost)),
        "why": why(outcome),
        "planners": {
            name: _cost_json(score.cost)
            | {"solve_s": score.solve_s, "outcome": score.outcome, "detail": score.detail}
            for name, score in outcome.scores.items()
        },
        "holdout": {
            name: _cost_json(score.holdout)
            for name, score in outcome.scores.items()
            if score.holdout is not None
        },
        "speedup_vs": {
            name: score.cost.step_s / chosen.cost.step_s for name, score in outcome.scores.items()
        },
        "migration": _migration_json(outcome),
        "validation": None if outcome.validation is None else outcome.validation.to_dict(),
        "trace_sha256": outcome.trace_sha256,
        "inputs": outcome.inputs,
        "files": outcome.files,
        "launch": outcome.launch,
        "left_out": outcome.left_out,
        "skipped": outcome.skipped,
        "version": outcome.version,
    }


def _migration_json(outcome: PlanOutcome) -> dict[str, Any] | None:
    """What changing from the plan in use takes, and the steps until its transfers have paid."""
    change, steps = outcome.migration, outcome.break_even_steps
    if change is None:
        return None
    return {
        "moves": change.moves,
        "moved_bytes": change.moved_bytes,
        "sent_bytes": float(change.sent_bytes.sum()),
        "seconds": change.seconds,
        "break_even_steps": steps,
        "break_even_tokens": None if steps is None else steps * outcome.step_tokens,
    }


def _cost_json(cost: StepCost) -> dict[str, Any]:
    return {
        "step_s": cost.step_s,
        "lo_s": cost.lo_s,
        "hi_s": cost.hi_s,
        "compute_s": float(cost.layer_compute_s.sum()),
        "communication_s": float((cost.layer_dispatch_s + cost.layer_combine_s).sum()),
        "tail_pair_s": cost.tail_pair_s,
        "balance": cost.balance,
        "remote_fraction": cost.remote_fraction,
        "internode_fraction": cost.internode_fraction,
        "internode_bytes": cost.internode_bytes,
    }


def _show(outcome: PlanOutcome) -> None:
    from rich.console import Console as RichConsole

    from moesim.cli.plan_terminal import terminal_summary

    terminal_summary(outcome, RichConsole())
