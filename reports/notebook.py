"""Results as notebooks show them: a card of HTML, or its text where there is no HTML.

A card stands among other people's HTML: its style reaches no further than itself, it has no script
and loads nothing. Sentences, tables and figures are those of the reports.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from html import escape

from moesim.capacity.detail import detail
from moesim.capacity.document import capacity_json
from moesim.capacity.frontier import crossovers, frontier
from moesim.capacity.search import Answer
from moesim.capacity.why import runners_up
from moesim.errors import InfeasibleError, UsageError
from moesim.forward.simulate import ForwardStep
from moesim.offload.whatif import WhatIf
from moesim.planners.outcome import PlanOutcome
from moesim.reports import capacity_figures, capacity_text, figures, page, whatif_figures
from moesim.reports.figures import Picture
from moesim.reports.plan_report import PLANNER_COLUMNS, build_report
from moesim.reports.step_report import call_table, takes
from moesim.reports.styles import style
from moesim.reports.tables import Fact, Table, aligned
from moesim.reports.text import clean, count, percent
from moesim.reports.whatif_report import build_whatif_report
from moesim.units import format_bytes, format_seconds

__all__ = ["Shown", "show"]

_PLANNER_COLUMNS = PLANNER_COLUMNS.index("solve time")
"""Shown of a plan's table: behind them stand times of the machine that planned."""


@dataclass(frozen=True, repr=False)
class Shown:
    """What a notebook shows of a result; as the last value of a cell it is drawn.

    Attributes:
        headline: The answer.
        lead: Sentences below it.
        facts: Numbers to take away.
        tables: All of it in figures.
        pictures: SVG.
    """

    headline: str
    lead: tuple[str, ...] = ()
    facts: tuple[Fact, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()

    def _repr_html_(self) -> str:
        """The card."""
        sheet = style("notebook", ".moesim")
        drawn = "".join(map(page.figure, self.pictures))
        return "\n".join(
            (
                f'<div class="moesim"><style>{sheet}</style>',
                f'<p class="headline">{escape(clean(self.headline))}</p>',
                *(f"<p>{page.prose(clean(text))}</p>" for text in self.lead),
                page.facts(self.facts, "facts"),
                *map(page.table, self.tables),
                f'<div class="figures">{drawn}</div></div>',
            )
        )

    def __repr__(self) -> str:
        """The same as text."""
        lines = [self.headline, *self.lead]
        lines += [
            f"{one.label}: {one.value}" + (f" ({one.detail})" if one.detail else "")
            for one in self.facts
        ]
        tables = ("\n" + "\n".join(aligned(table)) for table in self.tables)
        return "\n".join([*map(clean, lines), *tables])


@singledispatch
def show(result: object) -> Shown:
    """What there is to see of a result.

    Args:
        result: Of ``make_plan``, ``what_if``, ``answer`` (a search for capacity) or
            ``run_request`` (a forward step).

    Raises:
        UsageError: If it is something else.
    """
    raise UsageError(
        f"show() knows no {type(result).__name__}\n"
        "fix: pass a PlanOutcome, a WhatIf, an Answer of a capacity search or a ForwardStep"
    )


@show.register
def _plan(result: PlanOutcome) -> Shown:
    report = build_report(result)
    table = report.planner_table
    rows = tuple(row[:_PLANNER_COLUMNS] for row in table.rows)
    return Shown(
        report.headline,
        report.lead,
        report.facts,
        (Table(table.columns[:_PLANNER_COLUMNS], rows), report.limits),
        figures.layer_time(result),
    )


@show.register
def _what_if(result: WhatIf) -> Shown:
    report = build_whatif_report(result)
    drawn = tuple(
        whatif_figures.speeds(curves, result.recommendation.slots) for curves in result.batches
    )
    tables = (*report.hit_rates, *report.speeds, report.memory)
    return Shown(report.headline, report.lead, report.facts, tables, drawn)


@show.register
def _capacity(result: Answer) -> Shown:
    if result.best is None:
        raise InfeasibleError("no deployment keeps the targets\nfix: relax a target, or the load")
    more = detail(result.best, result.question)
    data = capacity_json(
        result, frontier(result), crossovers(result), runners_up(result), more, solve_s=0.0
    )
    points = data["frontier"]
    return Shown(
        clean(capacity_text.headline(data)),
        (capacity_text.promise(data), capacity_text.spent(data)),
        tuple(Fact(phase, bound) for phase, bound in data["best"]["bottleneck"].items()),
        (Table(capacity_text.FRONTIER_COLUMNS, tuple(map(capacity_text.frontier_cells, points))),),
        (capacity_figures.frontier(data),) if points else (),
    )


@show.register
def _step(result: ForwardStep) -> Shown:
    shape, machine = result.shape, result.machine
    share = percent(result.memory.total / machine.device.memory_bytes)
    facts = [
        Fact("tokens/s", count(result.tokens_per_s), "whole deployment"),
        Fact("memory per device", format_bytes(result.memory.total), f"{share} of a device"),
        Fact("evidence", result.evidence.value, f"cost {machine.cost}"),
    ]
    if (energy := result.energy) is not None:
        ends = f"{energy.lo_j_per_token:.3g} … {energy.hi_j_per_token:.3g}"
        facts.append(Fact("J per token", f"{energy.j_per_token:.3g}", ends))
    return Shown(
        f"A {shape.load.phase} step of {clean(shape.model.name)} {takes(result)}",
        (
            f"{clean(machine.cluster.name)}, {shape.layout}, {shape.layout.dispatch}; engine "
            f"{machine.engine}; routing {clean(result.routing)}; "
            f"{format_seconds(result.hidden_s)} of calls hidden beside others.",
        ),
        tuple(facts),
        (call_table(result),),
    )
