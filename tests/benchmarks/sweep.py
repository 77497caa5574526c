"""How fast a sweep computes, beside a plain loop over the same estimates.

    python -m tests.benchmarks.sweep [--points 10000 --jobs 2 --sample 400 --json]

A grid of one-step estimates, swept by the whole command with worker processes. Then a sample
of its points in one process, by turns: the loop that a script would write over the function behind
the verb, and the points of the sweep, whose results become text. The median of the turns counts.

Goals: 10,000 points in at most 30 s on 2 cores; at most 1 ms more per point than the plain loop.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from moesim.cli.sweep_point import SweptVerb
from moesim.forward.request import StepRequest, run_request
from moesim.sweep.grid import read_grid

GOAL_S, GOAL_OVERHEAD_S = 30.0, 1e-3
TURN = 50
"""Points in a turn."""

GRID = """verb: simulate step
model: qwen3-30b-a3b
cluster: [4xh100_sxm, 8xh100_sxm, 8xh200_sxm, 8xb200_sxm]
batch: {batch}
context: {context}
"""


def grid_of(points: int) -> str:
    """A grid with that many points, or a few less."""
    batches = max(1, min(50, points // 4))
    contexts = max(1, points // 4 // batches)
    return GRID.format(
        batch=[8 * (n + 1) for n in range(batches)], context=[64 * (n + 1) for n in range(contexts)]
    )


def command(grid: Path, out: Path, jobs: int, *more: str) -> list[str]:
    words = [sys.executable, "-m", "moesim", "sweep", str(grid), "--out", str(out)]
    return [*words, "--jobs", str(jobs), "--quiet", *more]


def swept_s(grid: Path, out: Path, jobs: int) -> tuple[int, float]:
    """Points, and seconds of the command."""
    begin = time.perf_counter()
    subprocess.run(command(grid, out, jobs), check=True, capture_output=True)
    spent = time.perf_counter() - begin
    return (out / "sweep.csv").read_text().count("\n") - 1, spent


def beside_plain(points: list[dict]) -> tuple[float, float]:
    """Seconds per point of the plain loop and of the sweep's points, by turns."""
    run = SweptVerb("simulate step")
    spent = {"plain": [], "swept": []}
    for start in range(0, len(points), TURN):
        turn = points[start : start + TURN]
        requests = [StepRequest(**point) for point in turn]
        begin = time.perf_counter()
        for request in requests:
            run_request(request)
        between = time.perf_counter()
        for point in turn:
            json.dumps(run(point))
        end = time.perf_counter()
        spent["plain"].append((between - begin) / len(turn))
        spent["swept"].append((end - between) / len(turn))
    return median(spent["plain"]), median(spent["swept"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--sample", type=int, default=400)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "grid.yaml"
        file.write_text(grid_of(given.points))
        points, spent = swept_s(file, Path(name) / "out", given.jobs)
        listed = list(read_grid(file).points())
    plain, swept = beside_plain(listed[:: max(1, len(listed) // given.sample)])
    found = {
        "points": points,
        "jobs": given.jobs,
        "sweep_s": spent,
        "plain_s_per_point": plain,
        "swept_s_per_point": swept,
        "overhead_s_per_point": swept - plain,
        "ratio": swept / plain,
        "ok": spent <= GOAL_S and swept - plain <= GOAL_OVERHEAD_S,
    }
    if given.json:
        print(json.dumps(found, indent=1))
        return
    print(
        f"{points:,} points in {spent:.1f} s with {given.jobs} workers (goal {GOAL_S:.0f} s)\n"
        f"in one process {1e3 * swept:.2f} ms per point, {1e3 * plain:.2f} ms by a plain loop: "
        f"{1e3 * (swept - plain):+.2f} ms (goal {1e3 * GOAL_OVERHEAD_S:.0f} ms), "
        f"{swept / plain:.2f} times"
    )


if __name__ == "__main__":
    main()
