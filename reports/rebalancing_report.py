"""``moesim simulate rebalancing`` told: tables for every face, and the page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import moesim
from moesim.reports import page
from moesim.reports.explorer import explorer, measure
from moesim.reports.tables import Fact, Table
from moesim.reports.text import NOTHING, clean, count
from moesim.safe_io import write_atomic
from moesim.units import format_seconds, format_si

if TYPE_CHECKING:
    from moesim.planners.rebalancing import PolicyRun, Rebalancing

__all__ = ["domain_table", "policy_table", "rebalancing_setting", "write_rebalancing_page"]

ALWAYS = "contiguous"
"""The policy that is always run; every speedup is over it."""

_COLUMNS = (
    *("policy", "total", "tokens/s", "speedup", "no pauses", "over frozen", "changes", "paused"),
    *("moved", "balance", "worst"),
)


def rebalancing_setting(found: Rebalancing) -> str:
    """What was walked, and how."""
    drift, windows = found.drift, len(found.runs[ALWAYS].windows)
    return (
        f"{clean(found.model.name)} on {clean(found.cluster.name)}, {found.request.phase}: "
        f"{windows} windows of {count(drift.window_tokens)} tokens, each for "
        f"{count(drift.steps)} steps; planner {found.request.planner}, plans from "
        f"{drift.history} past window{'s' if drift.history > 1 else ''}; a change pauses "
        f"{format_seconds(drift.pause_s)} or as long as the links take"
    )


def policy_table(found: Rebalancing) -> Table:
    """A row per policy."""
    base = found.runs[ALWAYS]
    frozen = found.runs.get("frozen")
    rows = tuple(
        (
            name,
            format_seconds(run.total_s),
            count(found.tokens_per_s(name)),
            f"{base.total_s / run.total_s:.2f}×",
            f"{base.stepping_s / run.stepping_s:.2f}×",
            f"{frozen.total_s / run.total_s:.2f}×" if frozen else NOTHING,
            str(run.rebalances),
            format_seconds(run.paused_s) if run.paused_s else NOTHING,
            format_si(run.moved_bytes, "B") if run.moved_bytes else NOTHING,
            f"{run.balance:.2f}",
            f"{run.worst_balance:.2f}",
        )
        for name, run in found.runs.items()
    )
    return Table(_COLUMNS, rows)


def domain_table(found: Rebalancing) -> Table | None:
    """Speed of steps over contiguous placement, by the domain of the windows; None without any."""
    if not found.domains:
        return None
    names = [name for name in found.runs if name != ALWAYS]
    base = found.runs[ALWAYS].windows
    rows = []
    for domain in dict.fromkeys(found.domains):
        places = [place for place, name in enumerate(found.domains) if name == domain]
        total = sum(base[place].step_s for place in places)
        cells = (
            total / sum(found.runs[name].windows[place].step_s for place in places)
            for name in names
        )
        rows.append((clean(domain), *(f"{cell:.2f}×" for cell in cells)))
    return Table(("steps in", *names), tuple(rows))


def write_rebalancing_page(found: Rebalancing, path: Path, command: str) -> Path:
    """One page that loads nothing: step times window by window, movable, and the tables."""
    domains = domain_table(found)
    return write_atomic(
        path,
        page.render_page(
            title=f"Planning again: {clean(found.model.name)} on {clean(found.cluster.name)}",
            version=moesim.__version__,
            headline=_headline(found),
            lead=(
                f"{rebalancing_setting(found)}.",
                "Plans are made from past windows only; oracle alone knows each window in advance, "
                "and moves for free.",
            ),
            top_facts=_facts(found),
            remarks=(),
            sections=(
                page.section(
                    "Window by window",
                    "Seconds of a step without pauses; a policy that plans again does so at the "
                    "start of a window.",
                    _explored(found),
                ),
                page.section("Policies", "", page.table(policy_table(found))),
                *(
                    [
                        page.section(
                            "Kinds of text",
                            "Speed of steps over contiguous placement, without pauses.",
                            page.table(domains),
                        )
                    ]
                    if domains
                    else []
                ),
                page.command_section(command),
            ),
        ),
    )


def _online(found: Rebalancing) -> Mapping[str, PolicyRun]:
    """Policies that could be run."""
    return {name: run for name, run in found.runs.items() if name != "oracle"}


def _headline(found: Rebalancing) -> str:
    runs = _online(found)
    best = min(runs, key=lambda name: runs[name].total_s)
    if best == ALWAYS:
        return "No policy earns its pauses: contiguous placement is the fastest"
    gain = runs[ALWAYS].total_s / runs[best].total_s
    return f"{best} is the fastest policy: {gain:.2f}× contiguous placement, pauses included"


def _facts(found: Rebalancing) -> tuple[Fact, ...]:
    runs = _online(found)
    return tuple(
        Fact(
            name,
            f"{runs[ALWAYS].total_s / run.total_s:.2f}×",
            f"{count(found.tokens_per_s(name))} tokens/s, {run.rebalances} "
            f"change{'' if run.rebalances == 1 else 's'}",
        )
        for name, run in runs.items()
    )


def _explored(found: Rebalancing) -> str:
    windows = range(len(found.runs[ALWAYS].windows))
    notes = []
    for window in windows:
        changed = [
            f"{name} moves {format_si(run.windows[window].moved_bytes, 'B')} in "
            f"{format_seconds(run.windows[window].pause_s)}"
            for name, run in found.runs.items()
            if run.windows[window].moves
        ]
        domain = f"{clean(found.domains[window])}; " if found.domains else ""
        notes.append(domain + ("; ".join(changed) or "nobody plans again"))
    return explorer(
        "lines",
        {
            "title": "Move through the trace",
            "sizes": [window + 1 for window in windows],
            "size_name": "window",
            "chosen": 1,
            "notes": notes,
            "measures": [
                measure(
                    name,
                    unit,
                    {
                        policy: [factor * getattr(window, field) for window in run.windows]
                        for policy, run in found.runs.items()
                    },
                )
                for name, unit, field, factor in (
                    ("step", "ms", "step_s", 1e3),
                    ("balance", "", "balance", 1.0),
                    ("pause", "s", "pause_s", 1.0),
                )
            ],
        },
    )
