"""``moesim simulate training``: one iteration of training."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.choices import FITTED, CostOption, TransformOption
from moesim.cli.console import Console, JsonOption, QuietOption, ResultOutOption, SeedOption

if TYPE_CHECKING:
    from moesim.training.outcome import TrainingStep
    from moesim.training.request import TrainingRequest

__all__ = ["training"]


class SystemOption(StrEnum):
    """Whose layout, overlap and recomputation."""

    MEGASCALE = "megascale"
    MEGATRON = "megatron"
    EP = "ep"
    FASTERMOE = "fastermoe"
    SMARTMOE = "smartmoe"
    FLEXMOE = "flexmoe"
    HECATE = "hecate"
    HECATE_RM = "hecate-rm"


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
_BALANCE = "Balancing (ep, fastermoe, smartmoe, flexmoe, hecate, hecate-rm)"
_PARALLEL = ("megascale", "megatron")


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
        str | None,
        typer.Option(
            help="balanced, uniform, zipf:S or power-law:A [uniform; balancing: zipf:0.65].",
            rich_help_panel=_BATCH,
        ),
    ] = None,
    drift: Annotated[
        float | None,
        typer.Option(
            help="Correlation of experts' popularity with the next iteration's [0.99].",
            rich_help_panel=_BALANCE,
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="Routing trace whose windows are iterations.", rich_help_panel=_BALANCE),
    ] = None,
    interval: Annotated[
        int | None,
        typer.Option(
            help="Iterations between rearrangements; Hecate shards ten times as seldom [10].",
            rich_help_panel=_BALANCE,
        ),
    ] = None,
    room: Annotated[
        int | None,
        typer.Option(
            help="Copies of one layer that a device has room for [by its memory].",
            rich_help_panel=_BALANCE,
        ),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(
            help="FlexMoE's slots per device and layer [three times its share].",
            rich_help_panel=_BALANCE,
        ),
    ] = None,
    flash_attention: Annotated[
        bool | None,
        typer.Option(
            "--flash-attention/--no-flash-attention",
            help="Attention keeps its scores on chip [yes].",
            rich_help_panel=_BALANCE,
        ),
    ] = None,
    cost: CostOption = FITTED,
    transform: TransformOption = None,
    seed: SeedOption = 0,
    out: ResultOutOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Simulate one iteration of training: passes, pipeline, gradients, optimizer, memory."""
    from moesim.cost_model import cost_model

    console = Console(as_json=as_json, quiet=quiet, out=out)
    priced_by = cost_model(cost)
    given = {
        "--drift": drift, "--trace": trace, "--interval": interval, "--room": room,
        "--slots": slots, "--flash-attention": flash_attention,
    }  # fmt: skip
    if system.value not in _PARALLEL:
        parallel = {
            "--overlap": overlap, "--recompute": recompute, "--tp": tp,
            "--sp-attention": sp_attention, "--ep": ep, "--expert-tp": expert_tp, "--dp": dp,
            "--global-batch": global_batch, "--pp": None if pp == 1 else pp,
            "--chunks": None if chunks == 1 else chunks,
            "--no-overlap-reduction": None if overlap_reduction else False,
        }  # fmt: skip
        _refuse(parallel, f"--system {system.value} spreads experts over all devices")
        _balanced(
            console,
            {
                "model": model, "cluster": cluster, "system": system.value, "sequence": sequence,
                "micro_batch": micro_batch, "routing": routing, "drift": drift, "trace": trace,
                "interval": interval, "room": room, "slots": slots,
                "flash_attention": flash_attention, "slowdown": slowdown, "cost": priced_by,
                "transforms": tuple(transform or ()), "seed": seed,
            },
        )  # fmt: skip
        return
    _refuse(given, f"--system {system.value} does not balance experts")
    from moesim.cli.training_output import training_json
    from moesim.training.request import TrainingRequest, run_training

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
        routing=routing or "uniform",
        cost=priced_by,
        transforms=tuple(transform or ()),
        seed=seed,
    )
    found = run_training(request)
    console.result(training_json(request, found), lambda: _show(request, found))


def _refuse(given: dict[str, Any], why: str) -> None:
    """Options that the system does not take."""
    from moesim.errors import UsageError

    for option, value in given.items():
        if value is not None:
            raise UsageError(f"{option} means nothing here: {why}\nfix: leave out {option}")


def _balanced(console: Console, options: dict[str, Any]) -> None:
    from moesim.cli.balance_output import balanced_json, show_balanced
    from moesim.training.balance.request import BalancedRequest, run_balanced

    if options["trace"] is not None and options["routing"] is not None:
        _refuse({"--routing": options["routing"]}, "--trace says where tokens go")
    stated = {name: value for name, value in options.items() if value is not None}
    request = BalancedRequest(**stated)
    found = run_balanced(request)
    console.result(balanced_json(request, found), lambda: show_balanced(request, found))


def _show(request: TrainingRequest, found: TrainingStep) -> None:
    from rich.console import Console as RichConsole

    from moesim.cli.training_terminal import show_training

    show_training(request, found, RichConsole())
