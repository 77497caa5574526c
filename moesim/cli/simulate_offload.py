"""``moesim simulate offload``: requests served by a model whose experts do not fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.choices import TransformOption
from moesim.cli.console import Console, JsonOption, QuietOption, ResultOutOption, SeedOption
from moesim.cli.offload_options import (
    DEFAULT_HARDWARE,
    BitsOption,
    HardwareOption,
    HostBitsOption,
)
from moesim.cli.plan_options import ModelOption, TraceOption

if TYPE_CHECKING:
    from moesim.offload.inputs import Inputs
    from moesim.offload.simulation import Offload, Phase
    from moesim.offload.steps import Steps

__all__ = ["offload"]


def offload(
    trace: TraceOption = None,
    model: ModelOption = None,
    hardware: HardwareOption = DEFAULT_HARDWARE,
    system: Annotated[
        str, typer.Option(help="Systems to compare, separated by commas, or all.")
    ] = "on-demand,static-split,hybrimoe",
    slots: Annotated[
        int | None, typer.Option(help="Expert slots per layer, mean [a quarter of the experts].")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 1,
    prompt: Annotated[int, typer.Option(min=1, help="Prompt tokens of each request.")] = 128,
    output: Annotated[int, typer.Option(min=1, help="Decoded tokens of each request.")] = 128,
    group_alike: Annotated[
        bool,
        typer.Option("--group-alike", help="Batch requests whose prompts use the same experts."),
    ] = False,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="Instead of the system's: on-demand, serial, split, hybrid, hybrid-code."
        ),
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="Instead of the system's: lru, lfu, mrs, static, belady.")
    ] = None,
    quota: Annotated[
        str | None, typer.Option(help="Instead of the system's: equal, shallow, layers, plec.")
    ] = None,
    predictor: Annotated[
        str | None,
        typer.Option(help="Instead of the system's: none, transitions, paths, or a preset."),
    ] = None,
    over_fetch: Annotated[
        float | None, typer.Option(min=0, help="Extra experts per active one, learned predictors.")
    ] = None,
    bits: BitsOption = None,
    host_bits: HostBitsOption = None,
    disk_bits: Annotated[
        float | None, typer.Option(help="Same, of what is read from the disk [--bits].")
    ] = None,
    narrow_bits: Annotated[
        float | None, typer.Option(help="Same, of unpopular experts in Fate's prefill [--bits].")
    ] = None,
    host_slots: Annotated[
        int | None,
        typer.Option(min=0, help="Experts per layer in host memory, others on disk [what fits]."),
    ] = None,
    nvme: Annotated[str | None, typer.Option(help="Disk reads, like '7 GB/s' [7.45 GB/s].")] = None,
    transform: TransformOption = None,
    seed: SeedOption = 0,
    out: ResultOutOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Time to first token and between tokens with experts in GPU, host memory and on disk.

    Systems: on-demand, serial, static-split, layer-split, hybrimoe, paths, fate, expertflow.
    """
    from moesim.errors import UsageError
    from moesim.offload.inputs import open_inputs, transformed
    from moesim.offload.simulation import host_slots_that_fit, simulate
    from moesim.offload.steps import serve_steps
    from moesim.offload.systems import SYSTEMS, find_system

    console = Console(as_json=as_json, quiet=quiet, out=out)
    given = open_inputs(
        trace=trace,
        model=transformed(model, transform or ()),
        hardware=hardware,
        memory=None,
        bits=bits,
        host_bits=host_bits,
        disk_bits=disk_bits,
        narrow_bits=narrow_bits,
        nvme=nvme,
    )
    spec = given.model
    size = max(1, spec.experts // 4) if slots is None else slots
    if not 0 <= size <= spec.experts:
        raise UsageError(
            f"--slots takes 0 … {spec.experts}, the experts of a layer; found {size}\n"
            f"fix: e.g. --slots {spec.experts // 4}"
        )
    names = list(SYSTEMS) if system == "all" else [name.strip() for name in system.split(",")]
    changes = {
        "schedule": schedule,
        "policy": policy,
        "quota": quota,
        "predictor": predictor,
        "over_fetch": over_fetch,
    }
    systems = [find_system(name, **changes) for name in dict.fromkeys(names)]
    if host_slots is None:
        host_slots = host_slots_that_fit(spec, given.machine, given.formats)
    runs = {}
    with console.progress("counting") as say:
        steps = serve_steps(given.trace, batch, prompt, output, group_alike=group_alike)
        for one in systems:
            say(one.name)
            runs[one.name] = simulate(
                spec, given.machine, one, given.formats, steps, size, host_slots=host_slots,
                seed=seed,
            )  # fmt: skip
    data = _to_json(given, steps, runs, size, min(host_slots, spec.experts))
    console.result(
        data | {"prompt": prompt, "output": output, "group_alike": group_alike, "seed": seed},
        lambda: _show(data),
    )


def _phase(phase: Phase | None) -> dict[str, Any] | None:
    if phase is None:
        return None
    return {
        "steps": phase.steps,
        "step_s": phase.step_s,
        "p99_s": phase.p99_s,
        "bound": phase.bound,
        "busy": phase.busy,
        "hit_rate": phase.hit_rate,
        "per_step": phase.counts,
    }


def _run(run: Offload) -> dict[str, Any]:
    import math

    recall = None
    if run.predictor is not None:
        recall = {
            "recall": run.predictor.mean_recall,
            "recall_by_layer": [
                None if math.isnan(value) else value for value in run.predictor.recall.tolist()
            ],
            "over_fetch_by_layer": [
                None if math.isnan(value) else value for value in run.predictor.over_fetch.tolist()
            ],
            "late": run.late,
        }
    return {
        "summary": run.system.summary,
        "source": run.system.source,
        "schedule": run.system.schedule,
        "policy": run.system.policy,
        "quota": run.system.quota,
        "predictor": run.system.predictor,
        "slots_by_layer": run.slots.tolist(),
        "ttft_s": None if run.prefill is None else run.prefill.step_s,
        "tpot_s": None if run.decode is None else run.decode.step_s,
        "tokens_per_s": run.tokens_per_s,
        "bound": None if run.decode is None else run.decode.bound,
        "hit_rate": None if run.decode is None else run.decode.hit_rate,
        "link_bytes_per_token": run.link_bytes_per_token,
        "prefill": _phase(run.prefill),
        "decode": _phase(run.decode),
        "prediction": recall,
    }


def _to_json(
    given: Inputs, steps: Steps, runs: dict[str, Offload], slots: int, host_slots: int
) -> dict[str, Any]:
    import moesim

    best = max(runs, key=lambda name: runs[name].tokens_per_s or 0.0)
    model, formats = given.model, given.formats
    slot_bytes = len(model.moe_layers) * model.expert_parameters * formats.slots / 8
    other = (model.total_parameters - model.parameters.routed_experts) * 2
    return {
        "schema": "moesim.simulate/1",
        "ok": True,
        "simulation": "offload",
        "model": model.name,
        "hardware": given.machine.name,
        "trace": given.trace_name,
        "batch": steps.batch,
        "requests": steps.requests,
        "slots": slots,
        "host_slots": host_slots,
        "experts": model.experts,
        "formats": {
            "slot_bits": formats.slots,
            "host_bits": formats.host,
            "disk_bits": formats.disk,
            "narrow_bits": formats.narrow,
        },
        "memory_bytes_per_device": other + slots * slot_bytes,
        "best": best,
        "ttft_s": _run(runs[best])["ttft_s"],
        "tpot_s": _run(runs[best])["tpot_s"],
        "tokens_per_s": runs[best].tokens_per_s,
        "systems": {name: _run(run) for name, run in runs.items()},
        "note": steps.note,
        "evidence": given.machine.evidence.value,
        "version": moesim.__version__,
    }


def _show(data: dict[str, Any]) -> None:
    from rich.console import Console as RichConsole

    from moesim.cli.offload_terminal import show_offload

    show_offload(data, RichConsole())
