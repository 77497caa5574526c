"""``moesim validate serving``: predicted TTFT and TPOT against measured serving runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.console import Console, JsonOption, OutOption, QuietOption, SeedOption
from moesim.errors import ToleranceError, UsageError

if TYPE_CHECKING:
    from moesim.calibrate.serving_model import Predicted
    from moesim.calibrate.serving_score import Scored
    from moesim.calibrate.serving_setups import RunParts
    from moesim.reports.validation import ValidationRow

__all__ = ["serving"]

TOLERANCE = {"agg": {"tpot": 0.24, "ttft": 0.6}, "disagg": {"tpot": 0.24, "ttft": 0.6}}
"""Of one run: about where nine in ten errors may lie."""


def serving(
    data: Annotated[Path, typer.Option(help="CSV of measured runs, one row a run.")],
    folds: Annotated[
        int | None,
        typer.Option(
            help="Fit anew without each of so many parts; runs of one configuration share one.",
            min=2,
            max=50,
        ),
    ] = None,
    leave_one_model_out: Annotated[
        bool, typer.Option("--leave-one-model-out", help="Fit anew without each model.")
    ] = False,
    residual: Annotated[
        bool, typer.Option(help="The smooth residual on top of the fitted physics.")
    ] = True,
    html: Annotated[
        Path | None, typer.Option(help="File that receives all runs as one page.")
    ] = None,
    seed: SeedOption = 0,
    out: OutOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Score predicted TTFT and TPOT against measured serving runs.

    Without --folds or --leave-one-model-out by the coefficients that ship. Exit code 6 if a goal
    is missed.
    """
    import moesim
    from moesim.calibrate.serving_model import shipped_serving
    from moesim.calibrate.serving_rows import read_runs
    from moesim.calibrate.serving_score import (
        Scored,
        describe_runs,
        folds_of,
        held_out,
        models_of,
        predict_runs,
        repeat_noise,
        score_lines,
    )
    from moesim.safe_io import write_json

    if folds is not None and leave_one_model_out:
        raise UsageError("give --folds or --leave-one-model-out, not both\nfix: leave out one")
    console = Console(as_json=as_json, quiet=quiet)
    with console.progress("reading") as say:
        read, refused = read_runs(data)
        runs, also = describe_runs(read, say)
        refused = [*refused, *also]
        if folds is not None:
            predicted = held_out(runs, folds_of(runs, folds, seed), residual=residual, say=say)
        elif leave_one_model_out:
            predicted = held_out(runs, models_of(runs), residual=residual, say=say)
        else:
            predicted = predict_runs(runs, shipped_serving(), residual=residual)
    scored = [Scored(run, one) for run, one in zip(runs, predicted, strict=True)]
    lines = score_lines(scored, unseen_model=leave_one_model_out)
    rows = [row for one in scored for row in _rows(one.parts, one.predicted)]
    missed = [str(line["name"]) for line in lines if not line["ok"]]
    result: dict[str, Any] = {
        "schema": "moesim.validate/1",
        "ok": not missed,
        "validation": "serving",
        "split": f"{folds} folds by configuration"
        if folds
        else "leave one model out"
        if leave_one_model_out
        else "shipped coefficients",
        "residual": residual,
        "rows": [row.to_dict() for row in rows],
        "summary": _summary(rows, scored, len(read) + len(refused) - len(also)),
        "classes": lines,
        "flagged": [
            {"id": one.parts.run.id, "reason": reason}
            for one in scored
            if (reason := _flag(one.parts, one.predicted))
        ],
        "far_off": [
            {"id": one.parts.run.id, "tpot_error": one.error("tpot")}
            for one in scored
            if abs(one.error("tpot")) > FAR_OFF
        ],
        "refused": [{"id": one.id, "reason": one.reason} for one in refused],
        "repeat_noise": repeat_noise(runs),
        "seed": seed,
        "files": {},
        "version": moesim.__version__,
    }
    pages = [html] if html is not None else []
    pages += [out / "validate-serving.html"] if out is not None else []
    for path in pages:
        result["files"]["page"] = str(_write_page(result, rows, scored, path))
    if out is not None:
        result["files"]["result"] = str(out / "validate-serving.json")
        write_json(out / "validate-serving.json", result)
    console.result(result, _text(result))
    if missed:
        console.say(f"moesim: missed: {'; '.join(missed)}")
        raise typer.Exit(ToleranceError.exit_code)


