"""What ``moesim simulate step`` prints: the headline, calls by time, memory."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from moesim.cli.words import Words
from moesim.cost_model import cost_in_words
from moesim.reports.step_report import call_table, takes
from moesim.reports.text import percent
from moesim.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from rich.console import Console

    from moesim.forward.request import StepRequest
    from moesim.forward.simulate import ForwardStep

__all__ = ["show_step"]

_QUIET = "dim"


def show_step(request: StepRequest, found: ForwardStep, console: Console) -> None:
    """Print a step for a person.

    Args:
        request: What was asked.
        found: The answer.
        console: Where to.
    """
    words = Words(console)
    shape, machine = found.shape, found.machine
    unit = "token" if request.phase == "decode" else "prompt token"
    console.print(
        words.paragraph(f"A {request.phase} step of {shape.model.name} {takes(found)}", "bold")
    )
    console.print(
        words.paragraph(
            f"{machine.cluster.name}, {shape.layout}, {shape.layout.dispatch}; "
            f"{request.batch:,} sequences with {request.context:,} tokens each; "
            f"{found.tokens_per_s:,.0f} {unit}s/s, "
            f"{found.tokens_per_s / shape.layout.devices:,.0f} per device."
        )
    )
    formats = shape.formats
    priced_by = cost_in_words(machine.cost, shape.model, formats.experts, machine.engine)
    console.print(
        words.paragraph(
            f"Cost {priced_by} (evidence {found.evidence}), engine {machine.engine}; "
            f"projections {formats.gemm}, experts {formats.experts}, cache {formats.kv}; routing "
            f"{found.routing}. {_order(request, found)}; no scheduling time.",
            _QUIET,
        )
    )
    console.print(_ops(found, words))
    if (energy := found.energy) is not None:
        console.print(
            words.paragraph(
                f"Energy {energy.j_per_token:.3g} J per {unit} "
                f"({energy.lo_j_per_token:.3g} … {energy.hi_j_per_token:.3g}), "
                f"{energy.device_w:.0f} W per device: {energy.source} (evidence {energy.evidence})."
            )
        )
    memory = asdict(found.memory)
    parts = ", ".join(
        f"{name} {format_bytes(value)}" for name, value in memory.items() if value > 0
    )
    share = found.memory.total / machine.device.memory_bytes
    console.print(
        words.paragraph(
            f"Memory {format_bytes(found.memory.total)} per device, {percent(share)} of "
            f"{machine.device.name}: {parts}."
        )
    )


def _order(request: StepRequest, found: ForwardStep) -> str:
    """What runs beside what, and what drafts are."""
    order = "Kernels and communication one after the other"
    if request.overlap != "none":
        order = (
            f"Overlap {request.overlap} hides {format_seconds(found.hidden_s)} of the calls below"
        )
    if request.draft_tokens:
        gained = found.batch_tokens / request.batch
        maker = "by MTP layers" if found.shape.drafting is not None else "in no time"
        order += f"; {request.draft_tokens} drafts per step, made {maker}, gain {gained:.2f} tokens"
    return order


def _ops(found: ForwardStep, words: Words) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for index, name in enumerate(
        ("call", "lay-\ners", "time", "80 %\n× time", "share", "Op/B", "bound", "evi-\ndence")
    ):
        table.add_column(
            words(name, _QUIET),
            justify="right" if 0 < index < 6 else "left",
            no_wrap=True,
            vertical="bottom",
        )
    for row in call_table(found).rows:
        table.add_row(*(words(cell, "" if row[1] else _QUIET) for cell in row))
    return table
