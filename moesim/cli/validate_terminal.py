"""What ``moesim validate papers`` prints: figures, planners, other data, assumptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from moesim.cli.words import Words
from moesim.reports import paper_run, papers, papers_page
from moesim.reports.scenario import Metric
from moesim.reports.text import NOTHING, percent

if TYPE_CHECKING:
    from rich.console import Console

    from moesim.reports.offload_papers import OffloadPaper
    from moesim.reports.paper_run import PublishedPaper
    from moesim.reports.papers import PaperResult
    from moesim.reports.validation import ValidationRow

__all__ = ["show_papers"]

_WIDE = 110
"""From this many columns on there is room for gaps in the tables."""

_QUIET, _GOOD, _BAD = "dim", "green", "bold red"
_NAMES = {
    Metric.TOKEN_TAIL: "token processing, tail",
    Metric.TOKEN_AVERAGE: "token processing, average",
    Metric.ALL_TO_ALL_TAIL: "all-to-all, tail",
    Metric.ALL_TO_ALL_AVERAGE: "all-to-all, average",
    Metric.ALL_TO_ALL_PAIR: "all-to-all, slowest pair",
    Metric.END_TO_END_SPEEDUP: "end-to-end speed-up",
}
_BALANCE = "bal-\nance"
_SHORT = {
    Metric.TOKEN_TAIL: "tokens\ntail",
    Metric.TOKEN_AVERAGE: "tokens\nmean",
    Metric.ALL_TO_ALL_TAIL: "a2a\ntail",
    Metric.ALL_TO_ALL_AVERAGE: "a2a\nmean",
    Metric.ALL_TO_ALL_PAIR: "a2a\npair",
}


def show_papers(
    results: Sequence[PaperResult | OffloadPaper | PublishedPaper],
    summary: Mapping[str, Any],
    files: Mapping[str, str],
    console: Console,
) -> None:
    """Print the results for a person.

    Args:
        results: One per scenario.
        summary: Of all rows.
        files: What was written.
        console: Where to.
    """
    words = Words(console)
    for result in results:
        if isinstance(result, papers.PaperResult):
            _show_placement(result, words, console)
        elif isinstance(result, paper_run.PublishedPaper):
            _show_published(result, words, console)
        else:
            _show_offload(result, words, console)
        if result.scenario.assumptions:
            console.print(words.paragraph("Assumptions", "bold"))
        for item in result.scenario.assumptions:
            console.print(words.paragraph(f"{item.id}: {item.text}"))
        console.print()
    inside, covered = summary["ok"], summary["covered"]
    console.print(
        words.paragraph(
            f"{inside} of {covered} predicted figures within the tolerance; "
            f"{summary['n'] - covered} of {summary['n']} not covered.",
            _GOOD if inside == covered else _BAD,
        )
    )
    for check, of in summary.get("checks", {}).items():
        if of["n"]:
            console.print(words(f"{check:6} {of['ok']} of {of['covered']} ok, {of['n']} figures"))
    for name, path in files.items():
        console.print(words(f"{name}  {path}"), soft_wrap=True)


def _show_placement(result: PaperResult, words: Words, console: Console) -> None:
    scenario = result.scenario
    console.print(words.paragraph(scenario.title, "bold"))
    console.print(words.paragraph(f"{scenario.source.authors}, {scenario.source.url}"))
    console.print(
        words.paragraph(
            f"Reduction against {scenario.baseline}, planner {scenario.planner}, "
            f"communication {scenario.comm}; mean over {scenario.workload.seeds} synthetic "
            f"traces (like {scenario.workload.like}), so evidence: assumed."
        )
    )
    for setup in scenario.setups:
        console.print()
        console.print(words.paragraph(setup.title, "bold"))
        console.print(_figures(result, setup.id, words))
        console.print(words.paragraph("All planners on the first trace:"))
        console.print(_planners(result, setup.id, words))
    console.print(words.paragraph(f"Tolerance: {scenario.tolerance_reason}."))
    for figure, row in zip(scenario.figures, result.rows, strict=True):
        if figure.not_covered:
            console.print(words.paragraph(f"{row.id}: {row.note}.", _QUIET))
    if result.sensitivity and scenario.sensitivity is not None:
        console.print()
        console.print(
            words.paragraph(
                f"{scenario.planner} on other data ({scenario.sensitivity.setup}, one trace "
                f"each; balance is mean/max load of {scenario.baseline}):"
            )
        )
        console.print(_sensitivity(result, words))


def _show_published(result: PublishedPaper, words: Words, console: Console) -> None:
    paper = result.scenario
    console.print(words.paragraph(paper.title, "bold"))
    console.print(words.paragraph(f"{paper.source.authors}, {paper.source.url}"))
    table = _table(words, papers_page.COLUMNS[0], papers_page.COLUMNS[1:])
    for row in result.rows:
        cells = papers_page.figure_cells(row)
        table.add_row(*map(words, cells[:-1]), words(cells[-1], _verdict(row)[1]))
    console.print(table)
    if paper.fitted_on:
        console.print(words.paragraph(f"Fitted on {', '.join(paper.fitted_on)}."))
    for row in result.rows:
        if row.predicted is None:
            console.print(words.paragraph(f"{row.id}: {row.note}.", _QUIET))


def _show_offload(result: OffloadPaper, words: Words, console: Console) -> None:
    scenario = result.scenario
    console.print(words.paragraph(scenario.title, "bold"))
    console.print(words.paragraph(f"{scenario.source.authors}, {scenario.source.url}"))
    console.print(words.paragraph(f"On {scenario.hardware}; routing is made up: assumed."))
    table = _table(words, "figure", ["published", "predicted", "error", "tolerance", "verdict"])
    for row in result.rows:
        verdict, style = _verdict(row)
        table.add_row(
            words(row.id.partition(":")[2]),
            words(f"{row.reference:.3g}"),
            words(NOTHING if row.predicted is None else f"{row.predicted:.3g}"),
            words(NOTHING if row.error is None else f"{100 * row.error:+.1f} %"),
            words(f"{100 * row.tolerance:g} %"),
            words(verdict, style),
        )
    console.print(table)
    console.print(words.paragraph(f"Tolerance: {scenario.tolerance_reason}."))
    for row in result.rows:
        if row.predicted is None or "set-ups" in row.note:
            console.print(words.paragraph(f"{row.id}: {row.note}.", _QUIET))


def _table(words: Words, first: str, columns: Sequence[str]) -> Table:
    between = 0 if words.width < _WIDE else 2
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, between, 0, 0))
    for index, name in enumerate((first, *columns)):
        table.add_column(
            words(name, _QUIET),
            justify="right" if index else "left",
            no_wrap=True,
            vertical="bottom",
        )
    return table


def _figures(result: PaperResult, setup: str, words: Words) -> Table:
    table = _table(words, "figure", ["published", "predicted", "error", "tolerance", "verdict"])
    for figure, row in zip(result.scenario.figures, result.rows, strict=True):
        if figure.setup != setup:
            continue
        verdict, style = _verdict(row)
        table.add_row(
            words(_NAMES[figure.metric]),
            words(percent(row.reference)),
            words(percent(row.predicted)),
            words(_points(row.error)),
            words(f"{100 * row.tolerance:g} pp"),
            words(verdict, style),
        )
    return table


def _verdict(row: ValidationRow) -> tuple[str, str]:
    if row.ok is None:
        return "not covered", _QUIET
    return ("ok", _GOOD) if row.ok else ("outside", _BAD)


def _points(error: float | None) -> str:
    return NOTHING if error is None else f"{100 * error:+.1f} pp"


def _planners(result: PaperResult, setup: str, words: Words) -> Table:
    table = _table(words, "planner", [*_SHORT.values(), _BALANCE, "remote", "outcome"])
    for name, gain in result.planners[setup].items():
        cells = [name, *(percent(float(gain.gains[metric][0])) for metric in _SHORT)]
        cells += [f"{gain.balance[0]:.2f}", percent(float(gain.remote_fraction[0]))]
        table.add_row(*map(words, [*cells, gain.outcomes[0]]))
    return table


def _sensitivity(result: PaperResult, words: Words) -> Table:
    table = _table(words, "skew", ["affi-\nnity", _BALANCE, *_SHORT.values(), "outcome", ""])
    for point in result.sensitivity:
        cells = [f"{point.skew:g}", f"{point.affinity:g}", f"{point.baseline_balance:.2f}"]
        cells += [percent(point.gains[metric]) for metric in _SHORT]
        table.add_row(*map(words, [*cells, point.outcome, "preset" if point.preset else ""]))
    return table