def _flag(parts: RunParts, predicted: Predicted) -> str:
    """Why a run is counted apart as well; empty if it is not."""
    from moesim.calibrate.serving_score import judged_by_residual, open_layout

    reasons = []
    if judged_by_residual(parts):
        drafted = "drafted" if predicted.drafts else "did not draft"
        reasons.append(f"its recipes draft and do not; its measured time says that it {drafted}")
    elif predicted.drafts and parts.run.drafting:
        reasons.append("speculative decoding, by its recipe")
    elif predicted.drafts:
        reasons.append("speculative decoding: its release takes less than its kernels do")
    if open_layout(parts):
        several = parts.run.setup == "recipes"
        reasons.append("workers of one of several recipes" if several else "workers are assumed")
    return "; ".join(reasons)


FAR_OFF = 0.5
"""Runs whose TPOT is off by more than half are listed by name: an option of the engine that the
table does not state, or a disturbed run."""


def _rows(parts: RunParts, predicted: Predicted) -> list[ValidationRow]:
    from moesim.reports.validation import ValidationRow
    from moesim.schema import Evidence

    run = parts.run
    values = {
        "tpot": (run.tpot_s, predicted.tpot_s, predicted.tpot_lo_s, predicted.tpot_hi_s),
        "ttft": (run.ttft_s, predicted.ttft_s, predicted.ttft_lo_s, predicted.ttft_hi_s),
    }
    return [
        ValidationRow(
            id=f"{run.id}:{name}",
            reference=reference,
            predicted=value,
            tolerance=TOLERANCE[run.mode][name],
            error_kind="relative",
            evidence=Evidence.FITTED,
            source="measured serving run",
            note="speculative decoding" if predicted.drafts else "",
            lo=lo,
            hi=hi,
            title=f"{run.model} on {run.system}",
            unit="s",
        )
        for name, (reference, value, lo, hi) in values.items()
    ]


def _write_page(
    result: dict[str, Any], rows: list[ValidationRow], scored: list[Scored], path: Path
) -> Path:
    """All runs as one page, those of an engine and way of serving together."""
    from moesim.reports.serving_page import render_serving
    from moesim.safe_io import write_atomic

    ways = {"agg": "one pool", "disagg": "prefill and decode workers"}
    kinds = {
        f"{run.id}:{name}": f"{run.engine}, {ways[run.mode]}"
        for run in (one.parts.run for one in scored)
        for name in ("tpot", "ttft")
    }
    return write_atomic(path, render_serving(result, rows, kinds))


def _summary(rows: list[ValidationRow], scored: list[Any], read: int) -> dict[str, Any]:
    """Errors over all rows; ``n`` counts TPOT and TTFT of every row of the file."""
    import numpy as np

    off = np.abs([row.error for row in rows if row.error is not None])
    inside = [one.inside(name) for one in scored for name in ("tpot", "ttft")]
    return {
        "n": 2 * read,
        "covered": len(rows),
        "ok": sum(row.ok is True for row in rows),
        "mape": float(off.mean()) if off.size else None,
        "median_ape": float(np.median(off)) if off.size else None,
        "p90_ape": float(np.quantile(off, 0.9)) if off.size else None,
        "interval_coverage": float(np.mean(inside)) if inside else None,
    }


def _text(result: dict[str, Any]) -> str:
    from moesim.reports.serving_page import goals

    summary = result["summary"]
    kind = "physics and residual" if result["residual"] else "physics alone"
    lines = [
        f"{result['split']}, {kind}: {summary['covered'] // 2:,} of {summary['n'] // 2:,} runs "
        f"predicted, {len(result['refused'])} refused",
        f"{'':<44}{'runs':>6}{'median':>8}{'MAPE':>8}{'p90':>8}{'in 80 %':>9}  goal",
    ]
    for line in result["classes"]:
        lines.append(_cells(line["name"], line) + f"  {goals(line)}")
        lines += [_cells(f"  {one['name']}", one) for one in line["parts"]]
        lines += [_cells(f"  {one['name']}", one) for one in line["by"]]
    noise = result["repeat_noise"]
    if noise["n"]:
        lines.append(
            f"Repeats of one configuration lie {noise['median']:.1%} (median), {noise['mean']:.1%} "
            f"(mean), {noise['worst']:.0%} (worst) from their middle, {noise['n']} runs"
        )
    lines.append(
        f"{len(result['flagged'])} runs are flagged as drafting or of an open set-up; "
        f"{len(result['far_off'])} are off by more than {FAR_OFF:.0%} (--json names them)"
    )
    return "\n".join(lines)


def _cells(name: str, line: dict[str, Any]) -> str:
    cells = "".join(f"{line[key]:>8.1%}" for key in ("median", "mape", "p90"))
    return f"{name:<44}{line['n']:>6,}{cells}{line['interval_coverage']:>9.1%}"
