"""A plan as Markdown: tables that GitHub shows and that stay readable as plain text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from moesim.reports import markdown_parts as parts
from moesim.reports import validated
from moesim.reports.arithmetic import before_after, device_load, layer_time_s
from moesim.reports.plan_report import PlanReport, build_report
from moesim.reports.tables import Table
from moesim.reports.text import clean, ratio
from moesim.units import format_seconds

if TYPE_CHECKING:
    from moesim.planners.outcome import PlanOutcome

__all__ = ["render_markdown"]


def render_markdown(outcome: PlanOutcome) -> str:
    """The report as Markdown with a final newline."""
    report = build_report(outcome)
    return "\n\n".join(part for part in _parts(report, outcome) if part) + "\n"


def _parts(report: PlanReport, outcome: PlanOutcome) -> Iterable[str]:
    yield f"# {parts.escaped(report.headline)}"
    yield parts.escaped(report.title) + "."
    yield from map(parts.escaped, report.lead)
    yield parts.remark_list(report.notes)
    yield "## Planners"
    yield parts.escaped(report.bound)
    yield parts.table(report.planner_table)
    yield "\n".join(
        f"- **{parts.escaped(row.name)}**: {parts.escaped(row.summary)}" for row in report.planners
    )
    yield "## Where the load is"
    yield parts.fact_list(report.load)
    yield parts.table(_devices(outcome))
    yield "## Time per layer"
    yield parts.table(_layers(outcome))
    yield f"The {len(report.slowest.rows)} slowest layers:"
    yield parts.table(report.slowest)
    if outcome.validation is not None:
        yield "## Run for real"
        yield parts.escaped(validated.validation_text(outcome.validation))
        yield parts.table(validated.validation_table(outcome.validation))
        yield parts.fact_list(validated.validation_facts(outcome.validation))
    yield "## What bounds the step"
    yield parts.table(report.limits)
    yield "## Where to load the plan" if report.files.rows or report.launch else ""
    yield parts.table(report.files, code=True) if report.files.rows else ""
    for engine, flags in report.launch:
        yield f"{parts.escaped(engine)}:"
        yield parts.code_block(flags)
    yield "## How these numbers were made"
    yield parts.fact_list(report.method)
    yield "## To reproduce it"
    yield f"moesim {parts.escaped(report.version)}:"
    yield parts.code_block(report.command)
    yield parts.table(report.inputs, code=True) if report.inputs.rows else ""


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
                parts.sparkline(load.mean(axis=0), float(load.max())),
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
            parts.sparkline(time_s, top_s),
        )
        for name, time_s in times.items()
    )
    return Table(("time per layer", "mean", "slowest", "each layer"), tuple(rows))
