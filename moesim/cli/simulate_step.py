"""``moesim simulate step``: one forward step of a whole model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.choices import (
    FITTED,
    CostOption,
    DispatchOption,
    EngineOption,
    OverlapOption,
    PhaseOption,
    TransformOption,
)
from moesim.cli.console import Console, JsonOption, QuietOption, ResultOutOption, SeedOption

if TYPE_CHECKING:
    from moesim.forward.request import StepRequest
    from moesim.forward.simulate import ForwardStep

__all__ = ["step"]


def step(
    model: Annotated[str, typer.Option(help="Registry name, config.json or folder with one.")],
    cluster: Annotated[
        str, typer.Option(help="Like 8xh200_sxm or 2x8xh100_sxm, or YAML; all devices are used.")
    ],
    phase: Annotated[PhaseOption, typer.Option(help="Kind of step.")] = PhaseOption.DECODE,
    batch: Annotated[int, typer.Option(help="Sequences over all devices.")] = 64,
    context: Annotated[
        int, typer.Option(help="Tokens cached per sequence; in prefill, new tokens of each.")
    ] = 4096,
    prefix: Annotated[int, typer.Option(help="In prefill, tokens cached before those.")] = 0,
    tp: Annotated[
        int | None, typer.Option(help="Devices that share attention heads [all without --dp].")
    ] = None,
    dp: Annotated[int | None, typer.Option(help="Attention groups with own sequences.")] = None,
    ep: Annotated[
        int | None, typer.Option(help="Devices that share the experts [1; all with --dp].")
    ] = None,
    moe_tp: Annotated[int | None, typer.Option(help="Devices that share an expert.")] = None,
    pp: Annotated[int, typer.Option(help="Pipeline stages.")] = 1,
    dispatch: Annotated[
        DispatchOption | None,
        typer.Option(help="How tokens reach experts [what the layout and engine suggest]."),
    ] = None,
    redundant: Annotated[
        int, typer.Option(help="Expert slots beyond one per expert, over all devices.")
    ] = 0,
    engine: Annotated[EngineOption, typer.Option(help="Whose kernels run.")] = EngineOption.SGLANG,
    cost: CostOption = FITTED,
    gemm_dtype: Annotated[
        str | None, typer.Option(help="Of projections and dense layers [the model's own].")
    ] = None,
    expert_dtype: Annotated[
        str | None, typer.Option(help="Of routed experts [the model's own].")
    ] = None,
    kv_dtype: Annotated[str | None, typer.Option(help="Of the cache [bfloat16].")] = None,
    routing: Annotated[
        str | None,
        typer.Option(help="balanced, uniform, zipf:S or power-law:A [uniform]."),
    ] = None,
    trace: Annotated[Path | None, typer.Option(help="Routing trace bundle instead.")] = None,
    plan: Annotated[Path | None, typer.Option(help="plan.json for that trace.")] = None,
    overlap: Annotated[
        OverlapOption, typer.Option(help="What runs beside what.")
    ] = OverlapOption.NONE,
    draft_tokens: Annotated[
        int,
        typer.Option(help="Speculative decoding: drafts per sequence, by the model's MTP layer."),
    ] = 0,
    acceptance: Annotated[
        float, typer.Option(help="Probability that a draft is accepted if those before it were.")
    ] = 0.0,
    transform: TransformOption = None,
    seed: SeedOption = 0,
    out: ResultOutOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Simulate one forward step of a whole model, kernel by kernel, with error bars."""
    from moesim.cost_model import cost_model
    from moesim.forward.request import StepRequest, run_request

    console = Console(as_json=as_json, quiet=quiet, out=out)
    request = StepRequest(
        model=model,
        cluster=cluster,
        phase=phase.value,
        batch=batch,
        context=context,
        prefix=prefix,
        tp=tp,
        dp=dp,
        ep=ep,
        moe_tp=moe_tp,
        pp=pp,
        dispatch=None if dispatch is None else dispatch.value,
        redundant=redundant,
        engine=engine.value,
        cost=cost_model(cost),
        gemm_dtype=gemm_dtype,
        expert_dtype=expert_dtype,
        kv_dtype=kv_dtype,
        routing=routing,
        trace=trace,
        plan=plan,
        transforms=tuple(transform or ()),
        overlap=overlap.value,
        draft_tokens=draft_tokens,
        acceptance=acceptance,
        seed=seed,
    )
    found = run_request(request)
    console.result(_to_json(request, found), lambda: _show(request, found))


def _to_json(request: StepRequest, found: ForwardStep) -> dict[str, Any]:
    from dataclasses import asdict

    import moesim

    shape = found.shape
    layout = shape.layout
    return {
        "schema": "moesim.simulate/1",
        "ok": True,
        "simulation": "step",
        "model": shape.model.name,
        "cluster": found.machine.cluster.name,
        "device": found.machine.device.name,
        "devices": layout.devices,
        "phase": request.phase,
        "batch": request.batch,
        "context": request.context,
        "prefix": request.prefix,
        "layout": {
            "tp": layout.tp, "dp": layout.dp, "ep": layout.ep, "moe_tp": layout.moe_tp,
            "pp": layout.pp, "dispatch": layout.dispatch, "redundant": layout.redundant,
        },
        "engine": request.engine,
        "cost": str(request.cost),
        "formats": asdict(shape.formats),
        "routing": found.routing,
        "overlap": request.overlap,
        "hidden_s": found.hidden_s,
        "draft_tokens": request.draft_tokens,
        "acceptance": request.acceptance,
        "evidence": found.evidence.value,
        "step_s": found.step_s,
        "lo_s": found.lo_s,
        "hi_s": found.hi_s,
        "tokens_per_s": found.tokens_per_s,
        "tokens_per_s_per_device": found.tokens_per_s / layout.devices,
        **_energy_json(found),
        "memory_bytes_per_device": found.memory.total,
        "memory": asdict(found.memory),
        "ops": [_op_json(found, index) for index in range(len(found.ops))],
        "seed": request.seed,
        "version": moesim.__version__,
    }  # fmt: skip


def _energy_json(found: ForwardStep) -> dict[str, Any]:
    """Joules, or nothing where nothing is known of the devices' power."""
    energy = found.energy
    if energy is None:
        return {}
    return {
        "energy_j_per_token": energy.j_per_token,
        "energy": {
            "lo_j_per_token": energy.lo_j_per_token,
            "hi_j_per_token": energy.hi_j_per_token,
            "device_w": energy.device_w,
            "evidence": energy.evidence.value,
            "source": energy.source,
        },
    }


def _op_json(found: ForwardStep, index: int) -> dict[str, Any]:
    priced = found.ops[index]
    op, price = priced.op, priced.price
    flops, moved = op.work.flops * op.layers, op.work.bytes * op.layers
    return {
        "name": op.name,
        "operator": op.operator,
        "layers": op.layers,
        "stream": op.stream,
        "flops": flops,
        "bytes": moved,
        "op_per_byte": flops / moved if moved else 0.0,
        "time_s": priced.time_s,
        "lo_s": price.lo_s * op.layers,
        "hi_s": price.hi_s * op.layers,
        "bound": priced.bound,
        "device": found.machine.device.name,
        "kernel": price.kernel,
        "evidence": price.evidence.value,
    }


def _show(request: StepRequest, found: ForwardStep) -> None:
    from rich.console import Console as RichConsole

    from moesim.cli.step_terminal import show_step

    show_step(request, found, RichConsole())
