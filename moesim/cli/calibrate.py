"""``moesim calibrate``: measured kernels against the cost model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli import calibrate_bench, calibrate_fit, calibrate_measure
from moesim.cli.calibrate_fit import SOURCE_HELP, chosen_versions
from moesim.cli.console import (
    Console,
    JsonOption,
    NoSeedOption,
    QuietOption,
    ResultOutOption,
    SeedOption,
    listed,
)
from moesim.errors import UsageError

if TYPE_CHECKING:
    from moesim.calibrate.tables import Catalogue, TableFile

__all__ = ["app"]

app = typer.Typer(help="Measured kernels: what there is, and how well we predict them.")

SCHEMA = "moesim.calibrate-tables/1"
EVALUATE_SCHEMA = "moesim.calibrate/1"


@app.callback(no_args_is_help=True)
def _group() -> None:
    """Measured kernels: what there is, and how well we predict them."""


@app.command()
def tables(
    source: Annotated[str, typer.Option(help=SOURCE_HELP)] = "aiconfigurator",
    operator: Annotated[
        str | None,
        typer.Option(help="Read this operator's tables and say what the hygiene rules drop."),
    ] = None,
    systems: Annotated[
        str | None, typer.Option(help="Only these systems, such as h100_sxm,h200_sxm.")
    ] = None,
    engines: Annotated[
        str | None, typer.Option(help="Only these engines, such as sglang,vllm.")
    ] = None,
    versions: Annotated[
        str, typer.Option(help="newest (of each engine), all, or version numbers.")
    ] = "newest",
    as_json: JsonOption = False,
    seed: NoSeedOption = 0,
    out: ResultOutOption = None,
    quiet: QuietOption = False,
) -> None:
    """List measured tables, with the rows that hygiene drops from an operator's, by rule.

    Rows are judged against the other systems that are chosen: more systems, more can be found.
    """
    from moesim.calibrate.hygiene import clean, repeat_noise
    from moesim.calibrate.operators import OPERATORS, operator_of_file, read_operator
    from moesim.calibrate.tables import open_catalogue

    if operator is not None and operator not in OPERATORS:
        raise UsageError(f"unknown operator {operator}\nfix: use one of {', '.join(OPERATORS)}")
    console = Console(as_json=as_json, quiet=quiet, out=out)
    names, makers = listed(systems), listed(engines)
    wanted = chosen_versions(versions)
    with console.progress("listing") as step:
        catalogue = open_catalogue(source)
        files = None if operator is None else OPERATORS[operator].files
        chosen = catalogue.select(files, names, makers, wanted)
        result: dict[str, Any] = {
            "schema": SCHEMA,
            "ok": True,
            "source": source,
            "folder": str(catalogue.folder),
            "rows": sum(table.rows for table in chosen),
            "operator": operator,
            "tables": [_row(table, catalogue, operator_of_file) for table in chosen],
        }
        if operator is not None:
            step("reading")
            frame = read_operator(
                catalogue, operator, systems=names, engines=makers, versions=wanted
            )
            step("looking for rows that are no measurement")
            result["repeat_noise"] = repeat_noise(frame)
            result["hygiene"] = clean(frame)[1].to_dict()
    console.result(result, _text(result))
    if operator is None:
        console.say("--operator NAME reads an operator's tables and shows what hygiene drops.")


@app.command()
def evaluate(
    source: Annotated[str, typer.Option(help=SOURCE_HELP)] = "aiconfigurator",
    operator: Annotated[
        str,
        typer.Option(
            help="moe, gemm, attention, mla or comm, or a single operator of those such as "
            "custom_allreduce."
        ),
    ] = "moe",
    systems: Annotated[
        str | None, typer.Option(help="Only these systems, such as h100_sxm,h200_sxm.")
    ] = None,
    engines: Annotated[
        str | None, typer.Option(help="Only these engines, such as sglang,vllm.")
    ] = None,
    versions: Annotated[
        str | None,
        typer.Option(
            help="newest (of each engine), all, or version numbers; by default all where a split "
            "needs older tables (other versions, several nodes), newest otherwise."
        ),
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            help="random, leave-shape-out, leave-system-out, leave-version-out, and of "
            "communication leave-size-out and leave-nodes-out: what the fit must not have seen."
        ),
    ] = "leave-shape-out",
    fit_fraction: Annotated[
        float | None,
        typer.Option(help="Share of the rows to fit on; 0.1 for random, all for the others."),
    ] = None,
    hold_out: Annotated[
        str | None,
        typer.Option(help="Score only these held-out parts, such as h200_sxm; all by default."),
    ] = None,
    rows_per_kernel: Annotated[
        int | None,
        typer.Option(min=1, help="Draw at most so many rows of each kernel: a quicker look."),
    ] = None,
    seed: SeedOption = 0,
    residual: Annotated[
        bool,
        typer.Option(
            "--residual/--no-residual",
            help="Add the learned residual, or score the physics alone (default).",
        ),
    ] = False,
    out: ResultOutOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Score an operator's cost model on measured rows that its fit has not seen.

    Errors are |predicted − measured| / measured; intervals are to hold 80 % of the rows. Files of
    calibrate measure and of kernels bench say themselves what they hold.
    """
    from moesim.calibrate.fit_grouped import is_bench_file
    from moesim.calibrate.groups import Rows, evaluate_group, members
    from moesim.calibrate.measurements import is_measurements_file

    console = Console(as_json=as_json, quiet=quiet, out=out)
    if is_measurements_file(source):
        console.result(*calibrate_measure.evaluate_measurements(source, seed))
        return
    if is_bench_file(source):
        console.result(*calibrate_bench.evaluate_bench(source, seed))
        return
    with console.progress("reading") as step:
        found = evaluate_group(
            members(operator),
            Rows(
                source,
                listed(systems),
                listed(engines),
                chosen_versions(versions) if versions else None,
                rows_per_kernel,
            ),
            split,
            fit_fraction=fit_fraction,
            seed=seed,
            hold_out=listed(hold_out) or (),
            residual=residual,
            say=step,
        )
    result: dict[str, Any] = {
        "schema": EVALUATE_SCHEMA,
        "ok": True,
        "source": source,
        "operator": operator,
        "systems": list(found.systems),
        "versions": versions or "default",
        "split": split,
        "fit_fraction": fit_fraction,
        "rows_per_kernel": rows_per_kernel,
        "seed": seed,
        "residual": residual,
        **found.to_dict(),
    }
    console.result(result, _score_text(result))


