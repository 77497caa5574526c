"""``moesim kernels select``: a configuration for a histogram, and the table it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.console import Console, JsonOption, OutOption, QuietOption, SeedOption

if TYPE_CHECKING:
    from moesim.kernels.choose import Choice
    from moesim.kernels.config_table import ConfigTable

__all__ = ["select"]

SCHEMA = "moesim.kernels/1"
SHOWN = 5


def select(
    histogram: Annotated[
        str, typer.Option(help="Rows of each expert: 120,4,0,… or a .npy or .json file.")
    ] = "",
    rows: Annotated[
        int | None, typer.Option(help="Rows of all experts, shared out by --skew.", min=1)
    ] = None,
    experts: Annotated[int, typer.Option(help="Experts of --rows.", min=1, max=1024)] = 128,
    skew: Annotated[
        float, typer.Option(help="Zipf exponent of --rows; 0 is balanced.", min=0, max=4)
    ] = 0.0,
    n: Annotated[int, typer.Option(help="Rows of an expert's weights.", min=1)] = 1536,
    k: Annotated[int, typer.Option(help="Columns of an expert's weights.", min=1)] = 2048,
    gated: Annotated[bool, typer.Option("--gated", help="SwiGLU in the epilogue.")] = False,
    dtype: Annotated[str, typer.Option(help="bf16 (fp16 too) or fp8.")] = "bf16",
    target: Annotated[str, typer.Option(help="sm_80, sm_90a, sm_100a or gfx942.")] = "sm_90a",
    table: Annotated[
        Path | None, typer.Option(help="Table of configurations; the shipped one without it.")
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Make the table anew (several minutes) and stop.")
    ] = False,
    measured: Annotated[
        list[Path] | None,
        typer.Option(help="With --tune: file of kernels bench to fit coefficients to."),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that compile.", min=1)] = 2,
    seed: SeedOption = 0,
    out: OutOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Choose a configuration by the cost model, from the rows of every expert.

    With --tune the table is made: candidates compiled for all targets, those that spill or do not
    fit dropped, coefficients fitted to --measured files where these hold enough times of a
    configuration, and otherwise assumed, as the table says of each. Experts of --rows are
    shuffled by --seed. --out receives the answer as JSON, or the table.
    """
    from moesim.errors import UsageError
    from moesim.extras import require

    require("torch", "kernels", "kernels select")
    if tune:
        _tune(table, measured or [], workers, out, Console(as_json=as_json, quiet=quiet))
        return
    if measured:
        raise UsageError("--measured goes with --tune\nfix: add --tune")
    from moesim.kernels.choose import choose
    from moesim.kernels.config_table import default_table, load_table
    from moesim.kernels.targets import TARGETS
    from moesim.kernels.wave_model import GemmShape

    console = Console(as_json=as_json, quiet=quiet, out=out)
    if target not in TARGETS:
        raise UsageError(f"unknown target {target}\nfix: choose among {', '.join(TARGETS)}")
    if dtype not in ("bf16", "fp8"):
        raise UsageError(f"unknown type {dtype}\nfix: use --dtype bf16 or fp8")
    if gated and n % 2:
        raise UsageError(f"--n is {n}, and gate and up rows come in pairs\nfix: use an even --n")
    counts = _histogram(histogram, rows, experts, skew, seed)
    shape = GemmShape(n, k, 1 + 4 / 128 if dtype == "fp8" else 2.0, 2.0, gated)
    used = default_table() if table is None else load_table(table)
    choices = choose(counts, shape, dtype, target, table=used)
    data = {
        "schema": SCHEMA,
        "ok": True,
        "kind": "select",
        "target": target,
        "dtype": dtype,
        "shape": {"n": n, "k": k, "gated": gated, "experts": len(counts)},
        "histogram": counts,
        "choice": _choice_data(choices[0]),
        "considered": [
            {"name": c.name, "predicted_s": c.predicted_s, "evidence": c.evidence} for c in choices
        ],
    }
    console.result(data, _text(choices, counts, n, k))


