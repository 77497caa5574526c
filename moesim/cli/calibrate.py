"""``moesim calibrate``: measured kernels against the cost model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.console import (
    Console,
    JsonOption,
    NoSeedOption,
    QuietOption,
    ResultOutOption,
)

if TYPE_CHECKING:
    from moesim.calibrate.tables import Catalogue, TableFile

__all__ = ["app"]

app = typer.Typer(help="Measured kernels: what there is, and how well we predict them.")

SCHEMA = "moesim.calibrate-tables/1"


@app.callback(no_args_is_help=True)
def _group() -> None:
    """Measured kernels: what there is, and how well we predict them."""


@app.command()
def tables(
    source: Annotated[
        str,
        typer.Option(help="aiconfigurator (the installed package), or a folder of such tables."),
    ] = "aiconfigurator",
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
    from moesim.errors import UsageError

    if operator is not None and operator not in OPERATORS:
        raise UsageError(f"unknown operator {operator}\nfix: use one of {', '.join(OPERATORS)}")
    console = Console(as_json=as_json, quiet=quiet, out=out)
    names, makers = _listed(systems), _listed(engines)
    wanted: str | list[str] = versions if versions in ("newest", "all") else _listed(versions) or []
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


def _listed(words: str | None) -> list[str] | None:
    """The words between commas."""
    return None if words is None else [word.strip() for word in words.split(",") if word.strip()]


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
