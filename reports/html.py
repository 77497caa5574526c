"""A plan as one HTML page: nothing loaded, readable on a phone, on paper, in the dark.

Everything that came from outside passes :func:`html.escape`; the page also forbids loading, and all
scripts but its own, by its content security policy, should an escape ever be missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from moesim.reports import arithmetic, figures, page, validated
from moesim.reports.explorer import explorer
from moesim.reports.plan_report import PlannerRow, PlanReport, build_report
from moesim.reports.text import clean

if TYPE_CHECKING:
    from moesim.planners.outcome import PlanOutcome

__all__ = ["render_html"]


def render_html(outcome: PlanOutcome) -> str:
    """The report as a self-contained page; the same outcome gives the same bytes."""
    report = build_report(outcome)
    return page.render_page(
        title=report.title,
        version=report.version,
        headline=report.headline,
        lead=report.lead,
        top_facts=report.facts,
        remarks=report.notes,
        sections=_sections(report, outcome),
    )


def _sections(report: PlanReport, outcome: PlanOutcome) -> Iterable[str]:
    yield page.section("Planners", report.bound, _planners(report, outcome.bound.lower_bound_s))
    yield page.section(
        "Where the load is",
        "How often each expert was chosen, and what that makes each device carry. The fullest "
        "device of a layer is the one that all others wait for.",
        '<div class="pair">',
        page.figure(figures.expert_load(outcome)),
        f'<div class="card stats">{page.facts(report.load, "list")}</div></div>',
        page.figures(figures.device_load(outcome)),
        _device_loads(outcome),
    )
    yield page.section(
        "Traffic between devices",
        "Bytes per step, all layers, both ways. Gaps divide the nodes."
        if outcome.cluster.nodes > 1
        else "Bytes per step, all layers, both ways.",
        page.figures(figures.traffic(outcome)),
        _traffic(outcome),
    )
    yield page.section(
        "Time per layer", "", page.figures(figures.layer_time(outcome)), _legend(outcome)
    )
    if outcome.validation is not None:
        listed = page.facts(validated.validation_facts(outcome.validation), "list")
        yield page.section(
            "Run for real",
            validated.validation_text(outcome.validation),
            '<div class="pair">',
            page.figure(validated.validation_picture(outcome.validation)),
            f'<div class="card stats">{listed}</div></div>',
            page.table(validated.validation_table(outcome.validation)),
        )
    yield page.section(
        "What bounds the step",
        "Shares are of the expert layers' time; the busiest link has the longest bytes ÷ "
        "bandwidth.",
        page.table(report.limits),
    )
    if report.files.rows or report.launch:
        yield page.section("Where to load the plan", "", *_load_it(report))
    yield page.section(
        "How these numbers were made", "", page.card(page.facts(report.method, "method"))
    )
    yield page.command_section(
        report.command,
        page.table(report.inputs, "text", code=True) if report.inputs.rows else "",
    )


def _device_loads(outcome: PlanOutcome) -> str:
    """Load of every device under every planner, layer by layer."""
    loads = {
        name: arithmetic.device_load(outcome, score.cost) for name, score in outcome.scores.items()
    }
    return explorer(
        "heat",
        {
            "title": "Device load under every planner",
            "variant_name": "planner",
            "row_name": "layer",
            "column_name": "device",
            "unit": "× the layer's mean",
            "even": True,
            "rows": [str(layer) for layer in outcome.moe_layers],
            "columns": [str(device) for device in range(outcome.cluster.devices)],
            "variants": [
                {"name": clean(name), "values": np.round(load, 4).tolist()}
                for name, load in loads.items()
            ],
        },
    )


def _traffic(outcome: PlanOutcome) -> str:
    """Bytes from device to device under every planner."""
    devices = [str(device) for device in range(outcome.cluster.devices)]
    return explorer(
        "heat",
        {
            "title": "Traffic under every planner",
            "variant_name": "planner",
            "row_name": "sender",
            "column_name": "receiver",
            "unit": "MB per step",
            "even": False,
            "rows": devices,
            "columns": devices,
            "variants": [
                {
                    "name": clean(name),
                    "values": np.round(_between(score.cost.traffic_bytes) / 1e6, 4).tolist(),
                }
                for name, score in outcome.scores.items()
            ],
        },
    )


def _between(sent: np.ndarray) -> np.ndarray:
    """Without what stays on a device."""
    kept = np.array(sent, np.float64)
    np.fill_diagonal(kept, 0.0)
    return kept


def _legend(outcome: PlanOutcome) -> str:
    where = "next experts’" if outcome.comm == "chain" else "experts’"
    parts = {
        "dispatch": f"tokens to the {where} devices",
        "experts": "the slowest device",
        "combine": "results back",
    }
    items = [
        f'<li><i style="background:var(--{part})"></i>{part}: {text}</li>'
        for part, text in parts.items()
    ]
    if outcome.chosen != outcome.baseline:
        baseline = escape(clean(outcome.scores[outcome.baseline].name))
        items.append(f'<li><i class="line"></i>{baseline}, for comparison</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'


def _planners(report: PlanReport, bound_s: float) -> str:
    """The planner table; step times are also drawn, with the bound as a mark."""
    longest_s = max(row.step_s for row in report.planners) or 1.0
    columns = report.planner_table.columns
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)

    def line(row: PlannerRow) -> str:
        name, step, *rest = map(escape, row.cells())
        marked = ' class="chosen"' if row.chosen else ""
        tag = '<span class="tag">chosen</span>' if row.chosen else ""
        mark = f'<b style="left:{100 * bound_s / longest_s:.1f}%"></b>' if bound_s > 0 else ""
        drawn = (
            f'<span class="track" aria-hidden="true">'
            f'<i style="width:{100 * row.step_s / longest_s:.1f}%"></i>{mark}</span>'
        )
        return (
            f"<tr{marked}>"
            f'<th scope="row">{name}{tag}<span class="why">{escape(row.summary)}</span></th>'
            f"<td>{step}{drawn}</td>{''.join(f'<td>{cell}</td>' for cell in rest)}</tr>"
        )

    body = "".join(map(line, report.planners))
    legend = (
        '<ul class="legend"><li><i class="bound"></i>lower bound of the step time</li></ul>'
        if bound_s > 0
        else ""
    )
    return (
        page.scrolling("Planners", f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>") + legend
    )


def _load_it(report: PlanReport) -> Iterable[str]:
    if report.files.rows:
        yield page.table(report.files, "text", code=True)
    flags = "".join(
        f"<div><h3>{escape(engine)}</h3><pre><code>{escape(line)}</code></pre></div>"
        for engine, line in report.launch
    )
    if flags:
        yield f'<div class="card stack">{flags}</div>'
