"""What ``moesim simulate training`` prints: the headline, where time goes, memory."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from moesim.cli.words import Words
from moesim.cost_model import cost_in_words
from moesim.reports.text import percent
from moesim.training.layer import DTYPE
from moesim.training.request import ENGINE
from moesim.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from rich.console import Console

    from moesim.training.outcome import TrainingStep
    from moesim.training.request import TrainingRequest

__all__ = ["show_training"]

_QUIET = "dim"


def show_training(request: TrainingRequest, found: TrainingStep, console: Console) -> None:
    """Print an iteration for a person.

    Args:
        request: What was asked.
        found: The answer.
        console: Where to.
    """
    words = Words(console)
    shape, options = found.shape, found.options
    layout = shape.layout
    priced_by = cost_in_words(request.cost, shape.model, DTYPE, ENGINE)
    ends = f"{format_seconds(found.lo_s)} … {format_seconds(found.hi_s)}"
    console.print(
        words.paragraph(
            f"An iteration of {shape.model.name} takes {format_seconds(found.step_s)} ({ends})",
            "bold",
        )
    )
    console.print(
        words.paragraph(
            f"{found.machine.cluster.name}, {request.system}, {layout}; {layout.global_batch:,} "
            f"sequences of {layout.sequence:,} tokens in {layout.micro_batches:,} micro-batches; "
            f"{found.tokens_per_s:,.0f} tokens/s, "
            f"{found.tokens_per_s / layout.devices:,.0f} per device; "
            f"model FLOPs utilisation {percent(found.mfu)}."
        )
    )
    console.print(
        words.paragraph(
            f"Cost {priced_by} (evidence {found.evidence}), kernels {options.slowdown:.3g} "
            f"times slower than alone; overlap {options.overlap}, recomputation "
            f"{options.recompute}, dispatch by {'all-to-all' if shape.alltoall else 'all-gather'}; "
            f"routing {found.routing}.",
            _QUIET,
        )
    )
    console.print(_times(found, words))
    console.print(
        words.paragraph(
            f"Of a micro-batch on a stage {format_seconds(max(found.stage_s))}: computation "
            f"{format_seconds(found.compute_s)}, communication "
            f"{format_seconds(found.communication_s)} before overlap; pipeline bubble "
            f"{percent(found.bubble)}. After the passes: gradients "
            f"{format_seconds(found.gradient_exposed_s)}, optimizer "
            f"{format_seconds(found.optimizer_s)}, weights "
            f"{format_seconds(found.weight_exposed_s)}."
        )
    )
    parts = ", ".join(
        f"{name} {format_bytes(value)}" for name, value in asdict(found.memory).items()
    )
    share = found.memory.total / found.machine.device.memory_bytes
    console.print(
        words.paragraph(
            f"Memory {format_bytes(found.memory.total)} per device, {percent(share)} of "
            f"{found.machine.device.name}: {parts}."
        )
    )


def _times(found: TrainingStep, words: Words) -> Table:
    """Seconds of a micro-batch on a stage by part and kind."""
    rows: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    pp = found.shape.layout.pp
    for way, calls in enumerate((found.forward, found.backward)):
        for priced in calls:
            call = priced.call
            count = 1.0 if call.block == "ends" else call.op.layers / pp
            kind = "communication" if call.communicates else call.op.operator
            part = "embedding and head" if call.block == "ends" else call.block
            rows[part, kind][way] += priced.time_s * count
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for index, name in enumerate(("part", "calls", "forward", "backward", "share")):
        table.add_column(words(name, _QUIET), justify="right" if index > 1 else "left")
    total = sum(sum(both) for both in rows.values())
    for (block, name), (there, back) in rows.items():
        cells = (block, name, format_seconds(there, pad=True), format_seconds(back, pad=True),
                 percent((there + back) / total))  # fmt: skip
        table.add_row(*map(words, cells))
    return table
