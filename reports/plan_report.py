"""What a report of a plan says, before any face is put on it.

The terminal, Markdown and HTML show the same sentences and tables: they are made once, here, from
a :class:`~moesim.planners.outcome.PlanOutcome`. All text is cleaned of control characters and still
unescaped: each face escapes in its own way.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moesim.reports import gain, sentences
from moesim.reports.arithmetic import (
    before_after,
    device_load,
    gap_to_bound,
    holdout_speedup,
    layer_time_s,
    quotient,
    relative_load,
    speedup,
)
from moesim.reports.tables import Fact, Table
from moesim.reports.text import (
    NOTHING,
    clean,
    count,
    duration,
    excess,
    percent,
    priced_by,
    ratio,
    sentence,
    share,
)
from moesim.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from moesim.planners.outcome import PlannerScore, PlanOutcome
    from moesim.step import StepCost

__all__ = [
    "PlanReport",
    "PlannerRow",
    "build_report",
]

_EVIDENCE = {
    "measured": "every number that went in was measured",
    "fitted": "the weakest number that went in is a coefficient fitted to measurements",
    "spec": "the weakest number that went in is from a data sheet, not measured",
    "assumed": "the weakest number that went in is an assumption",
}
_COMM = {
    "home-rank": "tokens return to their own device after every expert layer "
    "(attention data-parallel, experts spread: DeepEP)",
    "chain": "tokens travel from the expert of one layer to that of the next",
}


@dataclass(frozen=True)
class PlannerRow:
    """One planner's numbers; speedups are against the baseline on the same part of the trace."""

    name: str
    summary: str
    chosen: bool
    step_s: float
    speedup: float
    balance: float
    remote_fraction: float
    internode_fraction: float
    gap: float | None
    holdout_s: float | None
    holdout_speedup: float | None
    solve_s: float
    outcome: str

    def cells(self) -> tuple[str, ...]:
        """Formatted, in the order of :data:`PLANNER_COLUMNS`."""
        return (
            self.name,
            format_seconds(self.step_s, pad=True),
            ratio(self.speedup),
            f"{self.balance:.2f}",
            percent(self.remote_fraction),
            percent(self.internode_fraction),
            excess(self.gap),
            NOTHING if self.holdout_s is None else format_seconds(self.holdout_s, pad=True),
            ratio(self.holdout_speedup),
            duration(self.solve_s),
            self.outcome,
        )


PLANNER_COLUMNS = (
    "planner",
    "step time",
    "speedup",
    "balance",
    "remote",
    "inter-node",
    "above bound",
    "holdout step",
    "holdout speedup",
    "solve time",
    "outcome",
)


@dataclass(frozen=True)
class PlanReport:
    """A plan, told."""

    title: str
    headline: str
    lead: tuple[str, ...]
    facts: tuple[Fact, ...]
    notes: tuple[Fact, ...]
    planners: tuple[PlannerRow, ...]
    bound: str
    load: tuple[Fact, ...]
    limits: Table
    slowest: Table
    files: Table
    launch: tuple[tuple[str, str], ...]
    method: tuple[Fact, ...]
    inputs: Table
    command: str
    version: str

    @property
    def planner_table(self) -> Table:
        """All planners, the chosen one marked."""
        chosen = next(i for i, row in enumerate(self.planners) if row.chosen)
        return Table(PLANNER_COLUMNS, tuple(row.cells() for row in self.planners), chosen)


def build_report(outcome: PlanOutcome) -> PlanReport:
    """The report of a plan.

    Args:
        outcome: What planning and its evaluation gave.
    """
    rows = tuple(_row(outcome, key) for key in outcome.scores)
    chosen = next(row for row in rows if row.chosen)
    baseline = outcome.scores[outcome.baseline]
    return PlanReport(
        title=clean(f"Expert placement: {outcome.model.name} on {outcome.cluster.name}"),
        headline=sentences.headline(outcome),
        lead=_lead(outcome),
        facts=_facts(outcome, chosen, baseline),
        notes=_notes(outcome),
        planners=rows,
        bound=sentences.bound(outcome),
        load=_load_facts(outcome),
        limits=_limits(outcome),
        slowest=_slowest(outcome),
        files=Table(
            ("what", "where"),
            tuple((clean(kind), clean(path)) for kind, path in outcome.files.items()),
            numeric=False,
        ),
        launch=tuple((clean(k), clean(shlex.join(v))) for k, v in outcome.launch.items()),
        method=_method(outcome),
        inputs=_inputs(outcome),
        command=clean(outcome.command),
        version=clean(outcome.version),
    )