def _histogram(text: str, rows: int | None, experts: int, skew: float, seed: int) -> list[int]:
    """Rows of each expert from the options."""
    import numpy as np

    from moesim.errors import UsageError
    from moesim.kernels.choose import zipf_histogram

    if bool(text) == (rows is not None):
        raise UsageError("one of --histogram and --rows is needed\nfix: pass e.g. --rows 1024")
    if rows is not None:
        counts = zipf_histogram(rows, experts, skew)
        return [int(value) for value in np.random.default_rng(seed).permutation(counts)]
    if text.endswith((".npy", ".json")):
        return _read_histogram(Path(text))
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise UsageError(
            f"--histogram is {text}; allowed: whole numbers with commas between them, or the name "
            "of a .npy or .json file\nfix: pass e.g. --histogram 120,4,0,7"
        ) from None


def _read_histogram(file: Path) -> list[int]:
    from moesim.errors import InputError
    from moesim.safe_io import map_npy, read_json

    counts = map_npy(file).tolist() if file.suffix == ".npy" else read_json(file)
    if not isinstance(counts, list) or not all(type(value) is int for value in counts):
        raise InputError(
            "rows per expert are needed",
            file=file,
            found=counts,
            allowed="a list of whole numbers, one per expert",
        )
    return counts


def _tune(
    table: Path | None, measured: Sequence[Path], workers: int, out: Path | None, console: Console
) -> None:
    from moesim.extras import require
    from moesim.safe_io import read_json, write_json

    require("triton", "kernels", "kernels select --tune")
    from moesim.kernels.config_table import load_table
    from moesim.kernels.targets import TARGETS
    from moesim.kernels.tune import build_table, measured_of, refit

    documents = [(file, read_json(file)) for file in measured]
    dropped: list[str] = []
    if table is None:
        with console.progress("compiling candidates"):
            made: ConfigTable = build_table(list(TARGETS), workers=workers, say=dropped.append)
    else:
        made = load_table(table)
    points = [point for file, data in documents for point in measured_of(data, made, file)]
    if documents:
        made = refit(made, points)
    for line in dropped:
        console.say(f"dropped: {line}")
    file = write_json(out or Path("configs.json"), made.to_dict())
    entries = [entry for own in made.entries.values() for entry in own]
    fitted = sum(1 for entry in entries if entry.evidence == "measured")
    data = {
        "schema": SCHEMA,
        "ok": True,
        "kind": "tune",
        "file": str(file),
        "configurations": len(entries),
        "fitted": fitted,
        "points": len(points),
        "dropped": dropped,
    }
    console.result(
        data,
        f"{len(entries)} configurations, {fitted} of them measured, {len(points)} times fitted to, "
        f"{len(dropped)} dropped\nwritten: {file}",
    )


def _choice_data(choice: Choice) -> dict[str, Any]:
    return {
        "name": choice.name,
        "predicted_s": choice.predicted_s,
        "evidence": choice.evidence,
        "parts": [
            {"fewest": part.fewest, "most": part.most, "config": part.config.to_dict()}
            for part in choice.parts
        ],
    }


def _text(choices: Sequence[Choice], counts: Sequence[int], n: int, k: int) -> str:
    from moesim.units import format_si

    best = choices[0]
    active = [count for count in counts if count]
    lines = [
        f"{len(counts)} experts, {len(active)} with rows: {sum(active):,} rows, "
        f"{min(active, default=0):,} to {max(active, default=0):,} per expert; "
        f"weights {n:,} × {k:,}",
        f"{best.name}: predicted {format_si(best.predicted_s, 's')}, coefficients {best.evidence}",
    ]
    lines += [
        f"  {part.config.name}: experts with "
        + (
            f"{part.fewest} to {part.most} rows"
            if part.most < 2**31 - 1
            else f"{part.fewest} rows or more"
        )
        for part in best.parts
    ]
    lines += ["", f"{'next best':<44}{'predicted':>12}{'over best':>11}"]
    for choice in choices[1:SHOWN]:
        over = choice.predicted_s / best.predicted_s - 1
        lines.append(f"{choice.name:<44}{format_si(choice.predicted_s, 's'):>12}{over:>10.1%}")
    return "\n".join(lines)
