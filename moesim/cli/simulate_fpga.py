"""``moesim simulate fpga``: an image through a vision transformer with experts on an FPGA."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.console import (
    Console,
    JsonOption,
    QuietOption,
    ResultOutOption,
    SeedOption,
    listed,
)

if TYPE_CHECKING:
    from moesim.fpga.simulate import FpgaRequest, FpgaRun, PartTime, Variant

__all__ = ["fpga"]


def fpga(
    model: Annotated[
        str, typer.Option(help="Vision transformer with experts: m3vit_tiny, or YAML.")
    ] = "m3vit_tiny",
    device: Annotated[str, typer.Option(help="FPGA, or YAML.")] = "fpga_zcu102",
    design: Annotated[str, typer.Option(help="Accelerator: edge_moe, or YAML.")] = "edge_moe",
    top_k: Annotated[int | None, typer.Option(help="Experts per token [the network's].")] = None,
    routing: Annotated[
        str | None, typer.Option(help="balanced, uniform or zipf:S [uniform].")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Routing trace whose windows are images.")
    ] = None,
    images: Annotated[int, typer.Option(help="Averaged over.")] = 8,
    without: Annotated[
        str | None,
        typer.Option(
            help="Techniques to leave out: expert-reordering, attention-reordering, "
            "unified-unit, single-pass-softmax."
        ),
    ] = None,
    pin_experts: Annotated[
        int, typer.Option(help="Experts that stay on chip: those that most images need.")
    ] = 0,
    seed: SeedOption = 0,
    out: ResultOutOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Simulate an image on an FPGA: ports and bursts, expert traffic, latency, energy."""
    from moesim.errors import UsageError
    from moesim.fpga.simulate import FpgaRequest, run_fpga

    console = Console(as_json=as_json, quiet=quiet, out=out)
    if trace is not None and routing is not None:
        raise UsageError(
            "--routing means nothing here: --trace says where tokens go\nfix: leave out --routing"
        )
    request = FpgaRequest(
        model=model,
        device=device,
        design=design,
        top_k=top_k,
        routing=routing or "uniform",
        trace=trace,
        images=images,
        without=tuple(listed(without) or ()),
        pinned=pin_experts,
        seed=seed,
    )
    found = run_fpga(request)
    console.result(_to_json(request, found), lambda: _show(request, found))


def _to_json(request: FpgaRequest, found: FpgaRun) -> dict[str, Any]:
    import moesim

    chosen, net = found.chosen, found.network
    slow = found.ablations
    return {
        "schema": "moesim.simulate/1",
        "ok": True,
        "simulation": "fpga",
        "model": net.name,
        "design": found.design.name,
        "device": found.device.name,
        "tokens": net.tokens,
        "experts": net.moe.experts,
        "top_k": net.moe.top_k,
        "moe_layers": net.moe_layers,
        "routing": "trace" if request.trace else request.routing,
        "images": request.images,
        "without": list(request.without),
        "pinned_experts": request.pinned,
        "evidence": found.evidence.value,
        "step_s": chosen.step_s,
        "lo_s": chosen.lo_s,
        "hi_s": chosen.hi_s,
        "images_per_s": 1 / chosen.step_s,
        "power_w": found.power_w,
        "power_evidence": found.power_evidence.value,
        "energy_j": found.energy_j,
        "experts_hit_per_layer": found.experts_hit,
        "traffic": {
            "bytes": chosen.moved_bytes,
            "expert_bytes": chosen.expert_bytes,
            "expert_bytes_token_order": slow["expert-reordering"].expert_bytes,
            "key_value_read_bytes": _key_value(chosen),
            "key_value_read_bytes_query_order": _key_value(slow["attention-reordering"]),
            "arrays": {
                name: {
                    "read_bytes": chosen.array_bytes.get((name, False), 0.0),
                    "written_bytes": chosen.array_bytes.get((name, True), 0.0),
                }
                for name in dict.fromkeys(name for name, _ in chosen.array_bytes)
            },
        },
        "ports": [
            {
                "name": name,
                "direction": "write" if write else "read",
                "bytes": moved,
                "busy": chosen.port_busy[name, write],
            }
            for (name, write), moved in sorted(chosen.port_bytes.items())
        ],
        "resources": {
            "dsp_slices": found.resources.dsp_slices,
            "dsp_share": found.resources.dsp_share,
            "room_experts": found.resources.room_experts,
            "weight_buffer_bytes": found.resources.buffer_bytes,
            "on_chip_share": found.resources.on_chip_share,
        },
        "ablations": {
            name: {
                "step_s": left.step_s,
                "slowdown": left.step_s / found.complete.step_s,
                "energy_j": found.power_w * left.step_s,
                "bytes": left.moved_bytes,
                "expert_bytes": left.expert_bytes,
            }
            for name, left in slow.items()
        },
        "ops": [_op_json(found, timed) for timed in chosen.parts],
        "seed": request.seed,
        "version": moesim.__version__,
    }


def _key_value(variant: Variant) -> float:
    return variant.array_bytes["key", False] + variant.array_bytes["value", False]


def _op_json(found: FpgaRun, timed: PartTime) -> dict[str, Any]:
    part = timed.part
    return {
        "name": timed.name,
        "flops": part.flops,
        "bytes": part.moved_bytes,
        "op_per_byte": part.flops / part.moved_bytes if part.moved_bytes else 0.0,
        "time_s": timed.time_s,
        "lo_s": timed.lo_s,
        "hi_s": timed.hi_s,
        "bound": part.bound,
        "device": found.device.name,
        "evidence": found.evidence.value,
    }


def _show(request: FpgaRequest, found: FpgaRun) -> None:
    from rich.console import Console as RichConsole

    from moesim.cli.fpga_terminal import show_fpga

    show_fpga(request, found, RichConsole())