def _score_text(result: dict[str, Any]) -> str:
    """The scores for people."""
    head = f"{'':<64}{'rows':>9}{'MAPE':>8}{'median':>8}{'p90':>8}{'bias':>8}{'in 80 %':>9}"
    lines = [f"{result['operator']}, {result['split']}, {', '.join(result['systems'])}", head]
    lines.append(_score_line("all", result))
    for part in ("by_regime", "by_fold"):
        lines += [_score_line(name, found) for name, found in result[part].items()]
    for name, reason in result.get("skipped", {}).items():
        lines.append(f"{name} was not scored: {reason}")
    missing = result["rows"] - result["covered"]
    return "\n".join([*lines, *([f"{missing:,} rows without a prediction"] if missing else [])])


def _score_line(name: str, found: dict[str, Any]) -> str:
    """One line of the table."""
    names = ("mape", "median_ape", "p90_ape", "bias")
    cells = [f"{found[key]:>8.1%}" if found[key] is not None else f"{'-':>8}" for key in names]
    covered = found["interval_coverage"]
    cells.append(f"{covered:>9.1%}" if covered is not None else f"{'-':>9}")
    return f"{name[:63]:<64}{found['rows']:>9,}{''.join(cells)}"


def _row(table: TableFile, catalogue: Catalogue, operator_of_file: Any) -> dict[str, Any]:
    operator = operator_of_file(table.operator)
    return {
        "system": table.system,
        "engine": table.engine,
        "version": table.version,
        "family": table.family,
        "file": table.operator,
        "operator": None if operator is None else operator.name,
        "rows": table.rows,
        "completed_from": table.reuses,
        "completed_because": table.reuse_reason or None,
        "path": None if table.path is None else str(table.path.relative_to(catalogue.folder)),
    }


def _text(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [f"{result['rows']:,} rows in {len(result['tables'])} tables of {result['folder']}", ""]
    if result["operator"] is None:
        return "\n".join(lines + _by_operator(result["tables"]))
    for row in result["tables"]:
        name = f"{row['system']}/{row['engine']}/{row['version']}"
        borrowed = f"  completed from {row['completed_from']}" if row["completed_from"] else ""
        lines.append(f"{row['rows']:>10,}  {name}  ({row['file']}){borrowed}")
    hygiene = result["hygiene"]
    dropped = hygiene["rows"] - hygiene["kept"]
    lines += ["", f"{dropped:,} of {hygiene['rows']:,} rows dropped, by rule:"]
    for rule in hygiene["rules"]:
        lines.append(f"{rule['rows']:>10,}  {rule['rule']}: {rule['meaning']}")
        lines += [f"{count:>14,}  {table}" for table, count in rule["by_table"].items()]
        if rule["examples"]:
            shown = ", ".join(f"{key} {value}" for key, value in rule["examples"][0].items())
            lines.append(f"                e.g. {shown}")
    noise = result["repeat_noise"]
    if noise:
        lines.append(
            f"{noise['keys']:,.0f} keys were measured more than once: they differ by "
            f"{noise['median']:.1%} (median), {noise['p90']:.1%} (p90), {noise['p99']:.1%} (p99)"
        )
    return "\n".join([*lines, *hygiene["notes"]])


def _by_operator(rows: list[dict[str, Any]]) -> list[str]:
    """One line per file of an operator."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["operator"] or "(not read)", row["file"]), []).append(row)
    lines = [f"{'operator':<26}{'file':<32}{'rows':>10}  tables  systems  engines"]
    for (operator, file), members in sorted(groups.items()):
        total = sum(row["rows"] for row in members)
        systems = len({row["system"] for row in members})
        engines = ", ".join(sorted({row["engine"] for row in members}))
        lines.append(
            f"{operator:<26}{file:<32}{total:>10,}{len(members):>8}{systems:>9}  {engines}"
        )
    return lines


app.command("fit")(calibrate_fit.fit)
app.command("measure")(calibrate_measure.measure)
