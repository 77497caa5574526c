"""The calls of a forward step as a table, for every face."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesim.reports.tables import Table
from moesim.reports.text import clean, percent
from moesim.units import format_seconds

if TYPE_CHECKING:
    from moesim.forward.simulate import ForwardStep

__all__ = ["call_table", "takes"]

COLUMNS = ("call", "layers", "time", "80 % × time", "share", "Op/B", "bound", "evidence")
SHOWN = 0.005
"""Calls below this share of the step are one line."""


def takes(found: ForwardStep) -> str:
    """The step's time with its interval, as a clause."""
    ends = f"{format_seconds(found.lo_s)} … {format_seconds(found.hi_s)}"
    if found.machine.cost == "roofline":
        return f"takes at least {format_seconds(found.step_s)}, as kernels measured go {ends}"
    return f"takes {format_seconds(found.step_s)} ({ends})"


def call_table(found: ForwardStep) -> Table:
    """Calls in their order; short ones are the last row, whose number of layers is empty."""
    rows, rest_s, rest = [], 0.0, 0
    for priced in found.ops:
        op, price = priced.op, priced.price
        if priced.time_s < SHOWN * found.step_s:
            rest_s, rest = rest_s + priced.time_s, rest + 1
            continue
        moved = op.work.bytes
        rows.append(
            (
                clean(op.name),
                f"{op.layers}",
                format_seconds(priced.time_s, pad=True),
                f"{_times(price.lo_s / price.time_s)}–{_times(price.hi_s / price.time_s)}",
                percent(priced.time_s / found.step_s),
                f"{op.work.flops / moved:.0f}" if op.work.flops and moved else "",
                clean(priced.bound),
                price.evidence.value,
            )
        )
    if rest:
        share = percent(rest_s / found.step_s)
        rows.append((f"{rest} shorter calls", "", format_seconds(rest_s), "", share, "", "", ""))
    return Table(COLUMNS, tuple(rows))


def _times(ratio: float) -> str:
    """A multiple, in four characters."""
    return f"{ratio:.2f}" if ratio < 9.95 else f"{ratio:.0f}"
