"""``moesim kernels bench``: time grouped GEMMs and expert layers, ours and the peers present."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from moesim.cli.console import Console, JsonOption, OutOption, QuietOption, SeedOption
from moesim.errors import InputError, UsageError

__all__ = ["bench"]


def bench(
    device: Annotated[
        str | None, typer.Option(help="cuda or cpu; a GPU if torch sees one.")
    ] = None,
    minutes: Annotated[float, typer.Option(help="Time for this call; a rerun goes on.")] = 8.0,
    out: OutOption = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin the file anew instead of continuing it.")
    ] = False,
    models: Annotated[
        str, typer.Option(help="Only shapes of these models, such as deepseek-v3,mixtral-8x7b.")
    ] = "",
    cases: Annotated[
        str, typer.Option(help="Only cases that begin so, such as decode/qwen3-30b-a3b.")
    ] = "",
    peers: Annotated[
        Path | None,
        typer.Option(help="Folder with files of vLLM and triton_kernels to compare with."),
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="Name of the machine in files; its processor's without it.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the cases with their cost, run nothing.")
    ] = False,
    score: Annotated[
        Path | None, typer.Option(help="Judge this measured file by the goals, run nothing.")
    ] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check kernels on this device, then time them: ours, torch's, and other peers present.

    A GPU runs the full shapes with a cold L2; a CPU the same list at reduced width with torch's
    products, by one thread's processor time. The file (kernels-DEVICE.json, or --out) grows case
    by case; a rerun continues it. Exit code 6: a goal of --score is missed.
    """
    from moesim.kernels.bench import case_list, default_file
    from moesim.kernels.bench_file import recorded_command
    from moesim.kernels.bench_run import BenchOptions

    console = Console(as_json=as_json, quiet=quiet)
    if score is not None:
        _judge(score, console)
        return
    device = device or _device()
    options = BenchOptions(
        device=device,
        out=_file(out or default_file(device), device),
        minutes=minutes,
        seed=seed,
        fresh=fresh,
        models=_listed(models),
        cases=_listed(cases),
        peers=_folder(peers),
        system=system,
        command=recorded_command(["moesim", *sys.argv[1:]]),
    )
    if device not in ("cuda", "cpu"):
        raise UsageError(f"unknown device {device}\nfix: use --device cpu or cuda")
    if dry_run:
        planned, text = case_list(options)
        data = {"schema": "moesim.kernels/1", "ok": True, "kind": "bench-plan", "cases": planned}
        console.result(data, text)
        return
    _measure(options, console)


def _measure(options: Any, console: Console) -> None:
    from moesim.extras import require
    from moesim.kernels.bench import summary
    from moesim.kernels.bench_run import bench as run_bench
    from moesim.kernels.bench_score import score_bench, score_text

    require("torch", "kernels", "kernels bench")
    with console.progress("measuring") as step:
        document = run_bench(options, lambda share, text: step(f"{share:.0%} {text}"))
    console.say(f"written: {options.out} ({len(document['cases'])} entries)")
    for reason, names in document["left_out"].items():
        if names:
            console.say(f"{len(names)} of {document['planned']} cases left out: {reason}")
    for entry in document["failed"]:
        console.say(f"failed: {entry['kernel']} on {entry['case']}: {entry['reason']}")
    if document["interrupted"]:
        raise typer.Exit(130)
    text = summary(document)
    if options.device == "cuda":
        text += "\n\n" + score_text(score_bench(document))
    console.result(document | {"file": str(options.out)}, text)


def _judge(file: Path, console: Console) -> None:
    """Goals against a measured file, the cost model's held-out error among them."""
    from moesim.kernels.bench_file import read_bench
    from moesim.kernels.bench_score import peer_ratios, ratios_text, score_bench, score_text

    document = read_bench(file)
    ratios = peer_ratios(document)
    rows = score_bench(document)
    missed = any(row.ok is False for row in rows)
    data = {
        "schema": "moesim.kernels/1",
        "ok": not missed,
        "kind": "bench-score",
        "file": str(file),
        "device": document["device"],
        "system": document.get("system"),
        "goals": [row.to_dict() for row in rows],
        "peer_ratios": ratios,
    }
    console.result(data, f"{score_text(rows)}\n\n{ratios_text(ratios)}")
    if missed:
        raise typer.Exit(6)


def _device() -> str:
    from moesim.extras import require

    torch = require("torch", "kernels", "kernels bench")
    return "cuda" if torch.cuda.is_available() else "cpu"


def _file(out: Path, device: str) -> Path:
    """The file to write, checked before minutes are spent on measuring."""
    import os

    target = out if out.suffix == ".json" else out / f"kernels-{device}.json"
    nearest = next(path for path in target.absolute().parents if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK) or target.is_dir():
        raise InputError("cannot be written", file=target, fix="choose another --out")
    return target


def _folder(peers: Path | None) -> Path | None:
    if peers is not None and not peers.is_dir():
        raise InputError(
            "a folder is needed", file=peers, field="--peers", fix="unpack the peers' files there"
        )
    return peers


def _listed(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())
