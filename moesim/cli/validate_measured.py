"""``moesim validate kernels`` and ``comm``: the cost model against measured kernels, held out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from moesim.cli.calibrate_fit import SOURCE_HELP
from moesim.cli.console import (
    Console,
    JsonOption,
    OutOption,
    QuietOption,
    SeedOption,
    listed,
)
from moesim.errors import ToleranceError, UsageError

if TYPE_CHECKING:
    from moesim.calibrate.goals import Goal, Outcome
    from moesim.calibrate.groups import GroupEvaluation
    from moesim.reports.validation import ValidationRow

__all__ = ["comm", "kernels"]

SizeOption = Annotated[
    Literal["quick", "usual", "full"],
    typer.Option(
        help="quick: one system, few rows of each kernel. usual: H100 and H200, more rows. full: "
        "every system and row, for hours. Expert layers always take all rows of the systems."
    ),
]
OnlyOption = Annotated[
    str | None, typer.Option(help="Ids of goals, separated by commas; all if left out.")
]
SystemsOption = Annotated[
    str | None, typer.Option(help="Other systems than those of the size, such as b200_sxm.")
]
ParityOption = Annotated[
    Path | None, typer.Option(help="Write a plot of predicted against measured times (PNG).")
]
SourceOption = Annotated[str, typer.Option(help=SOURCE_HELP)]


def kernels(
    source: SourceOption = "aiconfigurator",
    size: SizeOption = "quick",
    only: OnlyOption = None,
    systems: SystemsOption = None,
    parity: ParityOption = None,
    seed: SeedOption = 0,
    out: OutOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Score the kernels' cost models on shapes that their fits have not seen.

    Exit code 6 if a goal is missed.
    """
    from moesim.calibrate.goals import KERNEL_GOALS

    console = Console(as_json=as_json, quiet=quiet)
    _validate("kernels", KERNEL_GOALS, (source, size, only, systems), parity, seed, out, console)


