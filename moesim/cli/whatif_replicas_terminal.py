"""What ``moesim whatif replicas`` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from moesim.cli.whatif_terminal import show_table
from moesim.cli.words import Words
from moesim.reports.plan_report import Table
from moesim.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from rich.console import Console

    from moesim.planners.replica_sweep import ReplicaSweep

__all__ = ["show_replicas"]

_QUIET = "dim"
_COLUMNS = ("redundant", "GB/device", "step", "gain", "balance", "fixed shares", "ideal", "planner")


def show_replicas(found: ReplicaSweep, files: Mapping[str, str], console: Console) -> None:
    """Print a sweep for a person."""
    words = Words(console)
    first, best = found.points[0], found.points[found.recommended]
    console.print(words.paragraph(_headline(found), "bold"))
    console.print(
        words.paragraph(
            f"{best.copied:.0f} experts per layer have copies, at most {best.most_copies} of one. "
            "Copies take even shares of their expert's tokens. Fixed shares that suit the mean "
            f"loads would take {format_seconds(best.fixed_share_s)}, the best shares of every "
            f"batch {format_seconds(best.ideal_s)}; plan files carry neither."
        )
    )
    part = "planned on" if found.work.holdout is None else "kept back from planning"
    console.print(
        words.paragraph(
            f"{found.request.phase} steps of the part of the trace that was {part}; "
            f"{found.request.comm}; all-to-alls as with even shares",
            _QUIET,
        )
    )
    rows = tuple(
        (
            str(point.redundant),
            f"{point.device_bytes / 1e9:.2f}",
            format_seconds(point.step.step_s),
            f"{(first.step.step_s / point.step.step_s - 1) * 100:+.1f} %",
            f"{point.step.balance:.3f}",
            format_seconds(point.fixed_share_s),
            format_seconds(point.ideal_s),
            point.planner,
        )
        for point in found.points
    )
    show_table(Table(_COLUMNS, rows, marked=found.recommended), words, console)
    for name, path in files.items():
        console.print(words(f"{name}  {path}"), soft_wrap=True)


def _headline(found: ReplicaSweep) -> str:
    first, best = found.points[0], found.points[found.recommended]
    where = f"{found.model.name} on {found.cluster.name}"
    if best.redundant == first.redundant:
        return f"{where}: {best.redundant} redundant slots are enough, more save less than 1 %"
    gain = first.step.step_s / best.step.step_s
    return (
        f"{where}: {best.redundant} redundant slots per layer make a step {gain:.2f}× as fast "
        f"for {format_bytes(best.added_bytes)} more weights"
    )
