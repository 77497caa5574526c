"""``moesim validate``: this product against what others published or measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli import validate_measured, validate_papers, validate_serving
from moesim.cli.console import Console, JsonOption, OutOption, QuietOption, SeedOption
from moesim.errors import ToleranceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from moesim.reports.offload_papers import OffloadPaper
    from moesim.reports.paper_run import PublishedPaper
    from moesim.reports.papers import PaperResult, PlannerGain

    Result = PaperResult | OffloadPaper | PublishedPaper

__all__ = ["app"]

app = typer.Typer(
    name="validate",
    help="Predictions against published and measured figures.",
    no_args_is_help=True,
)


@app.callback()
def _group() -> None:
    """Predictions against published and measured figures."""


@app.command()
def papers(
    only: Annotated[
        str | None, typer.Option(help="Ids of scenarios, separated by commas; all if left out.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="A scenario file of your own instead of the bundled ones.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="File that receives all figures as one page.")
    ] = None,
    drift: Annotated[
        bool,
        typer.Option("--drift", help="Fail on what moved since the accepted table, not on misses."),
    ] = False,
    accept: Annotated[
        bool, typer.Option("--accept", help="Write the predictions as the accepted table.")
    ] = False,
    table: Annotated[
        Path | None, typer.Option(help="Accepted table instead of the bundled one.")
    ] = None,
    seed: SeedOption = 0,
    out: OutOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Predict the figures of papers in their own set-ups, and compare.

    Exit code 6 if a prediction is outside its tolerance; with --drift, if one that was inside no
    longer is, or one moved by more than 1 %.
    """
    import moesim
    from moesim.reports.validation import count_checks, summarise
    from moesim.safe_io import write_json

    console = Console(as_json=as_json, quiet=quiet)
    paths = _scenario_files(only, data)
    with console.progress("validating") as say:
        results = [_run(path, seed, say) for path in paths]
    rows = [row for result in results for row in result.rows]
    outside = [row.id for row in rows if row.ok is False]
    found: dict[str, Any] = {
        "schema": "moesim.validate/1",
        "ok": not outside,
        "validation": "papers",
        "rows": [row.to_dict() for row in rows],
        "summary": {**summarise(rows), "checks": count_checks(rows)},
        "scenarios": [_scenario_json(result) for result in results],
        "seed": seed,
        "files": {},
        "version": moesim.__version__,
    }
    whole = only is None and data is None
    moved = validate_papers.check_drift(rows, found, drift, accept, table, whole=whole)
    pages = [html] if html is not None else []
    pages += [out / "validate-papers.html"] if out is not None else []
    for path in pages:
        found["files"]["page"] = str(validate_papers.write_page(results, path))
    if out is not None:
        found["files"]["result"] = str(out / "validate-papers.json")
        write_json(out / "validate-papers.json", found)
    console.result(found, lambda: _show(results, found))
    if drift:
        if moved:
            console.say(f"moesim: not as accepted: {len(moved)} of {len(rows)} figures")
            raise typer.Exit(ToleranceError.exit_code)
    elif outside and not accept:
        covered = found["summary"]["covered"]
        console.say(f"moesim: outside the tolerance: {len(outside)} of {covered} predicted figures")
        raise typer.Exit(ToleranceError.exit_code)


def _run(path: Path, seed: int, say: Callable[[str], object]) -> Result:
    """Predict one file, by its kind."""
    from moesim.reports.offload_papers import run_offload_scenario
    from moesim.reports.offload_scenario import OffloadScenario
    from moesim.reports.paper import Paper
    from moesim.reports.paper_run import run_paper
    from moesim.reports.papers import run_scenario
    from moesim.reports.scenario import scenario_schema

    kind = scenario_schema(path)
    if kind == Paper.schema_id:
        say(path.stem)
        return run_paper(path)
    if kind == OffloadScenario.schema_id:
        return run_offload_scenario(path, seed=seed, say=say)
    return run_scenario(path, seed=seed, say=say)


def _scenario_files(only: str | None, data: Path | None) -> list[Path]:
    from moesim.reports.scenario import scenario_ids, scenario_path

    if data is not None:
        if only is not None:
            raise UsageError("give --only or --data, not both")
        return [data]
    if only is None:
        return [scenario_path(name) for name in scenario_ids()]
    names = [name.strip() for name in only.split(",") if name.strip()]
    if not names:
        raise UsageError(f"--only names no scenario; known are {', '.join(scenario_ids())}")
    return [scenario_path(name) for name in dict.fromkeys(names)]


def _scenario_json(result: Result) -> dict[str, Any]:
    from moesim.reports.offload_papers import OffloadPaper
    from moesim.reports.paper_run import PublishedPaper

    if isinstance(result, PublishedPaper):
        paper = result.scenario
        return {
            "id": paper.id,
            "title": paper.title,
            "source": paper.source.to_dict(),
            "fitted_on": list(paper.fitted_on),
            "assumptions": {item.id: item.text for item in paper.assumptions},
        }
    if isinstance(result, OffloadPaper):
        of = result.scenario
        return {
            "id": of.id,
            "title": of.title,
            "source": of.source.to_dict(),
            "hardware": of.hardware,
            "tolerance_reason": of.tolerance_reason,
            "assumptions": {item.id: item.text for item in of.assumptions},
        }
    scenario = result.scenario
    return {
        "id": scenario.id,
        "title": scenario.title,
        "source": scenario.source.to_dict(),
        "planner": scenario.planner,
        "baseline": scenario.baseline,
        "comm": scenario.comm,
        "phase": scenario.phase,
        "tokens_per_device": scenario.tokens_per_device,
        "workload": scenario.workload.to_dict(),
        "tolerance_reason": scenario.tolerance_reason,
        "assumptions": {item.id: item.text for item in scenario.assumptions},
        "planners": {
            setup: {name: _gain_json(gain) for name, gain in planners.items()}
            for setup, planners in result.planners.items()
        },
        "sensitivity": [
            {
                "skew": point.skew,
                "affinity": point.affinity,
                "preset": point.preset,
                "baseline_balance": point.baseline_balance,
                "outcome": point.outcome,
                "reduction": {metric.value: value for metric, value in point.gains.items()},
            }
            for point in result.sensitivity
        ],
    }


def _gain_json(gain: PlannerGain) -> dict[str, Any]:
    return {
        "reduction": {metric.value: values.tolist() for metric, values in gain.gains.items()},
        "balance": gain.balance.tolist(),
        "remote_fraction": gain.remote_fraction.tolist(),
        "outcome": list(gain.outcomes),
        "evidence": gain.evidence.value,
    }


def _show(results: list[Result], found: dict[str, Any]) -> None:
    from rich.console import Console as RichConsole

    from moesim.cli.validate_terminal import show_papers

    show_papers(results, found["summary"], found["files"], RichConsole())


app.command("kernels")(validate_measured.kernels)
app.command("comm")(validate_measured.comm)
app.command("serving")(validate_serving.serving)
