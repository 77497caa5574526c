"""What ``moesim plan`` prints: the headline, the planners, the slowest layers, the files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich import box
from rich.table import Table

from moesim.cli.words import Words
from moesim.reports.arithmetic import before_after, layer_time_s
from moesim.reports.plan_report import PlannerRow, build_report
from moesim.reports.text import NOTHING, clean, duration, excess, percent, ratio
from moesim.reports.validated import validation_facts, validation_table, validation_text
from moesim.units import format_seconds

if TYPE_CHECKING:
    from rich.console import Console

    from moesim.planners.outcome import PlanOutcome
    from moesim.planners.validation import PlacementValidation

__all__ = ["terminal_summary"]

_WIDE = 110
"""From this many columns on there is room for every column of the planner table."""

_LONGEST_NAME = 20
_BEFORE, _AFTER, _QUIET = "bright_black", "cyan", "dim"
_CHOSEN = "bold cyan"


def terminal_summary(outcome: PlanOutcome, console: Console, *, layers: int = 4) -> None:
    """Print the plan for a person.

    Names in it are never read as markup. Colours follow the console: none on a pipe or under
    ``NO_COLOR``; a console without Unicode gets ASCII.

    Args:
        outcome: What planning and its evaluation gave.
        console: Where to.
        layers: How many of the slowest layers to draw.
    """
    report = build_report(outcome)
    words = Words(console)
    console.print(words.paragraph(report.headline, "bold"))
    for sentence in report.lead:
        console.print(words.paragraph(sentence))
    for note in report.notes:
        console.print(words.paragraph(f"{note.label} {note.value}: {note.detail}", _QUIET))
    console.print(_planners(report.planners, words, console.width))
    console.print(words.paragraph(report.bound))
    console.print()
    console.print(_slowest_layers(outcome, words, console.width, layers))
    if outcome.validation is not None:
        console.print()
        _validation(outcome.validation, words, console)
    if report.files.rows:
        console.print()
        width = max(len(kind) for kind, _ in report.files.rows)
        for kind, path in report.files.rows:
            # A path broken over lines cannot be copied.
            console.print(words(f"{kind:<{width}}  {path}"), soft_wrap=True)


def _validation(found: PlacementValidation, words: Words, console: Console) -> None:
    """Measured against predicted."""
    console.print(words.paragraph(validation_text(found)))
    shown = validation_table(found)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for index, name in enumerate(shown.columns):
        table.add_column(
            words("\n".join(name.rsplit(" ", 1)), _QUIET),
            justify="right" if index else "left",
            vertical="bottom",
        )
    for row in shown.rows:
        table.add_row(*(words(cell) for cell in row))
    console.print(table)
    for fact in validation_facts(found):
        console.print(words.paragraph(f"{fact.label}: {fact.value} ({fact.detail})"))


def _planners(rows: Sequence[PlannerRow], words: Words, width: int) -> Table:
    wide = width >= _WIDE
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2 if wide else 1, 0, 0))
    columns = ["planner", "step\ntime", "speedup", "holdout\nspeedup", "balance"]
    columns += ["remote"] if wide else []
    columns += ["inter-\nnode", "above\nbound", "solve\ntime"]
    columns += ["holdout\nstep", "outcome"] if wide else []
    for index, name in enumerate(columns):
        table.add_column(
            words(name, _QUIET),
            justify="right" if index else "left",
            no_wrap=True,
            vertical="bottom",
        )
    for row in rows:
        mark = "▸" if row.chosen else " "
        cells = [
            f"{mark} {_short(row.name)}",
            format_seconds(row.step_s, pad=True),
            ratio(row.speedup),
            ratio(row.holdout_speedup),
            f"{row.balance:.2f}",
        ]
        cells += [percent(row.remote_fraction)] if wide else []
        cells += [
            percent(row.internode_fraction),
            excess(row.gap),
            duration(row.solve_s),
        ]
        if wide:
            held_out = NOTHING if row.holdout_s is None else format_seconds(row.holdout_s, pad=True)
            cells += [held_out, row.outcome]
        table.add_row(*(words(cell, _CHOSEN if row.chosen else "") for cell in cells))
    return table


def _slowest_layers(outcome: PlanOutcome, words: Words, width: int, most: int) -> Table:
    """Two bars per layer on one scale: before and after."""
    pair = before_after(outcome)
    times_s = [layer_time_s(score.cost) for score in pair]
    longest_s = np.max(times_s, axis=0)
    order = np.argsort(-longest_s, kind="stable")[:most]
    names = [_short(clean(score.name)) for score in pair]
    room = max(10, min(48, width - 24 - max(map(len, names))))
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True, justify="right")
    grid.add_column(no_wrap=True)
    for layer in order:
        for which, (name, time_s) in enumerate(zip(names, times_s, strict=True)):
            bar = "━" * max(1, round(room * float(time_s[layer] / (longest_s.max() or 1.0))))
            after = which == len(pair) - 1
            grid.add_row(
                words("" if which else f"layer {outcome.moe_layers[layer]}"),
                words(bar, _AFTER if after else _BEFORE),
                words(format_seconds(float(time_s[layer]), pad=True)),
                words(name, "" if after else _QUIET),
            )
    return grid


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
