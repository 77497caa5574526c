"""What ``moesim simulate training`` says of a balancing system, as JSON and for a person."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moesim.training.balance.outcome import BalancedStep
    from moesim.training.balance.request import BalancedAnswer, BalancedRequest

__all__ = ["balanced_json", "show_balanced"]


def balanced_json(request: BalancedRequest, found: BalancedAnswer) -> dict[str, Any]:
    """The object that ``--json`` prints."""
    import moesim

    step = found.step
    low, high = step.interval()
    return {
        "schema": "moesim.simulate/1",
        "ok": True,
        "simulation": "training",
        "model": step.model.name,
        "cluster": step.machine.cluster.name,
        "device": step.machine.device.name,
        "devices": step.layout.devices,
        "system": request.system,
        "layout": asdict(step.layout),
        "routing": found.routing,
        "slowdown": step.balancing.slowdown,
        "cost": str(request.cost),
        "evidence": found.evidence.value,
        "step_s": step.step_s,
        "lo_s": low,
        "hi_s": high,
        "mfu": step.mfu,
        "tokens_per_s": step.tokens_per_s,
        "tokens_per_s_per_device": step.tokens_per_s / step.layout.devices,
        "speedup_vs": {"ep": found.speedup},
        "moe_speedup_vs": {"ep": found.plain.moe_s / step.moe_s},
        "balance": step.balance,
        "overlap_degree": step.hot,
        "sparse_bytes": step.sparse_bytes,
        "parts_s": _parts(step),
        "sparse_alone_s": step.sparse_s,
        "memory_bytes_per_device": step.memory_bytes,
        "memory": {
            "expert_weights": step.memory.weights,
            "expert_gradients": step.memory.gradients,
            "expert_optimizer": step.memory.optimizer,
            "dense": step.dense_bytes,
            "activations": step.activation_bytes,
        },
        "memory_vs": {"ep": step.memory.total / found.plain.memory.total},
        "ops": _ops(step),
        "seed": request.seed,
        "version": moesim.__version__,
    }


def _parts(step: BalancedStep) -> dict[str, float]:
    """Seconds that add up to the iteration."""
    return {
        "other": step.other_s,
        "alltoall": step.alltoall_s,
        "experts": step.experts_s,
        "sparse_exposed": step.exposed_s,
        "moved": step.moved_s,
        "dense_reduce": step.reduce_s,
        "optimizer": step.optimizer_s,
    }


def _ops(step: BalancedStep) -> list[dict[str, Any]]:
    """Kernels of all layers, forward and backward."""
    result = []
    for priced in step.calls:
        call, price = priced.call, priced.priced.price
        op = call.op
        flops = op.work.flops * op.layers * call.times
        moved = op.work.bytes * op.layers
        scale = priced.time_s / price.time_s * op.layers
        result.append(
            {
                "name": op.name,
                "operator": op.operator,
                "layers": op.layers,
                "flops": flops,
                "bytes": moved,
                "op_per_byte": flops / moved if moved else 0.0,
                "time_s": priced.time_s * op.layers,
                "lo_s": price.lo_s * scale,
                "hi_s": price.hi_s * scale,
                "bound": priced.bound,
                "device": step.machine.device.name,
                "kernel": price.kernel,
                "evidence": price.evidence.value,
            }
        )
    return result


def show_balanced(request: BalancedRequest, found: BalancedAnswer) -> None:
    """Print an iteration for a person."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from moesim.cli.words import Words
    from moesim.cost_model import cost_in_words
    from moesim.reports.text import percent
    from moesim.training.layer import DTYPE
    from moesim.training.request import ENGINE
    from moesim.units import format_bytes, format_seconds

    console = Console()
    words, step = Words(console), found.step
    priced_by = cost_in_words(request.cost, step.model, DTYPE, ENGINE)
    low, high = step.interval()
    console.print(
        words.paragraph(
            f"An iteration of {step.model.name} under {request.system} takes "
            f"{format_seconds(step.step_s)} ({format_seconds(low)} … {format_seconds(high)}), "
            f"{found.speedup:.2f} times as fast as expert parallelism",
            "bold",
        )
    )
    console.print(
        words.paragraph(
            f"{step.machine.cluster.name}; {step.layout.global_batch:,} sequences of "
            f"{step.layout.sequence:,} tokens; {step.tokens_per_s:,.0f} tokens/s, model FLOPs "
            f"utilisation {percent(step.mfu)}; mean over busiest device {percent(step.balance)} "
            f"(expert parallelism {percent(found.plain.balance)})."
        )
    )
    console.print(
        words.paragraph(
            f"Cost {priced_by} (evidence {found.evidence}), kernels "
            f"{step.balancing.slowdown:.3g} times slower than alone; routing {found.routing}; "
            f"weights of {step.hot} experts per layer can travel behind attention.",
            "dim",
        )
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for index, name in enumerate(("part", request.system, "ep")):
        table.add_column(words(name, "dim"), justify="right" if index else "left")
    for (name, own), plain in zip(_parts(step).items(), _parts(found.plain).values(), strict=True):
        cells = (name.replace("_", " "), format_seconds(own, pad=True),
                 format_seconds(plain, pad=True))  # fmt: skip
        table.add_row(*map(words, cells))
    console.print(table)
    memory = step.memory
    console.print(
        words.paragraph(
            f"Memory {format_bytes(step.memory_bytes)} per device: experts "
            f"{format_bytes(memory.total)} ({memory.total / found.plain.memory.total:.2f} times "
            f"expert parallelism's: weights {format_bytes(memory.weights)}, gradients "
            f"{format_bytes(memory.gradients)}, optimizer {format_bytes(memory.optimizer)}), "
            f"dense {format_bytes(step.dense_bytes)}, activations "
            f"{format_bytes(step.activation_bytes)}."
        )
    )
