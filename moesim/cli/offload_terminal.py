"""What ``moesim simulate offload`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moesim.cli.whatif_terminal import show_table
from moesim.cli.words import Words
from moesim.reports.tables import Table
from moesim.reports.text import NOTHING, clean, percent, sentence
from moesim.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["show_offload"]

_COLUMNS = ("system", "TTFT", "TPOT", "tokens/s", "hit rate", "recall", "bound by")


def show_offload(data: dict[str, Any], console: Console) -> None:
    """Print a simulation of offloading for a person."""
    words = Words(console)
    disk = data["experts"] - data["host_slots"]
    where = "the others in host memory"
    if disk > 0:
        where = f"{data['host_slots']} in host memory, the others on disk"
    console.print(
        words.paragraph(
            f"{clean(data['model'])} on {clean(data['hardware'])}, {data['slots']} of "
            f"{data['experts']} experts per layer in GPU memory, {where}; batch {data['batch']}",
            "bold",
        )
    )
    if data["note"]:
        console.print(words.paragraph(sentence(data["note"]), "dim"))
    rows = []
    for name, run in data["systems"].items():
        busy = run["decode"]["busy"]
        prediction = run["prediction"]
        rows.append(
            (
                ("▸ " if name == data["best"] else "  ") + name,
                format_seconds(run["ttft_s"], pad=True),
                format_seconds(run["tpot_s"], pad=True),
                f"{run['tokens_per_s']:.4g}",
                percent(run["hit_rate"]),
                NOTHING if prediction is None else percent(prediction["recall"]),
                f"{run['bound']} {percent(busy[run['bound']])}",
            )
        )
    show_table(Table(_COLUMNS, tuple(rows)), words, console)
    best = data["systems"][data["best"]]
    console.print(
        words.paragraph(
            f"{data['best']}: {best['summary']} ({best['source']}). It copies "
            f"{format_bytes(best['link_bytes_per_token'])} per decoded token. Hit rate and what "
            "bounds it are of decode, with the share of the time that it works."
        )
    )