def _lead(outcome: PlanOutcome) -> tuple[str, ...]:
    told = (sentences.planned(outcome), sentences.time(outcome), sentences.holdout(outcome))
    more = (gain.sources(outcome), gain.why(outcome), gain.moving(outcome))
    return (*told, *(sentence for sentence in more if sentence is not None))


def _row(outcome: PlanOutcome, key: str) -> PlannerRow:
    score = outcome.scores[key]
    return PlannerRow(
        name=clean(score.name),
        summary=clean(score.summary),
        chosen=key == outcome.chosen,
        step_s=score.cost.step_s,
        speedup=speedup(outcome, key),
        balance=score.cost.balance,
        remote_fraction=score.cost.remote_fraction,
        internode_fraction=score.cost.internode_fraction,
        gap=gap_to_bound(outcome, key),
        holdout_s=None if score.holdout is None else score.holdout.step_s,
        holdout_speedup=holdout_speedup(outcome, key),
        solve_s=score.solve_s,
        outcome=clean(score.outcome),
    )


def _facts(outcome: PlanOutcome, chosen: PlannerRow, baseline: PlannerScore) -> tuple[Fact, ...]:
    name = clean(baseline.name)
    holdout = "nothing was held out"
    if chosen.holdout_speedup is not None:
        holdout = f"on the unseen {share(outcome.holdout_fraction)}"
    gap = "proven optimal" if outcome.bound.proven else "not proven optimal"
    return (
        Fact("speedup", ratio(chosen.speedup), f"against {name}"),
        Fact("holdout speedup", ratio(chosen.holdout_speedup), holdout),
        Fact(
            "step time",
            format_seconds(chosen.step_s),
            f"{name}: {format_seconds(baseline.cost.step_s)}",
        ),
        Fact(
            "balance (1 is even)", f"{chosen.balance:.2f}", f"{name}: {baseline.cost.balance:.2f}"
        ),
        Fact("above lower bound", excess(chosen.gap), gap),
    )


def _notes(outcome: PlanOutcome) -> tuple[Fact, ...]:
    notes = [Fact("Trace", clean(outcome.trace_name), sentence(clean(outcome.trace_note)))]
    if outcome.model.note:
        notes.append(Fact("Model", clean(outcome.model.name), sentence(clean(outcome.model.note))))
    notes.append(_cost_note(outcome))
    notes += [
        Fact("No plan by", clean(name), sentence(clean(reason)))
        for name, reason in outcome.skipped.items()
    ]
    notes += [
        Fact("No file for", clean(engine), sentence(clean(reason)))
        for engine, reason in outcome.left_out.items()
    ]
    return tuple(notes)


def _cost_note(outcome: PlanOutcome) -> Fact:
    """What priced the plan, and between which times a step lies."""
    cost = outcome.scores[outcome.chosen].cost
    parts = priced_by(outcome.kernels)
    ends = f"{format_seconds(cost.lo_s)} … {format_seconds(cost.hi_s)}"
    words = f"80 % interval of a step {ends}"
    if outcome.cost == "roofline":
        words = f"a roofline is a bound: as kernels measured go, a step takes {ends} (80 %)"
    return Fact("Cost", clean(outcome.cost), sentence(f"{parts}; {words}"))


def _load_facts(outcome: PlanOutcome) -> tuple[Fact, ...]:
    load = np.asarray(outcome.loads, np.float64)
    relative = relative_load(load)
    layer, expert = np.unravel_index(int(relative.argmax()), relative.shape)
    top = max(1, round(0.1 * load.shape[1]))
    share = np.sort(load, axis=1)[:, -top:].sum() / load.sum() if load.sum() > 0 else math.nan
    idle = int((load == 0).sum())
    return (
        Fact(
            "hottest expert",
            f"{ratio(float(relative.max()))} the mean",
            f"expert {expert} in layer {outcome.moe_layers[layer]}",
        ),
        Fact(
            f"busiest {top} of {load.shape[1]}",
            f"{percent(share)} of the load",
            f"even would be {percent(top / load.shape[1])}",
        ),
        Fact("experts never used", count(idle), f"of {count(load.size)} over all layers"),
    )


