"""``moesim trace``: import and validate routing traces, and the group that all trace verbs join."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli import trace_locality, trace_record, trace_stats, trace_synth
from moesim.cli.console import Console, JsonOption, NoSeedOption, QuietOption, ResultOutOption
from moesim.errors import UsageError

if TYPE_CHECKING:
    from moesim.traces.importers import ImportResult
    from moesim.traces.validate import ValidationReport

__all__ = ["app", "import_", "validate"]

app = typer.Typer(help="Import, check, make and study routing traces.", no_args_is_help=True)

FORMATS = "sglang, vllm, trtllm, jsonl, csv, llamacpp"
SCHEMA = "moesim.trace/1"


def import_(
    file: Annotated[Path, typer.Argument(help="What the engine recorded: a file or a folder.")],
    format: Annotated[str, typer.Option("--format", "-f", help=f"One of {FORMATS}.")],
    experts: Annotated[int, typer.Option("--experts", "-e", help="Experts per layer.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    top_k: Annotated[
        int | None, typer.Option("--top-k", help="Experts per token, where the file does not tell.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Name of the model.")] = None,
    moe_layers: Annotated[
        str | None,
        typer.Option(
            "--moe-layers",
            help="Model layer indices such as 3-60 or 1,3,5: names the layers of a format that "
            "does not, chooses among them where it does.",
        ),
    ] = None,
    iterations: Annotated[
        str | None,
        typer.Option("--iterations", help="First and last iteration, such as 100-200 (trtllm)."),
    ] = None,
    keep_warm_up: Annotated[
        bool, typer.Option("--keep-warm-up", help="Keep the dummy passes at the start (jsonl).")
    ] = False,
    as_json: JsonOption = False,
    seed: NoSeedOption = 0,
    quiet: QuietOption = False,
) -> None:
    """Turn a recording of an engine into a trace bundle, or into counts if it holds no more."""
    from moesim.traces.importers import import_trace
    from moesim.traces.importers.contents import ImportOptions

    console = Console(as_json=as_json, quiet=quiet)
    options = ImportOptions(
        experts=experts,
        top_k=top_k,
        moe_layers=None if moe_layers is None else parse_layers(moe_layers),
        iterations=None if iterations is None else parse_range("--iterations", iterations),
        keep_warm_up=keep_warm_up,
    )
    with console.progress(f"importing {file.name}"):
        result = import_trace(file, format, options, out, model=model)
    for warning in result.warnings:
        console.say(f"moesim: warning: {warning}")
    data = {"schema": SCHEMA, "ok": True, **result.to_dict()}
    console.result(data, _import_text(result))


def validate(
    folder: Annotated[Path, typer.Argument(help="Folder of the trace.")],
    as_json: JsonOption = False,
    seed: NoSeedOption = 0,
    out: ResultOutOption = None,
    quiet: QuietOption = False,
) -> None:
    """Check every file of a trace and list all that is wrong; exit code 4 if anything is."""
    from moesim.traces.validate import validate_trace

    console = Console(as_json=as_json, quiet=quiet, out=out)
    with console.progress(f"checking {folder}"):
        report = validate_trace(folder)
    for reason in report.skipped:
        console.say(f"moesim: warning: not checked: {reason}")
    data = {"schema": SCHEMA, "ok": report.ok, **report.to_dict()}
    console.result(data, _report_text(report))
    if not report.ok:
        raise typer.Exit(4)


def parse_layers(text: str) -> tuple[int, ...]:
    """Layer indices of ``3-60`` or ``1,3,5-7``, ascending.

    Raises:
        UsageError: If the text is neither, or names a layer twice.
    """
    layers: list[int] = []
    for part in text.split(","):
        first, last = parse_range("--moe-layers", part)
        if last - first >= 10_000:
            raise UsageError(f"--moe-layers {text} names too many layers\nfix: e.g. 3-60")
        layers.extend(range(first, last + 1))
    if len(set(layers)) != len(layers):
        raise UsageError(f"--moe-layers {text} names a layer twice\nfix: e.g. 3-60")
    return tuple(sorted(layers))


def parse_range(option: str, text: str) -> tuple[int, int]:
    """Both ends of ``A-B``, or of ``A`` alone.

    Raises:
        UsageError: If the text is neither, or B is below A.
    """
    match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", text.strip())
    first = int(match[1]) if match else 0
    last = int(match[2] or match[1]) if match else -1
    if last < first:
        raise UsageError(f"{option} {text} is not a range of whole numbers\nfix: e.g. 3-60")
    return first, last


def _import_text(result: ImportResult) -> str:
    size = (
        f"{result.steps} steps"
        if result.tokens is None
        else f"{result.tokens} tokens, top-{result.top_k}"
    )
    lines = [
        f"{result.kind} of {result.model}: {result.layers} MoE layers "
        f"({_layer_range(result.moe_layers)}), {result.experts} experts, {size}",
        f"read as {result.format} ({result.dialect})",
    ]
    if result.dropped:
        dropped = (f"{count} {kind.replace('_', ' ')}" for kind, count in result.dropped.items())
        lines.append(f"dropped: {', '.join(dropped)}")
    return "\n".join([*lines, f"written to {result.path}"])


def _layer_range(layers: tuple[int, ...]) -> str:
    if layers == tuple(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}-{layers[-1]}" if len(layers) > 1 else str(layers[0])
    return ",".join(map(str, layers))


def _report_text(report: ValidationReport) -> str:
    lines: list[Any] = [f"{report.path}: {'sound' if report.ok else 'not sound'}"]
    for problem in report.problems:
        where = ", ".join(part for part in (problem.file, problem.field) if part)
        times = f" ({problem.count} times)" if problem.count > 1 else ""
        lines.append(f"  {where}: {problem.problem}{times}")
    return "\n".join(lines)


app.command("import")(import_)
app.command("validate")(validate)
app.command("record")(trace_record.record)
app.command("synth")(trace_synth.synth)
app.command("stats")(trace_stats.stats)
app.command("locality")(trace_locality.locality)
