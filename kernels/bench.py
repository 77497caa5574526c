"""Benchmark of grouped GEMMs and expert layers: ours, and the peers that are present.

Run as ``moesim kernels bench``, or from a bare copy of the repository, where only torch, triton
and numpy are installed:

    python kernels/bench.py --device cuda --out kernels/measured/h100_sxm.json
    python kernels/bench.py --score kernels/measured/h100_sxm.json

An interrupted run, or one whose time was up, goes on where its file ends when it is started again.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: its folder on the path would hide modules of Python itself
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import json
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from moesim.errors import MoesimError, UsageError
from moesim.kernels.bench_cases import Case
from moesim.kernels.bench_file import read_bench, recorded_command
from moesim.kernels.bench_run import BenchOptions, bench, chosen_cases, guessed_s
from moesim.kernels.bench_score import peer_ratios, ratios_text, score_bench, score_text

__all__ = ["case_list", "default_file", "main", "summary"]

LATE_S = 2.0
"""Seconds between lines of progress where nothing redraws them."""


def default_file(device: str) -> Path:
    """Where a run goes that names no file."""
    return Path(f"kernels-{device}.json")


def case_list(options: BenchOptions) -> tuple[list[dict[str, object]], str]:
    """The plan with time and memory per case, as data and as text; nothing is run."""
    plan = chosen_cases(options)
    rows = [_planned(case, options.device) for case in plan]
    lines = [f"{'case':<58}{'rows':>8}{'GFLOP':>10}{'MB':>9}{'memory GB':>11}{'pass s':>8}"]
    for case, row in zip(plan, rows, strict=True):
        lines.append(
            f"{case.name:<58}{sum(case.rows):>8}{case.flops / 1e9:>10.1f}"
            f"{case.moved_bytes / 1e6:>9.0f}{case.memory_bytes / 1e9:>11.2f}{row['pass_s']:>8.2f}"
        )
    total_s = sum(guessed_s(case, options.device) for case in plan)
    largest = max(case.memory_bytes for case in plan)
    lines.append(
        f"{len(plan)} cases; one pass takes about {total_s / 60:.1f} minutes and at most "
        f"{largest / 1e9:.1f} GB (guessed from data sheets)"
    )
    return rows, "\n".join(lines)


def _planned(case: Case, device: str) -> dict[str, object]:
    return {
        "name": case.name,
        "op": case.op,
        "regime": case.regime,
        "dtype": case.dtype,
        "experts": len(case.rows),
        "rows": sum(case.rows),
        "n": case.n,
        "k": case.k,
        "inter": case.inter,
        "flops": case.flops,
        "moved_bytes": case.moved_bytes,
        "memory_bytes": case.memory_bytes,
        "pass_s": guessed_s(case, device),
    }


def summary(document: dict[str, Any]) -> str:
    """What was measured, for people: medians over the cases of each regime and kernel."""
    ceilings = document["ceilings"]
    shown = (("copy_bytes_per_s", "copy", "GB/s"), ("dense_flop_per_s", "dense", "GFLOP/s"))
    lines = [f"{word}: {ceilings[k] / 1e9:,.0f} {unit}" for k, word, unit in shown if k in ceilings]
    lines.append(f"{'regime':<10}{'kernel':<20}{'cases':>6}{'GFLOP/s':>12}{'GB/s':>9}{'spread':>9}")
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry in document["cases"]:
        if not entry["config"] and entry["regime"] != "ceiling":
            groups.setdefault((entry["regime"], entry["kernel"]), []).append(entry)
    for (regime, kernel), found in sorted(groups.items()):
        gflops = median(entry["tflops"] * 1e3 for entry in found)
        rate = median(entry["bytes_per_s"] / 1e9 for entry in found)
        spread = median(entry["iqr_s"] / entry["time_s"] for entry in found)
        lines.append(
            f"{regime:<10}{kernel:<20}{len(found):>6}{gflops:>12,.0f}{rate:>9,.1f}{spread:>9.1%}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command of a bare copy; the exit codes are moesim's."""
    parser = argparse.ArgumentParser(description="Benchmark grouped GEMMs and expert layers.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, help="file that is written and continued")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", default="", help="names between commas")
    parser.add_argument("--cases", default="", help="beginnings of names, between commas")
    parser.add_argument("--peers", type=Path, help="folder with peers' files")
    parser.add_argument("--system", help="name of the machine in files")
    parser.add_argument("--fresh", action="store_true", help="begin the file anew")
    parser.add_argument("--dry-run", action="store_true", help="list the cases, run nothing")
    parser.add_argument("--score", type=Path, metavar="FILE", help="judge a file, run nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    words = parser.parse_args(arguments)
    try:
        return _run(words)
    except MoesimError as error:
        print(f"bench: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code


def _run(words: argparse.Namespace) -> int:
    if words.score:
        held = read_bench(words.score)
        rows, ratios = score_bench(held), peer_ratios(held)
        scored: dict[str, object] = {"score": [row.to_dict() for row in rows]}
        scored["peer_ratios"] = ratios
        _print(words.json, scored, f"{score_text(rows)}\n\n{ratios_text(ratios)}")
        return 6 if any(row.ok is False for row in rows) else 0
    options = BenchOptions(
        device=words.device,
        out=words.out or default_file(words.device),
        minutes=words.minutes,
        seed=words.seed,
        fresh=words.fresh,
        models=_listed(words.models),
        cases=_listed(words.cases),
        peers=words.peers,
        system=words.system,
        command=recorded_command(["python", "kernels/bench.py", *sys.argv[1:]]),
    )
    if words.dry_run:
        data, text = case_list(options)
        _print(words.json, {"cases": data}, text)
        return 0
    try:
        document = bench(options, _progress())
    except ModuleNotFoundError as error:
        raise UsageError(f"{error.name} is not installed\nfix: pip install torch triton") from None
    rows = score_bench(document)
    _print(words.json, document, f"{summary(document)}\n\n{score_text(rows)}")
    print(f"written: {options.out}", file=sys.stderr)  # noqa: T201
    return 130 if document["interrupted"] else 0


def _progress() -> Callable[[float, str], None]:
    last_s = [0.0]  # monotonic time of the last line

    def tell(share: float, text: str) -> None:
        if time.monotonic() - last_s[0] > LATE_S:
            last_s[0] = time.monotonic()
            print(f"{share:4.0%} {text}", file=sys.stderr, flush=True)  # noqa: T201

    return tell


def _print(as_json: bool, data: dict[str, object], text: str) -> None:
    print(json.dumps(data) if as_json else text)  # noqa: T201


def _listed(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


if __name__ == "__main__":
    sys.exit(main())
