"""What ``moesim capacity`` prints: the answer, how to launch it, the frontier, who lost and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from moesim.cli.words import Words
from moesim.reports import capacity_text as text
from moesim.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["show_capacity"]

_QUIET = "dim"


def show_capacity(data: dict[str, Any], console: Console) -> None:
    """Print an answer for a person.

    Args:
        data: As :func:`~moesim.capacity.document.capacity_json` gives it.
        console: Where to.
    """
    words = Words(console)
    best = data["best"]
    console.print(words.paragraph(text.headline(data), "bold"))
    console.print(words.paragraph(text.promise(data)))
    console.print(words.paragraph(text.spent(data)))
    for worker, lines in best["launch"].items():
        console.print(words.paragraph(f"Launch ({worker}):", _QUIET))
        for line in lines:
            console.print(line, soft_wrap=True, highlight=False, markup=False)
    console.print(_frontier(data, words))
    for phase, bound in best["bottleneck"].items():
        console.print(words.paragraph(f"{phase.capitalize()} is bound by {bound}."))
    memory = {name: size for name, size in best["memory"].items() if size > 0}
    parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in memory.items())
    console.print(
        words.paragraph(
            f"A decoding device holds {format_bytes(best['memory_bytes_per_device'])} at that load "
            f"({parts}); the caches of a replica hold {best['kv_tokens']:,} tokens."
        )
    )
    for crossover in data["crossovers"]:
        console.print(words.paragraph(text.crossover(crossover)))
    if data["runners_up"]:
        console.print(words.paragraph("Why others lost:", _QUIET))
        for loser in data["runners_up"]:
            console.print(words.paragraph(f"{loser['name']}: {loser['reason']}"))
    console.print(words.paragraph(f"Cost {data['cost']}.", _QUIET))
    searched = data["searched"]
    console.print(
        words.paragraph(
            f"{searched['layouts']} layouts that fit ({searched['refused']} do not), "
            f"{searched['deployments']} deployments estimated, {searched['played']} played, "
            f"{data['solve_s']:.1f} s.",
            _QUIET,
        )
    )


def _frontier(data: dict[str, Any], words: Words) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    heads = (
        "frontier",
        "tokens/s\nper user",
        "per\ndevice",
        "80 %",
        "TTFT",
        "USD/\nMtok",
        "J/\ntok",
    )
    for index, name in enumerate(heads):
        table.add_column(
            words(name, _QUIET), justify="left" if index == 0 else "right", vertical="bottom",
            no_wrap=index > 0,
        )  # fmt: skip
    for entry in data["frontier"]:
        table.add_row(*map(words, text.frontier_cells(entry)))
    return table
