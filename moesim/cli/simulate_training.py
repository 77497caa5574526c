"""``moesim simulate training``: one iteration of training."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.choices import CostOption, TransformOption
from moesim.cli.console import Console, JsonOption, QuietOption, ResultOutOption, SeedOption

if TYPE_CHECKING:
    from moesim.training.request import TrainingRequest
    from moesim.training.simulate import PricedCall, TrainingStep

__all__ = ["training"]


class SystemOption(StrEnum):
    """Whose layout, overlap and recomputation."""

    MEGASCALE = "megascale"
    MEGATRON = "megatron"


class OverlapOption(StrEnum):
    """What hides communication within a layer."""

    NONE = "none"
    INTER = "inter"
    FULL = "full"


class RecomputeOption(StrEnum):
    """What backward computes again."""

    NONE = "none"
    SELECTIVE = "selective"
    FULL = "full"


_LAYOUT, _BATCH, _SYSTEM = "Layout", "Batch", "System"


def training(
    model: Annotated[str, typer.Option(help="Registry name, config.json or folder with one.")],
    cluster: Annotated[
        str, typer.Option(help="Like 30x8xh800_sxm, or YAML; all devices are used.")
    ],
    system: Annotated[
        SystemOption, typer.Option(help="Whose choices hold.", rich_help_panel=_SYSTEM)
    ] = SystemOption.MEGASCALE,
    overlap: Annotated[
        OverlapOption | None,
        typer.Option(
            help="Hide communication: behind independent operators (inter), tile by tile too "
            "(full) [the system's].",
            rich_help_panel=_SYSTEM,
        ),
    ] = None,
    recompute: Annotated[
        RecomputeOption | None,
        typer.Option(help="What backward computes again [the system's].", rich_help_panel=_SYSTEM),
    ] = None,
    overlap_reduction: Annotated[
        bool,
        typer.Option(
            help="Gradients and new weights travel behind passes.", rich_help_panel=_SYSTEM
        ),
    ] = True,
    slowdown: Annotated[
        float | None,
        typer.Option(
            help="Of kernels in training against alone [fitted].", rich_help_panel=_SYSTEM
        ),
    ] = None,
    tp: Annotated[
        int | None,
        typer.Option(help="Devices that share a sequence by heads.", rich_help_panel=_LAYOUT),
    ] = None,
    sp_attention: Annotated[
        int | None,
        typer.Option(
            help="Devices that share a sequence by tokens, by heads inside attention.",
            rich_help_panel=_LAYOUT,
        ),
    ] = None,
    ep: Annotated[
        int | None,
        typer.Option(
            help="Devices that share the experts [the scale-up domain].", rich_help_panel=_LAYOUT
        ),
    ] = None,
    expert_tp: Annotated[
        int | None, typer.Option(help="Devices that share an expert.", rich_help_panel=_LAYOUT)
    ] = None,
    pp: Annotated[int, typer.Option(help="Pipeline stages.", rich_help_panel=_LAYOUT)] = 1,
    chunks: Annotated[
        int, typer.Option(help="Model chunks per stage, interleaved.", rich_help_panel=_LAYOUT)
    ] = 1,
    dp: Annotated[
        int | None,
        typer.Option(help="Groups with their own sequences [the rest].", rich_help_panel=_LAYOUT),
    ] = None,
    sequence: Annotated[
        int, typer.Option(help="Tokens per sequence.", rich_help_panel=_BATCH)
    ] = 4096,
    micro_batch: Annotated[
        int, typer.Option(help="Sequences of a group at a time.", rich_help_panel=_BATCH)
    ] = 1,
    global_batch: Annotated[
        int | None,
        typer.Option(
            help="Sequences per iteration [--pp micro-batches each].", rich_help_panel=_BATCH
        ),
    ] = None,
    routing: Annotated[
        str,
        typer.Option(help="balanced, uniform, zipf:S or power-law:A.", rich_help_panel=_BATCH),
    ] = "uniform",
    cost: Annotated[
        CostOption, typer.Option(help="Kernels fitted to measurements, or rooflines alone.")
    ] = CostOption.FITTED,
    transform: TransformOption = None,
    seed: SeedOption = 0,
    out: ResultOutOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Simulate one iteration of training: passes, pipeline, gradients, optimizer, memory."""
    from moesim.training.request import TrainingRequest, run_training

    console = Console(as_json=as_json, quiet=quiet, out=out)
    request = TrainingRequest(
        model=model,
        cluster=cluster,
        system=system.value,
        tp=tp,
        sp=sp_attention,
        ep=ep,
        expert_tp=expert_tp,
        pp=pp,
        chunks=chunks,
        dp=dp,
        sequence=sequence,
        micro_batch=micro_batch,
        global_batch=global_batch,
        overlap=None if overlap is None else overlap.value,
        recompute=None if recompute is None else recompute.value,
        overlap_reduction=overlap_reduction,
        slowdown=slowdown,
        routing=routing,
        cost=cost.value,
        transforms=tuple(transform or ()),
        seed=seed,
    )
    found = run_training(request)
    console.result(_to_json(request, found), lambda: _show(request, found))


