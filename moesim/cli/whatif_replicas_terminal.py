"""What ``moesim whatif replicas`` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from moesim.cli.whatif_terminal import show_table
from moesim.cli.words import Words
from moesim.reports.replicas_report import (
    replicas_copies,
    replicas_headline,
    replicas_setting,
    replicas_table,
)
from moesim.reports.text import priced_by, sentence

if TYPE_CHECKING:
    from rich.console import Console

    from moesim.planners.replica_sweep import ReplicaSweep

__all__ = ["show_replicas"]


def show_replicas(found: ReplicaSweep, files: Mapping[str, str], console: Console) -> None:
    """Print a sweep for a person."""
    words = Words(console)
    console.print(words.paragraph(replicas_headline(found), "bold"))
    console.print(words.paragraph(replicas_copies(found)))
    console.print(words.paragraph(replicas_setting(found), "dim"))
    console.print(words.paragraph(sentence(priced_by(found.work.planning.kernels)), "dim"))
    show_table(replicas_table(found), words, console)
    for name, path in files.items():
        console.print(words(f"{name}  {path}"), soft_wrap=True)
