"""A plan as Markdown: tables that GitHub shows and that stay readable as plain text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from moesim.reports.arithmetic import before_after, device_load, layer_time_s
from moesim.reports.plan_report import Fact, PlanReport, Table, build_report
from moesim.reports.text import clean, ratio
from moesim.units import format_seconds

if TYPE_CHECKING:
    from moesim.planners.outcome import PlanOutcome

__all__ = ["render_markdown"]

_BLOCKS = "▁▂▃▄▅▆▇█"


def render_markdown(outcome: PlanOutcome) -> str:
    """The report as Markdown with a final newline."""
    report = build_report(outcome)
    return "\n\n".join(part for part in _parts(report, outcome) if part) + "\n"


def _parts(report: PlanReport, outcome: PlanOutcome) -> Iterable[str]:
    yield f"# {_text(report.headline)}"
    yield _text(report.title) + "."
    yield from map(_text, report.lead)
    yield "\n".join(
        f"> **{_text(note.label)}: {_text(note.value)}.** {_text(note.detail)}\n>"
        for note in report.notes
    ).removesuffix("\n>")
    yield "## Planners"
    yield _text(report.bound)
    yield _table(report.planner_table)
    yield "\n".join(f"- **{_text(row.name)}**: {_text(row.summary)}" for row in report.planners)
    yield "## Where the load is"
    yield _facts(report.load)
    yield _table(_devices(outcome))
    yield "## Time per layer"
    yield _table(_layers(outcome))
    yield f"The {len(report.slowest.rows)} slowest layers:"
    yield _table(report.slowest)
    yield "## What bounds the step"
    yield _table(report.limits)
    yield "## Where to load the plan" if report.files.rows or report.launch else ""
    yield _table(report.files, code=True) if report.files.rows else ""
    for engine, flags in report.launch:
        yield f"{_text(engine)}:"
        yield _block(flags)
    yield "## How these numbers were made"
    yield _facts(report.method)
    yield "## To reproduce it"
    yield f"moesim {_text(report.version)}:"
    yield _block(report.command)
    yield _table(report.inputs, code=True) if report.inputs.rows else ""


def _text(text: str) -> str:
    """Text that Markdown and the HTML inside it leave as it is."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # An underscore inside a word is no markup; escaping it would only spoil the plain text.
    return re.sub(r"[\\`*\[\]|~]|^[#+=-]|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)


def _code(text: str) -> str:
    """A code span; a bar would end the cell even there."""
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{ticks}{space}{text.replace('|', chr(92) + '|')}{space}{ticks}"


def _block(text: str) -> str:
    ticks = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{ticks}\n{text}\n{ticks}"


def _facts(facts: Sequence[Fact]) -> str:
    lines = []
    for fact in facts:
        detail = f" ({_text(fact.detail).rstrip('.')})" if fact.detail else ""
        label = fact.label[:1].upper() + fact.label[1:]
        lines.append(f"- {_text(label)}: **{_text(fact.value)}**{detail}")
    return "\n".join(lines)


def _table(table: Table, *, code: bool = False) -> str:
    """A table padded so that it lines up as plain text too."""
    show = _code if code else _text
    lines = [[_text(name) for name in table.columns]]
    for index, (first, *rest) in enumerate(table.rows):
        marked = index == table.marked
        cells = [_text(first), *map(show, rest)]
        lines.append([f"**{cell}**" if marked else cell for cell in cells])
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(table.columns))]

    def right(column: int) -> bool:
        return table.numeric and column > 0

    rule = ["-" * (w - 1) + ":" if right(i) else "-" * w for i, w in enumerate(widths)]
    lines.insert(1, rule)
    return "\n".join(
        "| "
        + " | ".join(
            cell.rjust(width) if right(i) else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in lines
    )


def _devices(outcome: PlanOutcome) -> Table:
    rows = []
    for score in before_after(outcome):
        load = device_load(outcome, score.cost)
        worst = load.max(axis=1)
        rows.append(
            (
                clean(score.name),
                ratio(float(worst.mean())),
                ratio(float(worst.max())),
                _sparkline(load.mean(axis=0), float(load.max())),
            )
        )
    columns = ("device load ÷ layer mean", "mean of fullest", "fullest", "mean of each device")
    return Table(columns, tuple(rows))


def _layers(outcome: PlanOutcome) -> Table:
    times = {clean(score.name): layer_time_s(score.cost) for score in before_after(outcome)}
    top_s = max(float(time_s.max()) for time_s in times.values())
    rows = (
        (
            name,
            format_seconds(float(time_s.mean()), pad=True),
            format_seconds(float(time_s.max()), pad=True),
            _sparkline(time_s, top_s),
        )
        for name, time_s in times.items()
    )
    return Table(("time per layer", "mean", "slowest", "each layer"), tuple(rows))


def _sparkline(values: np.ndarray, top: float) -> str:
    steps = np.ceil(values / (top or 1.0) * len(_BLOCKS)).astype(int).clip(1, len(_BLOCKS))
    return "".join(_BLOCKS[step - 1] for step in steps)