def comm(
    source: SourceOption = "aiconfigurator",
    size: SizeOption = "usual",
    only: OnlyOption = None,
    systems: SystemsOption = None,
    parity: ParityOption = None,
    seed: SeedOption = 0,
    out: OutOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Score the communication models on sizes, ranks and nodes that their fits have not seen.

    Exit code 6 if a goal is missed.
    """
    from moesim.calibrate.goals import COMM_GOALS

    console = Console(as_json=as_json, quiet=quiet)
    _validate("comm", COMM_GOALS, (source, size, only, systems), parity, seed, out, console)


def _validate(
    what: str,
    goals: tuple[Goal, ...],
    chosen: tuple[str, str, str | None, str | None],
    parity: Path | None,
    seed: int,
    out: Path | None,
    console: Console,
) -> None:
    import moesim
    from moesim.calibrate.goals import SIZES, chosen_goals, outcomes
    from moesim.safe_io import write_json

    source, size, only, systems = chosen
    how = SIZES[size]
    if systems is not None:
        how = type(how)(tuple(listed(systems) or ()), how.rows_per_kernel, how.folds)
    with console.progress("validating") as say:
        found = list(outcomes(chosen_goals(goals, listed(only)), source, how, seed, say))
    scored = [one.found for one in found if one.found is not None]
    if not scored:
        raise UsageError("; ".join(f"{one.goal.id}: {one.reason}" for one in found))
    rows = [row for one in found for row in _rows(one)]
    missed = [row.id for row in rows if row.ok is False]
    result: dict[str, Any] = {
        "schema": "moesim.validate/1",
        "ok": not missed,
        "validation": what,
        "source": source,
        "size": size,
        "systems": sorted({name for one in scored for name in one.systems}),
        "rows": [row.to_dict() for row in rows],
        "summary": _summary(rows, scored),
        "goals": [_goal_json(one) for one in found],
        "seed": seed,
        "files": {},
        "version": moesim.__version__,
    }
    if parity is not None:
        from moesim.reports.parity import draw_parity

        points: dict[str, Any] = {}
        for one in scored:
            for name in one.members:
                points.setdefault(name, (one.predicted_s[name], one.measured_s[name]))
        note = f"Held-out rows of {', '.join(result['systems'])}; band: within 25 %"
        result["files"]["parity"] = str(draw_parity(points, parity, note))
    if out is not None:
        result["files"]["result"] = str(out / f"validate-{what}.json")
        write_json(out / f"validate-{what}.json", result)
    console.result(result, _text(result))
    if missed:
        console.say(f"moesim: missed: {', '.join(missed)}")
        raise typer.Exit(ToleranceError.exit_code)


def _rows(one: Outcome) -> list[ValidationRow]:
    """A row for every limit of a goal, and one for its intervals."""
    from moesim.calibrate.goals import COVERAGE
    from moesim.reports.validation import ValidationRow
    from moesim.schema import Evidence

    score = None if one.found is None else one.found.score
    held = f"{one.goal.split} on measured tables"
    rows = [
        ValidationRow(
            id=f"{one.goal.id}:{metric}",
            reference=0.0,
            predicted=None if score is None else getattr(score, metric),
            tolerance=limit,
            error_kind="difference",
            evidence=Evidence.FITTED,
            source=held,
            note=one.reason,
        )
        for metric, limit in one.goal.limits
    ]
    middle, half = sum(COVERAGE) / 2, (COVERAGE[1] - COVERAGE[0]) / 2
    rows.append(
        ValidationRow(
            id=f"{one.goal.id}:interval_coverage",
            reference=middle,
            predicted=None if score is None else score.interval_coverage,
            tolerance=half,
            error_kind="difference",
            evidence=Evidence.FITTED,
            source=held,
            note=one.reason,
        )
    )
    return rows


def _summary(rows: list[ValidationRow], scored: list[GroupEvaluation]) -> dict[str, Any]:
    """Counts of goals, and errors over all held-out rows."""
    import numpy as np

    ape = np.concatenate(
        [
            np.abs(one.predicted_s[name] / one.measured_s[name] - 1)
            for one in scored
            for name in one.members
        ]
    )
    covered = np.array([one.score.covered for one in scored], float)
    inside = np.array([one.score.interval_coverage or 0.0 for one in scored])
    return {
        "n": len(rows),
        "covered": sum(row.predicted is not None for row in rows),
        "ok": sum(row.ok is True for row in rows),
        "mape": float(ape.mean()),
        "median_ape": float(np.median(ape)),
        "p90_ape": float(np.quantile(ape, 0.9)),
        "interval_coverage": float((covered * inside).sum() / covered.sum()),
    }


def _goal_json(one: Outcome) -> dict[str, Any]:
    goal = one.goal
    return {
        "id": goal.id,
        "title": goal.title,
        "operators": list(goal.operators),
        "split": goal.split,
        "limits": dict(goal.limits),
        "reason": one.reason or None,
        "score": None if one.found is None else one.found.score.to_dict(),
        "skipped": {} if one.found is None else one.found.skipped,
        "worst": [{"of": name, **score.to_dict()} for name, score in one.worst()],
    }


def _text(result: dict[str, Any]) -> str:
    """The table for people."""
    head = f"{'held out':<32}{'rows':>9}{'MAPE':>8}{'median':>8}{'p90':>8}{'in 80 %':>9}  goal"
    lines = [f"{', '.join(result['systems'])} ({result['size']}), seed {result['seed']}", head]
    ok = {row["id"]: row["ok"] for row in result["rows"]}
    for goal in result["goals"]:
        score = goal["score"]
        if score is None:
            lines.append(f"{goal['title']:<32}not scored: {goal['reason']}")
            continue
        cells = "".join(f"{score[name]:>8.1%}" for name in ("mape", "median_ape", "p90_ape"))
        limits = ", ".join(
            f"{'met' if ok[goal['id'] + ':' + name] else 'MISSED'} {name} <= {limit:.0%}"
            for name, limit in goal["limits"].items()
        )
        inside = "" if ok[f"{goal['id']}:interval_coverage"] else "; MISSED 75-87 % inside"
        lines.append(
            f"{goal['title']:<32}{score['covered']:>9,}{cells}{score['interval_coverage']:>9.1%}"
            f"  {limits}{inside}"
        )
        worst = "; ".join(f"{one['of']} {one['median_ape']:.1%}" for one in goal["worst"])
        lines.append(f"    worst: {worst}" if worst else "    no part is large enough to be named")
    summary = result["summary"]
    lines.append(f"{summary['ok']} of {summary['covered']} figures as they must be")
    return "\n".join(lines)
