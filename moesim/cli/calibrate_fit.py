"""``moesim calibrate fit``: coefficients of measured kernels, written with their provenance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from moesim.cli import calibrate_bench, calibrate_measure
from moesim.cli.console import Console, JsonOption, QuietOption, SeedOption, listed
from moesim.errors import UsageError

__all__ = ["SOURCE_HELP", "chosen_versions", "fit"]

SCHEMA = "moesim.calibrate-fit/1"
SOURCE_HELP = "aiconfigurator (the installed package), or a folder of such tables."


def fit(
    source: Annotated[str, typer.Option(help=SOURCE_HELP)] = "aiconfigurator",
    operator: Annotated[
        str | None,
        typer.Option(
            help="Fit these operators, such as moe,gemm; all that there are by default. roofline: "
            "how far kernels are from theirs; power: watts."
        ),
    ] = None,
    systems: Annotated[str | None, typer.Option(help="Only these systems.")] = None,
    engines: Annotated[str | None, typer.Option(help="Only these engines.")] = None,
    versions: Annotated[
        str | None,
        typer.Option(
            help="newest (of each engine), all, or version numbers; newest unless given, but all "
            "for DeepEP, whose older tables are the ones that cross nodes."
        ),
    ] = None,
    date: Annotated[
        str, typer.Option(help="Date to write into the files; the clock is not read.")
    ] = "",
    suite: Annotated[
        Literal["operators", "serving"],
        typer.Option(help="serving: what kernels do not say of engines' steps, from --data."),
    ] = "operators",
    data: Annotated[
        Path | None, typer.Option(help="With --suite serving: CSV of measured runs.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", help="Folder that receives one OPERATOR.json each.")
    ] = Path("fitted"),
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Fit operators' coefficients to all measured rows and write them with their provenance."""
    from moesim.calibrate.fit_grouped import is_bench_file
    from moesim.calibrate.measurements import is_measurements_file
    from moesim.calibrate.registry import default_versions, measured_operators

    console = Console(as_json=as_json, quiet=quiet)
    if (suite == "serving") != (data is not None):
        raise UsageError(
            "--suite serving and --data go together\nfix: pass --suite serving --data runs.csv"
        )
    if data is not None:
        console.result(*_fit_serving(data, date, out, console))
        return
    if is_measurements_file(source):
        console.result(*calibrate_measure.fit_measurements(source, out, seed))
        return
    if is_bench_file(source):
        console.result(*calibrate_bench.fit_bench(source, out))
        return
    if operator in ("roofline", "power"):
        console.result(*_fit_devices(operator, source, listed(systems), date, out, console))
        return
    names = measured_operators(source, listed(operator), listed(systems), listed(engines))
    options = f" --systems {systems}" if systems else ""
    options += f" --engines {engines}" if engines else ""
    options += f" --versions {versions}" if versions else ""
    written = []
    with console.progress("fitting") as step:
        for name in names:
            wanted = versions or default_versions(name)
            written.append(
                _fitted(
                    name,
                    source,
                    (listed(systems), chosen_versions(wanted), listed(engines)),
                    date,
                    f"moesim calibrate fit --source {source} --operator {name}{options}",
                    out,
                    step,
                )
            )
    lines = [
        f"{found['fits']:>6,} kernels fitted to {found['rows']:>9,} rows: {found['file']}"
        f" ({found['fits_on_bounds']:,} with a coefficient on a bound)"
        for found in written
    ]
    result = {"schema": SCHEMA, "ok": True, "operators": written}
    console.result(result, "\n".join(lines))


def _fitted(
    name: str,
    source: str,
    chosen: tuple[Any, Any, Any],
    date: str,
    command: str,
    out: Path,
    step: Callable[[str], None],
) -> dict[str, Any]:
    """Fit one operator and write its file; what there is to say of it."""
    from moesim.calibrate.fit_file import fitted_moe
    from moesim.calibrate.operator_file import fitted_operator, write_operator
    from moesim.calibrate.registry import calibrated_operator

    model = calibrated_operator(name)
    step(f"{name}: reading")
    table = model.load(source, *chosen)
    step(f"{name}: fitting")
    path = out / f"{name}.json"
    about = {"source": source, "date": date, "command": command}
    document: Any
    if name == "moe":
        document = fitted_moe(model, table, **about)
    else:
        document = fitted_operator(model, table, **about)
    write_operator(path, document)
    on_bounds: dict[str, int] = {}
    for found in document.fits:
        for coefficient in found.on_bounds:
            on_bounds[coefficient] = on_bounds.get(coefficient, 0) + 1
    return {
        "operator": name,
        "file": str(path),
        "rows": document.rows,
        "rows_dropped": document.rows_dropped,
        "fits": len(document.fits),
        "fits_on_bounds": sum(bool(found.on_bounds) for found in document.fits),
        "on_bounds": on_bounds,
    }


def _fit_devices(
    what: str, source: str, systems: list[str] | None, date: str, out: Path, console: Console
) -> tuple[dict[str, Any], str]:
    """What is fitted per device and not per kernel: errors of rooflines, or watts."""
    from moesim.calibrate.fit_power import fit_power
    from moesim.calibrate.fit_roofline import fit_roofline_errors
    from moesim.safe_io import write_json

    command = f"moesim calibrate fit --source {source} --operator {what}"
    command += f" --systems {','.join(systems)}" if systems else ""
    fitted = fit_power if what == "power" else fit_roofline_errors
    with console.progress("reading and fitting"):
        document = fitted(source, systems, date=date, command=command).to_dict()
    path = write_json(out / f"{what}.json", document)
    result = {"schema": SCHEMA, "ok": True, "operator": what, "file": str(path), "fit": document}
    return result, f"{what} fitted: {path}"


def _fit_serving(data: Path, date: str, out: Path, console: Console) -> tuple[dict[str, Any], str]:
    """Coefficients of engines' steps from measured serving runs."""
    from moesim.calibrate.serving_fit import fit_serving
    from moesim.calibrate.serving_model import step_coefficients
    from moesim.calibrate.serving_rows import read_runs
    from moesim.calibrate.serving_score import describe_runs
    from moesim.safe_io import write_json
    from moesim.serving.coefficients import FittedSteps

    with console.progress("reading") as say:
        read, refused = read_runs(data)
        runs, also = describe_runs(read, say)
        say("fitting")
        document = fit_serving(
            runs,
            source=data.name,
            date=date,
            command=f"moesim calibrate fit --suite serving --data {data.name}",
        )
    path = write_json(out / "serving.json", document.to_dict(), compact=True)
    steps = FittedSteps(
        source=document.source,
        rows=document.rows,
        date=document.date,
        command=document.command,
        fits=step_coefficients(document),
    )
    write_json(out / "serving_steps.json", steps.to_dict())
    result = {
        "schema": SCHEMA,
        "ok": True,
        "suite": "serving",
        "file": str(path),
        "rows": len(runs),
        "rows_refused": len(refused) + len(also),
        "groups": [
            {"engine": g.engine, "family": g.family, "mode": g.mode, "rows": g.rows}
            for g in document.groups
        ],
    }
    return result, f"{len(document.groups)} groups fitted to {len(runs):,} runs: {path}"


def chosen_versions(words: str) -> str | list[str]:
    """What ``Catalogue.select`` takes for versions."""
    return words if words in ("newest", "all") else listed(words) or []