def _limits(outcome: PlanOutcome) -> Table:
    pair = before_after(outcome)
    costs = [score.cost for score in pair]

    def part(cost: StepCost, part_s: np.ndarray) -> str:
        return percent(quotient(float(part_s.sum()), float(layer_time_s(cost).sum())))

    kinds = dict.fromkeys(kind for cost in costs for kind in cost.layer_bound)
    links = [_busiest_link(outcome, cost) for cost in costs]
    rows = [
        ("time in dispatch", *(part(c, c.layer_dispatch_s) for c in costs)),
        ("time in experts", *(part(c, c.layer_compute_s) for c in costs)),
        ("time in combine", *(part(c, c.layer_combine_s) for c in costs)),
        *(
            (
                f"layers bound by {clean(kind)}",
                *(f"{c.layer_bound.count(kind)} of {len(c.layer_bound)}" for c in costs),
            )
            for kind in kinds
        ),
        (
            "fullest device ÷ layer mean",
            *(ratio(float(device_load(outcome, c).max())) for c in costs),
        ),
        ("bytes between nodes", *(format_bytes(c.internode_bytes, pad=True) for c in costs)),
        ("busiest link", *(name for name, _, _ in links)),
        ("bytes over that link", *(size for _, size, _ in links)),
        ("time of that link", *(time for _, _, time in links)),
    ]
    return Table(("", *(clean(score.name) for score in pair)), tuple(rows))


def _busiest_link(outcome: PlanOutcome, cost: StepCost) -> tuple[str, str, str]:
    links = outcome.cluster.links
    if not links or not np.any(cost.link_bytes > 0):
        return NOTHING, NOTHING, NOTHING
    busy_s = cost.link_bytes / np.array([link.bandwidth_bytes_per_s for link in links])
    worst = int(busy_s.argmax())
    link = links[worst]
    return (
        clean(f"{link.source} → {link.target}"),
        format_bytes(float(cost.link_bytes[worst]), pad=True),
        format_seconds(float(busy_s[worst]), pad=True),
    )


def _slowest(outcome: PlanOutcome, most: int = 8) -> Table:
    pair = before_after(outcome)
    times = [layer_time_s(score.cost) for score in pair]
    order = np.argsort(-np.max(times, axis=0), kind="stable")[:most]
    rows = (
        (
            str(outcome.moe_layers[i]),
            *(format_seconds(float(time_s[i]), pad=True) for time_s in times),
            clean(pair[-1].cost.layer_bound[i]),
        )
        for i in order
    )
    return Table(("layer", *(clean(score.name) for score in pair), "bound by"), tuple(rows))


def _method(outcome: PlanOutcome) -> tuple[Fact, ...]:
    cost = outcome.scores[outcome.chosen].cost
    evidence = str(cost.evidence)
    held_out = "nothing"
    if outcome.scores[outcome.chosen].holdout is not None:
        held_out = share(outcome.holdout_fraction)
    return (
        Fact(
            "Step time",
            "expert layers only",
            "Per layer: dispatch, then the slowest device's experts, then combine; summed over "
            "the layers, averaged over batches drawn from the trace. Attention and all else "
            "outside the expert layers is not in it.",
        ),
        Fact("Evidence", evidence, sentence(_EVIDENCE.get(evidence, ""))),
        Fact("Communication", clean(outcome.comm), sentence(_COMM.get(outcome.comm, ""))),
        Fact("Phase", clean(outcome.phase), f"{count(outcome.tokens_per_device)} tokens/device."),
        Fact(
            "Trace",
            f"{count(outcome.tokens)} tokens",
            f"Held out from planning: {held_out}.",
        ),
        Fact(
            "Balance",
            "mean ÷ max device load",
            "Load is token assignments over the device's speed factor. Per layer and batch, then "
            "averaged; 1 is even. The heat maps show loads averaged over batches first, which "
            "hides fluctuation.",
        ),
        Fact(
            "Link time",
            "bytes ÷ bandwidth",
            "Summed over the layers of a step, without latency.",
        ),
        Fact("Seed", str(outcome.seed), ""),
    )


def _inputs(outcome: PlanOutcome) -> Table:
    known = {clean(name): clean(digest) for name, digest in outcome.inputs.items()}
    if outcome.trace_sha256 is not None and outcome.trace_sha256 not in known.values():
        known[f"trace {clean(outcome.trace_name)}"] = clean(outcome.trace_sha256)
    return Table(("input", "SHA-256"), tuple(known.items()), numeric=False)
