"""How long the way of a newcomer takes: install, plan, what-if, capacity, a trace of one's own.

    python -m tests.benchmarks.newcomer [--json]

A fresh virtual environment gets the checkout as the README says; then the commands of the tutorials
run outside it, each once, with nothing compiled yet. The trace is a log of routing decisions as an
engine would write it, made up here.

Goal: ten minutes in all.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
GOAL_S = 600.0
TOKENS, LAYERS, EXPERTS, TOP_K = 2000, 48, 128, 8
"""Of the log: Qwen3-30B-A3B."""

STEPS = {
    "first plan": "plan --out first",
    "first what-if": "whatif cache --out cache",
    "first capacity report": (
        "capacity --model qwen3-30b-a3b --devices h100_sxm --max-devices 8 --concurrency 64 "
        "--isl 1024 --osl 256 --out capacity"
    ),
    "import of a log": (
        f"trace import log.csv --format csv --experts {EXPERTS} --model qwen3-30b-a3b --out mine"
    ),
    "plan of the log": "plan mine --model qwen3-30b-a3b --cluster 2x8xh100_sxm --out own",
}


def main() -> None:
    """Print the seconds of every step."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    words = parser.parse_args()
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        begin = time.perf_counter()
        venv.create(place / "venv", with_pip=True)
        python = place / "venv" / "bin" / "python"
        _run([str(python), "-m", "pip", "install", "--quiet", str(ROOT)], place)
        found["install"] = time.perf_counter() - begin
        _write_log(place / "log.csv")
        for name, command in STEPS.items():
            begin = time.perf_counter()
            _run([str(python), "-m", "moesim", *command.split(), "--quiet"], place)
            found[name] = time.perf_counter() - begin
    total = sum(found.values())
    if words.json:
        print(json.dumps({"steps_s": found, "total_s": total, "goal_s": GOAL_S}))
    else:
        for name, seconds in found.items():
            print(f"{name:<24}{seconds:>7.1f} s")
        print(f"{'in all':<24}{total:>7.1f} s  (goal {GOAL_S:.0f} s)")
    sys.exit(0 if total <= GOAL_S else 6)


def _run(command: list[str], place: Path) -> None:
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def _write_log(path: Path) -> None:
    """Uneven choices, one row per token and layer."""
    rng = np.random.default_rng(0)
    likely = rng.gumbel(size=(LAYERS, EXPERTS))
    with path.open("w", newline="") as file:
        log = csv.writer(file)
        log.writerow(["token", "layer", *(f"e{k}" for k in range(TOP_K))])
        for token in range(TOKENS):
            scores = likely + rng.gumbel(size=(LAYERS, EXPERTS))
            chosen = np.argsort(-scores, axis=1)[:, :TOP_K]
            log.writerows([token, layer, *row] for layer, row in enumerate(chosen.tolist()))


if __name__ == "__main__":
    main()
