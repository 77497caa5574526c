"""What ``moesim whatif cache`` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from moesim.cli.words import Words
from moesim.reports.whatif_report import build_whatif_report

if TYPE_CHECKING:
    from rich.console import Console

    from moesim.offload.whatif import WhatIf
    from moesim.reports.tables import Table as Content

__all__ = ["show_table", "show_whatif"]

_QUIET = "dim"


def show_whatif(found: WhatIf, files: Mapping[str, str], console: Console) -> None:
    """Print a what-if for a person."""
    words = Words(console)
    report = build_whatif_report(found)
    console.print(words.paragraph(report.headline, "bold"))
    for text in report.lead:
        console.print(words.paragraph(text))
    for note in report.notes:
        console.print(words.paragraph(f"{note.label} {note.value}: {note.detail}", _QUIET))
    for hits, speeds in zip(report.hit_rates, report.speeds, strict=True):
        show_table(hits, words, console)
        show_table(speeds, words, console)
    show_table(report.memory, words, console)
    for name, path in files.items():
        console.print(words(f"{name}  {path}"), soft_wrap=True)


def show_table(content: Content, words: Words, console: Console) -> None:
    """Print a table; the first column is a heading."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for index, name in enumerate(content.columns):
        table.add_column(words(name, _QUIET), justify="right" if index else "left", no_wrap=True)
    for row in content.rows:
        table.add_row(*map(words, row))
    console.print(table)
