"""What ``moesim simulate fpga`` prints: where time goes, what each technique is worth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from moesim.cli.words import Words
from moesim.reports.text import percent, ratio
from moesim.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from rich.console import Console

    from moesim.fpga.simulate import FpgaRequest, FpgaRun

__all__ = ["show_fpga"]

_QUIET = "dim"


def show_fpga(request: FpgaRequest, found: FpgaRun, console: Console) -> None:
    """Print an image's way for a person.

    Args:
        request: What was asked.
        found: The answer.
        console: Where to.
    """
    words = Words(console)
    chosen, net = found.chosen, found.network
    ends = f"{format_seconds(chosen.lo_s)} … {format_seconds(chosen.hi_s)}"
    left_out = f" without {', '.join(request.without)}" if request.without else ""
    console.print(
        words.paragraph(
            f"An image takes {format_seconds(chosen.step_s)} ({ends}) and "
            f"{found.energy_j:.3g} J on {found.device.name}{left_out}",
            "bold",
        )
    )
    console.print(
        words.paragraph(
            f"{net.title}: {net.tokens} tokens, {found.experts_hit:.1f} of {net.moe.experts} "
            f"experts hit per layer; {found.design.title}; {1 / chosen.step_s:.1f} images/s at "
            f"{found.power_w:g} W ({found.power_evidence}); "
            f"{found.resources.dsp_slices:,} DSP slices ({percent(found.resources.dsp_share)}) "
            f"and {format_bytes(found.resources.buffer_bytes)} of weights on chip, "
            f"{request.pinned} of {found.resources.room_experts} experts that fit."
        )
    )
    console.print(
        words.paragraph(
            f"Range: no memory latency … twice as much. Evidence {found.evidence}; routing "
            f"{'trace' if request.trace else request.routing}, {request.images} images.",
            _QUIET,
        )
    )
    console.print(_parts(found, words))
    busiest = max(chosen.port_busy, key=lambda key: chosen.port_busy[key])
    console.print(
        words.paragraph(
            f"Memory traffic {format_bytes(chosen.moved_bytes)}, of which experts "
            f"{format_bytes(chosen.expert_bytes)}; the busiest port, {busiest[0]}, is "
            f"{'written' if busiest[1] else 'read'} {percent(chosen.port_busy[busiest])} of the "
            "time."
        )
    )
    console.print(_ablations(found, words))


def _parts(found: FpgaRun, words: Words) -> Table:
    table = _table(words, ("part", "time", "share", "bound", "bytes"))
    for timed in found.chosen.parts:
        cells = (timed.name, format_seconds(timed.time_s, pad=True),
                 percent(timed.time_s / found.chosen.step_s), timed.part.bound,
                 format_bytes(timed.part.moved_bytes))  # fmt: skip
        table.add_row(*map(words, cells))
    return table


def _ablations(found: FpgaRun, words: Words) -> Table:
    table = _table(words, ("left out", "time", "slower", "experts' bytes", "all bytes"))
    for name, left in found.ablations.items():
        cells = (name, format_seconds(left.step_s, pad=True),
                 ratio(left.step_s / found.complete.step_s), format_bytes(left.expert_bytes),
                 format_bytes(left.moved_bytes))  # fmt: skip
        table.add_row(*map(words, cells))
    return table


def _table(words: Words, names: tuple[str, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for index, name in enumerate(names):
        table.add_column(words(name, _QUIET), justify="right" if index else "left")
    return table
