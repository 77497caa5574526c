"""``moesim whatif cache`` told: sentences and tables for every face, and the Markdown and HTML.

The terminal, Markdown and HTML show the same content: it is made once, here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moesim.reports import markdown_parts as parts
from moesim.reports import page, whatif_figures
from moesim.reports.explorer import explorer, measure
from moesim.reports.svg import standalone
from moesim.reports.tables import Fact, Table
from moesim.reports.text import NOTHING, clean, count, percent, sentence
from moesim.safe_io import write_atomic
from moesim.units import format_bytes, format_si

if TYPE_CHECKING:
    from moesim.offload.slot_curves import CurvesOfBatch
    from moesim.offload.whatif import WhatIf

__all__ = ["WhatIfReport", "build_whatif_report", "write_whatif_report"]

_CONTRACTS = {
    "event-atomic": "all experts of an event are looked up before any slot changes",
    "sequential": "slots change after every single look-up",
}
_COLD = {
    "miss": "the first use of an expert is a miss",
    "hit": "the first use of an expert is a hit while there are free slots",
}


@dataclass(frozen=True)
class WhatIfReport:
    """What there is to say."""

    title: str
    headline: str
    lead: tuple[str, ...]
    facts: tuple[Fact, ...]
    notes: tuple[Fact, ...]
    hit_rates: tuple[Table, ...]
    speeds: tuple[Table, ...]
    memory: Table
    rule: str
    method: tuple[Fact, ...]
    command: str
    version: str


def build_whatif_report(found: WhatIf) -> WhatIfReport:
    """The report of a what-if."""
    best, model = found.recommendation, found.model
    first = found.batches[0]
    size = model.expert_parameters * found.formats.slots / 8
    return WhatIfReport(
        title=clean(f"Expert cache: {model.name} on {found.machine.name}"),
        headline=f"{best.slots} expert slots per layer, with {best.policy}: "
        f"{_speed(best.tokens_per_s)} tokens/s at batch {first.batch}",
        lead=(
            f"{clean(model.name)}: {len(model.moe_layers)} MoE layers with {model.experts} "
            f"experts of {format_bytes(size)}, top-{model.top_k}, on {clean(found.machine.name)}.",
            f"Recommended: {best.reason}.",
            *_with_cpu(found),
            _rule(found),
        ),
        facts=_facts(found),
        notes=_notes(found),
        hit_rates=tuple(_hit_rates(curves) for curves in found.batches),
        speeds=tuple(_speeds(curves, best.slots) for curves in found.batches),
        memory=_memory(found),
        rule=_rule(found),
        method=_method(found),
        command=clean(found.command),
        version=clean(found.version),
    )


def write_whatif_report(found: WhatIf, folder: Path) -> dict[str, str]:
    """Write the report and its figures; path of each file under what it is."""
    report = build_whatif_report(found)
    first, chosen = found.batches[0], found.recommendation.slots
    contents = {
        "report.html": _html(report, found),
        "report.md": "\n\n".join(part for part in _markdown(report) if part) + "\n",
        "hit-rate.svg": standalone(whatif_figures.hit_rates(first, chosen).svg),
        "tokens-per-s.svg": standalone(whatif_figures.speeds(first, chosen).svg),
        "memory.svg": standalone(whatif_figures.memory(found).svg),
    }
    names = ("report", "markdown", "hit-rate", "tokens-per-s", "memory")
    return {
        name: str(write_atomic(folder / file, content))
        for name, (file, content) in zip(names, contents.items(), strict=True)
    }


def _speed(value: float) -> str:
    """Three digits, or all of them of a large number."""
    return count(value) if value >= 100 else f"{value:.3g}"


def _with_cpu(found: WhatIf) -> Iterable[str]:
    first, slots = found.batches[0], found.recommendation.slots
    for curve in first.with_cpu.values():
        at = int(np.flatnonzero(curve.slots == slots)[0])
        if curve.name == "hybrid":
            yield (
                f"If the CPU computes experts too (hybrid schedule, LRU), {slots} slots give "
                f"{_speed(float(curve.tokens_per_s[at]))} tokens/s."
            )


def _rule(found: WhatIf) -> str:
    rule = found.rule
    slots, rates = rule.slots, [percent(rate) for rate in rule.hit_rate]
    truth = "holds for this trace" if rule.holds else "does not hold for this trace"
    why = (
        "beyond them the hit rate grows less than half as fast per slot"
        if rule.holds
        else "beyond them the hit rate goes on growing more than half as fast per slot"
    )
    return (
        f"The rule of thumb “twice the active experts” {truth}: {clean(rule.policy)} hits "
        f"{rates[0]} with {slots[0]} slots, {rates[1]} with {slots[1]}, {rates[2]} with "
        f"{slots[2]}; {why}."
    )


def _facts(found: WhatIf) -> tuple[Fact, ...]:
    best, first = found.recommendation, found.batches[0]
    at = int(np.flatnonzero(found.memory.slots == best.slots)[0])
    curve = first.policies[best.policy]
    return (
        Fact("slots per layer", str(best.slots), f"of {found.model.experts} experts"),
        Fact("tokens/s", _speed(best.tokens_per_s), f"bound by {curve.bound[at]}"),
        Fact("hit rate", percent(float(curve.hit_rate[at])), clean(best.policy)),
        Fact(
            "distinct experts",
            f"{first.union:.3g} per layer",
            f"r = {first.union / best.slots:.2f} of the slots; above 1 misses are forced",
        ),
        Fact(
            "left for keys and values",
            f"{count(float(found.memory.kv_tokens[at]))} tokens",
            f"{count(float(found.memory.requests[at]))} requests of {count(found.context)}",
        ),
    )


def _notes(found: WhatIf) -> tuple[Fact, ...]:
    notes = [Fact("Trace", clean(found.trace_name), sentence(clean(found.trace_note)))]
    if found.model.note:
        notes.append(Fact("Model", clean(found.model.name), sentence(clean(found.model.note))))
    notes += [
        Fact("Batch", str(curves.batch), sentence(curves.note))
        for curves in found.batches
        if curves.note
    ]
    return tuple(notes)


def _hit_rates(curves: CurvesOfBatch) -> Table:
    slots = next(iter(curves.policies.values())).slots
    rows = (
        (clean(curve.name), *(f"{100 * float(rate):.1f}" for rate in curve.hit_rate))
        for curve in curves.policies.values()
    )
    return Table((f"hits in %, B={curves.batch}", *map(str, slots)), tuple(rows))


def _speeds(curves: CurvesOfBatch, chosen: int) -> Table:
    shown = [*curves.policies.values(), *curves.with_cpu.values()]
    rows = [
        (clean(curve.name), *(_speed(float(value)) for value in curve.tokens_per_s))
        for curve in shown
    ]
    bound = next(iter(curves.policies.values())).bound
    rows.append(("bound", *bound))
    slots = [f"{size} ◂" if size == chosen else str(size) for size in shown[0].slots]
    return Table((f"tokens/s, B={curves.batch}", *slots), tuple(rows))


def _memory(found: WhatIf) -> Table:
    of = found.memory

    def cell(value: int, unit: float = 1) -> str:
        return NOTHING if value < 0 else _speed(value / unit)

    return Table(
        ("slots", *map(str, of.slots)),
        (
            ("GB of slots", *(f"{size * of.slot_bytes / 1e9:.3g}" for size in of.slots)),
            ("1000 KV tokens", *(cell(int(tokens), 1e3) for tokens in of.kv_tokens)),
            (
                "requests",
                *(cell(int(requests)) for requests in of.requests),
            ),
        ),
    )


def _method(found: WhatIf) -> tuple[Fact, ...]:
    setting, machine = found.setting, found.machine
    cpu = "none"
    if machine.coefficients:
        cpu = f"{machine.cores} cores" if machine.cpu else f"measured, {machine.cores} threads"
    return (
        Fact("Contract", setting.contract, sentence(_CONTRACTS[setting.contract])),
        Fact("Cold", setting.cold, sentence(_COLD[setting.cold])),
        Fact(
            "Speed",
            "loading on demand",
            "Copies of missing experts overlap with computation of those that are there; every "
            "miss is copied and kept. Attention and all else is priced by rooflines.",
        ),
        Fact(
            "Link",
            format_si(machine.link_bytes_per_s, "B/s"),
            "Nominal; 78 % of it is reached by copies of pinned memory.",
        ),
        Fact("CPU", cpu, sentence(f"Evidence: {machine.evidence.value}")),
        Fact(
            "Expert weights",
            f"{found.formats.slots:g} bits in slots",
            f"{found.formats.host:g} bits in host memory.",
        ),
    )


def _explored(found: WhatIf, curves: CurvesOfBatch) -> str:
    """Every policy at a number of slots that the reader moves."""
    of = found.memory
    shown = list(curves.policies.values())
    faster = [*shown, *curves.with_cpu.values()]
    notes = [
        f"{size * of.slot_bytes / 1e9:.3g} GB of slots, "
        + (f"room for {count(float(tokens))} tokens" if tokens >= 0 else "no room for tokens")
        for size, tokens in zip(of.slots.tolist(), of.kv_tokens.tolist(), strict=True)
    ]
    return explorer(
        "lines",
        {
            "title": f"Move the cache, batch {curves.batch}",
            "sizes": of.slots.tolist(),
            "size_name": "slots per layer",
            "chosen": int(found.recommendation.slots),
            "notes": notes,
            "measures": [
                measure("hit rate", "%", {one.name: 100 * one.hit_rate for one in shown}),
                measure("tokens/s", "tokens/s", {one.name: one.tokens_per_s for one in faster}),
            ],
        },
    )


def _html(report: WhatIfReport, found: WhatIf) -> str:
    chosen = found.recommendation.slots
    sections = []
    for curves, hits, speeds in zip(found.batches, report.hit_rates, report.speeds, strict=True):
        pictures = (whatif_figures.hit_rates(curves, chosen), whatif_figures.speeds(curves, chosen))
        sections.append(
            page.section(
                f"Batch {curves.batch}",
                f"An event asks for {curves.union:.3g} distinct experts on average.",
                page.figures(pictures),
                _explored(found, curves),
                page.table(hits),
                page.table(speeds),
            )
        )
    sections += [
        page.section(
            "Slots against keys and values",
            "Both live in the memory of the GPU.",
            page.figures((whatif_figures.memory(found),)),
            page.table(report.memory),
        ),
        page.section(
            "How these numbers were made", "", page.card(page.facts(report.method, "method"))
        ),
        page.command_section(report.command),
    ]
    return page.render_page(
        title=report.title,
        version=report.version,
        headline=report.headline,
        lead=report.lead,
        top_facts=report.facts,
        remarks=report.notes,
        sections=sections,
    )


def _markdown(report: WhatIfReport) -> Iterable[str]:
    yield f"# {parts.escaped(report.headline)}"
    yield parts.escaped(report.title) + "."
    yield from map(parts.escaped, report.lead)
    yield parts.remark_list(report.notes)
    yield parts.fact_list(report.facts)
    for hits, speeds in zip(report.hit_rates, report.speeds, strict=True):
        yield parts.table(hits)
        yield parts.table(speeds)
    yield "## Slots against keys and values"
    yield parts.table(report.memory)
    yield "## How these numbers were made"
    yield parts.fact_list(report.method)
    yield "## To reproduce it"
    yield f"moesim {parts.escaped(report.version)}:"
    yield parts.code_block(report.command)