def _to_json(request: TrainingRequest, found: TrainingStep) -> dict[str, Any]:
    from dataclasses import asdict

    import moesim

    shape, options = found.shape, found.options
    layout = shape.layout
    return {
        "schema": "moesim.simulate/1",
        "ok": True,
        "simulation": "training",
        "model": shape.model.name,
        "cluster": found.machine.cluster.name,
        "device": found.machine.device.name,
        "devices": layout.devices,
        "system": request.system,
        "layout": asdict(layout),
        "micro_batches": layout.micro_batches,
        "dispatch": "alltoall" if shape.alltoall else "allgather",
        "overlap": options.overlap,
        "recompute": options.recompute,
        "slowdown": options.slowdown,
        "routing": found.routing,
        "cost": request.cost,
        "evidence": found.evidence.value,
        "step_s": found.step_s,
        "lo_s": found.lo_s,
        "hi_s": found.hi_s,
        "mfu": found.mfu,
        "tokens_per_s": found.tokens_per_s,
        "tokens_per_s_per_device": found.tokens_per_s / layout.devices,
        "micro_batch_s": max(found.stage_s),
        "stage_s": list(found.stage_s),
        "compute_s": found.compute_s,
        "communication_s": found.communication_s,
        "bubble": found.bubble,
        "gradient_exposed_s": found.gradient_exposed_s,
        "weight_exposed_s": found.weight_exposed_s,
        "optimizer_s": found.optimizer_s,
        "gradient_bytes": found.reduction.gradient_bytes,
        "weight_bytes": found.reduction.weight_bytes,
        "memory_bytes_per_device": found.memory.total,
        "memory": asdict(found.memory),
        "ops": [
            _op_json(found, priced, way)
            for way, calls in (("forward", found.forward), ("backward", found.backward))
            for priced in calls
        ],
        "seed": request.seed,
        "version": moesim.__version__,
    }


def _op_json(found: TrainingStep, priced: PricedCall, way: str) -> dict[str, Any]:
    """A call of one micro-batch, over the layers of a stage; the ends stand on one stage."""
    call, price = priced.call, priced.priced.price
    op = call.op
    count = 1.0 if call.block == "ends" else op.layers / found.shape.layout.pp
    moved = op.work.bytes * count
    flops = op.work.flops * count * call.times
    if call.floor is not None:
        moved += call.floor.work.bytes * count
    time_s = priced.time_s * count
    scale = time_s / price.time_s if price.time_s else 0.0
    return {
        "name": op.name,
        "way": way,
        "operator": op.operator,
        "layers": count,
        "flops": flops,
        "bytes": moved,
        "op_per_byte": flops / moved if moved else 0.0,
        "time_s": time_s,
        "lo_s": price.lo_s * scale,
        "hi_s": price.hi_s * scale,
        "bound": priced.bound,
        "device": found.machine.device.name,
        "kernel": price.kernel,
        "evidence": price.evidence.value,
    }


def _show(request: TrainingRequest, found: TrainingStep) -> None:
    from rich.console import Console as RichConsole

    from moesim.cli.training_terminal import show_training

    show_training(request, found, RichConsole())
