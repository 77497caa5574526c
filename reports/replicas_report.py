"""``moesim whatif replicas`` told: sentences and a table for every face, and the page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import moesim
from moesim.reports import page
from moesim.reports.explorer import explorer, measure
from moesim.reports.tables import Fact, Table
from moesim.reports.text import clean, count
from moesim.safe_io import write_atomic
from moesim.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from moesim.planners.replica_sweep import ReplicaSweep

__all__ = [
    "replicas_copies",
    "replicas_headline",
    "replicas_setting",
    "replicas_table",
    "write_replicas_page",
]

_COLUMNS = ("redundant", "GB/device", "step", "gain", "balance", "fixed shares", "ideal", "planner")


def replicas_headline(found: ReplicaSweep) -> str:
    """The recommendation in one sentence."""
    first, best = found.points[0], found.points[found.recommended]
    where = clean(f"{found.model.name} on {found.cluster.name}")
    if best.redundant == first.redundant:
        return f"{where}: {best.redundant} redundant slots are enough, more save less than 1 %"
    gain = first.step.step_s / best.step.step_s
    return (
        f"{where}: {best.redundant} redundant slots per layer make a step {gain:.2f}× as fast "
        f"for {format_bytes(best.added_bytes)} more weights"
    )


def replicas_copies(found: ReplicaSweep) -> str:
    """What the recommended number of slots is used for, and what even shares cost."""
    best = found.points[found.recommended]
    return (
        f"{best.copied:.0f} experts per layer have copies, at most {best.most_copies} of one. "
        "Copies take even shares of their expert's tokens. Fixed shares that suit the mean "
        f"loads would take {format_seconds(best.fixed_share_s)}, the best shares of every "
        f"batch {format_seconds(best.ideal_s)}; plan files carry neither."
    )


def replicas_setting(found: ReplicaSweep) -> str:
    """What was priced."""
    part = "planned on" if found.work.holdout is None else "kept back from planning"
    return (
        f"{found.request.phase} steps of the part of the trace that was {part}; "
        f"{found.request.comm}; all-to-alls as with even shares"
    )


def replicas_table(found: ReplicaSweep) -> Table:
    """A row per number of redundant slots."""
    first = found.points[0]
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
    return Table(_COLUMNS, rows, marked=found.recommended)


def write_replicas_page(found: ReplicaSweep, path: Path, command: str) -> Path:
    """One page that loads nothing: step time against slots, movable, and the table."""
    return write_atomic(
        path,
        page.render_page(
            title=f"Redundant experts: {clean(found.model.name)} on {clean(found.cluster.name)}",
            version=moesim.__version__,
            headline=replicas_headline(found),
            lead=(replicas_copies(found), f"Priced: {replicas_setting(found)}."),
            top_facts=_facts(found),
            remarks=(Fact("Trace", clean(found.work.name), clean(found.work.note)),),
            sections=(
                page.section(
                    "Step time against memory",
                    "",
                    _explored(found),
                    page.table(replicas_table(found)),
                ),
                page.command_section(command),
            ),
        ),
    )


def _facts(found: ReplicaSweep) -> tuple[Fact, ...]:
    first, best = found.points[0], found.points[found.recommended]
    return (
        Fact("redundant slots", str(best.redundant), f"per layer, planner {best.planner}"),
        Fact(
            "step",
            format_seconds(best.step.step_s),
            f"80 % interval {format_seconds(best.step.lo_s)} … {format_seconds(best.step.hi_s)}",
        ),
        Fact(
            "gain",
            f"{first.step.step_s / best.step.step_s:.2f}×",
            f"over {first.redundant} redundant slots",
        ),
        Fact("memory", format_bytes(best.device_bytes), "of routed experts on a device"),
        Fact("balance", f"{best.step.balance:.3f}", f"{best.ideal_balance:.3f} with ideal shares"),
    )


def _explored(found: ReplicaSweep) -> str:
    first, points = found.points[0], found.points
    notes = [
        f"{format_bytes(point.device_bytes)} of experts per device, "
        f"{format_bytes(point.added_bytes)} more on all devices; "
        f"{first.step.step_s / point.step.step_s:.3f}× as fast as {count(first.redundant)} slots"
        for point in points
    ]
    step_ms = {
        "even shares": [1e3 * point.step.step_s for point in points],
        "fixed shares": [1e3 * point.fixed_share_s for point in points],
        "ideal shares": [1e3 * point.ideal_s for point in points],
    }
    balance = {
        "even shares": [point.step.balance for point in points],
        "ideal shares": [point.ideal_balance for point in points],
    }
    return explorer(
        "lines",
        {
            "title": "Move the number of redundant slots",
            "sizes": [point.redundant for point in points],
            "size_name": "redundant slots per layer",
            "chosen": points[found.recommended].redundant,
            "notes": notes,
            "measures": [measure("step", "ms", step_ms), measure("balance", "", balance)],
        },
    )
