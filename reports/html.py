"""A plan as one HTML page: no scripts, nothing loaded, readable on a phone, on paper, in the dark.

Everything that came from outside passes :func:`html.escape`; the page also forbids scripts and
loading by its own content security policy, should an escape ever be missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from moesim.reports import figures
from moesim.reports.plan_report import Fact, PlannerRow, PlanReport, Table, build_report
from moesim.reports.text import clean, keep_units

if TYPE_CHECKING:
    from moesim.planners.outcome import PlanOutcome

__all__ = ["render_html"]

_TEMPLATES = Path(__file__).parent / "templates"


def render_html(outcome: PlanOutcome) -> str:
    """The report as a self-contained page; the same outcome gives the same bytes."""
    report = build_report(outcome)
    template = Template((_TEMPLATES / "plan.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(report.title),
        version=escape(report.version),
        style=(_TEMPLATES / "plan.css").read_text(encoding="utf-8").strip(),
        headline=_prose(report.headline),
        lead="\n".join(f'<p class="lead">{_prose(text)}</p>' for text in report.lead),
        facts=_facts(report.facts, "facts"),
        notes=_notes(report.notes),
        sections="\n".join(_sections(report, outcome)),
    )


def _sections(report: PlanReport, outcome: PlanOutcome) -> Iterable[str]:
    yield _section("Planners", report.bound, _planners(report, outcome.bound.lower_bound_s))
    yield _section(
        "Where the load is",
        "How often each expert was chosen, and what that makes each device carry. The fullest "
        "device of a layer is the one that all others wait for.",
        '<div class="pair">',
        _figure(figures.expert_load(outcome)),
        f'<div class="card stats">{_facts(report.load, "list")}</div></div>',
        _figures(figures.device_load(outcome)),
    )
    yield _section(
        "Traffic between devices",
        "Bytes per step, all layers, both ways. Gaps divide the nodes."
        if outcome.cluster.nodes > 1
        else "Bytes per step, all layers, both ways.",
        _figures(figures.traffic(outcome)),
    )
    yield _section("Time per layer", "", _figures(figures.layer_time(outcome)), _legend(outcome))
    yield _section(
        "What bounds the step",
        "Shares are of the expert layers' time; the busiest link has the longest bytes ÷ "
        "bandwidth.",
        _table(report.limits),
    )
    if report.files.rows or report.launch:
        yield _section("Where to load the plan", "", *_load_it(report))
    yield _section("How these numbers were made", "", _card(_facts(report.method, "method")))
    yield _section(
        "To reproduce it",
        "",
        f'<div class="card"><pre><code>{escape(report.command)}</code></pre></div>',
        _table(report.inputs, "text", code=True) if report.inputs.rows else "",
    )


def _prose(text: str) -> str:
    """Escaped, with numbers kept on one line with their units."""
    return escape(keep_units(text))


def _section(title: str, text: str, *parts: str) -> str:
    intro = f"<p>{_prose(text)}</p>" if text else ""
    body = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{escape(title)}</h2>{intro}\n{body}\n</section>"


def _card(content: str) -> str:
    return f'<div class="card">{content}</div>'


def _facts(facts: Sequence[Fact], kind: str) -> str:
    def item(fact: Fact) -> str:
        detail = f'<dd class="detail">{_prose(fact.detail)}</dd>' if fact.detail else ""
        return (
            f"<div><dt>{escape(fact.label)}</dt>"
            f'<dd class="value">{escape(fact.value)}</dd>{detail}</div>'
        )

    return f'<dl class="{kind}">{"".join(map(item, facts))}</dl>'


def _notes(notes: Sequence[Fact]) -> str:
    items = "".join(
        f"<p><strong>{escape(note.label)}: {escape(note.value)}.</strong> {_prose(note.detail)}</p>"
        for note in notes
    )
    return f'<div class="notes">{items}</div>'


def _figure(picture: figures.Picture) -> str:
    return (
        f'<figure class="card"><figcaption><strong>{escape(picture.title)}</strong>'
        f"<span>{escape(picture.remark)}</span></figcaption>"
        f'<div role="img" aria-label="{escape(picture.alt)}">{picture.svg}</div></figure>'
    )


def _figures(pictures: Sequence[figures.Picture]) -> str:
    return f'<div class="pair">{"".join(map(_figure, pictures))}</div>'


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
    return _scrolling("Planners", f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>") + legend


def _scrolling(label: str, content: str) -> str:
    # A region that scrolls must be reachable by keyboard.
    return (
        f'<div class="card flush wide"><div class="scroll" role="region" '
        f'aria-label="{escape(label)}" tabindex="0"><table>{content}</table></div></div>'
    )


def _table(table: Table, kind: str = "plain", *, code: bool = False) -> str:
    head = "".join(
        f'<th scope="col">{escape(name)}</th>' if name else "<td></td>" for name in table.columns
    )

    def cell(text: str) -> str:
        return f"<td><code>{escape(text)}</code></td>" if code else f"<td>{escape(text)}</td>"

    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(map(cell, rest))}</tr>'
        for first, *rest in table.rows
    )
    return (
        f'<div class="card flush"><div class="scroll"><table class="{kind}">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></div>"
    )


def _load_it(report: PlanReport) -> Iterable[str]:
    if report.files.rows:
        yield _table(report.files, "text", code=True)
    flags = "".join(
        f"<div><h3>{escape(engine)}</h3><pre><code>{escape(line)}</code></pre></div>"
        for engine, line in report.launch
    )
    if flags:
        yield f'<div class="card stack">{flags}</div>'
