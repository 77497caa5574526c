"""How fast a sweep computes, and whether kills leave a mark.

    python -m tests.benchmarks.sweep [--points 10000 --jobs 2 --kills 50 --seed 0 --json]

A grid of one-step estimates: the seconds of the whole command with worker processes, and of the
verb alone for a sample of the same points in one process. Then a smaller grid, killed again and
again (SIGKILL to all of its processes) at random moments and resumed, against the same grid
computed in one go.

Goals: 10,000 points in at most 30 s on 2 cores; at most 1 ms more per point than the plain loop
over the verb, shared among the cores; the same tables after every kill.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from moesim.forward.request import StepRequest, run_request

GOAL_S, GOAL_OVERHEAD_S = 30.0, 1e-3
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


def swept_s(folder: Path, points: int, jobs: int) -> tuple[int, float]:
    """Points, and seconds of the command."""
    grid = folder / "grid.yaml"
    grid.write_text(grid_of(points))
    begin = time.perf_counter()
    subprocess.run(command(grid, folder / "all", jobs), check=True, capture_output=True)
    spent = time.perf_counter() - begin
    lines = (folder / "all" / "sweep.csv").read_text().count("\n")
    return lines - 1, spent


def plain_s(sample: int) -> float:
    """Seconds per point of the loop that a script would write."""
    requests = [
        StepRequest(
            "qwen3-30b-a3b", "8xh200_sxm", batch=8 * (n % 50 + 1), context=64 * (n // 4 + 1)
        )
        for n in range(sample)
    ]
    run_request(requests[0])
    begin = time.perf_counter()
    for request in requests:
        run_request(request)
    return (time.perf_counter() - begin) / sample


def kills(folder: Path, count: int, jobs: int, seed: int) -> int:
    """How many of the kills left the table as it would have been."""
    grid = folder / "small.yaml"
    grid.write_text(grid_of(800))
    subprocess.run(command(grid, folder / "whole", jobs), check=True, capture_output=True)
    expected = (folder / "whole" / "sweep.json").read_bytes()
    chance, same = random.Random(seed), 0
    for number in range(count):
        out = folder / f"killed-{number}"
        process = subprocess.Popen(
            command(grid, out, jobs, "--resume"),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        time.sleep(chance.uniform(0.3, 6.0))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        subprocess.run(command(grid, out, jobs, "--resume"), check=True, capture_output=True)
        same += (out / "sweep.json").read_bytes() == expected
    return same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        points, spent = swept_s(folder, given.points, given.jobs)
        each = plain_s(min(400, points))
        same = kills(folder, given.kills, given.jobs, given.seed)
    overhead = spent / points - each / given.jobs
    found = {
        "points": points,
        "sweep_s": spent,
        "plain_s_per_point": each,
        "overhead_s_per_point": overhead,
        "kills": given.kills,
        "resumed_to_the_same_table": same,
        "ok": spent <= GOAL_S and overhead <= GOAL_OVERHEAD_S and same == given.kills,
    }
    if given.json:
        print(json.dumps(found, indent=1))
        return
    print(
        f"{points:,} points in {spent:.1f} s with {given.jobs} workers (goal {GOAL_S:.0f} s); "
        f"a plain loop takes {1e3 * each:.2f} ms per point on one core: {1e3 * overhead:+.2f} ms "
        f"per point beside it (goal {1e3 * GOAL_OVERHEAD_S:.0f} ms)\n"
        f"{same} of {given.kills} kills resumed to the same table"
    )


if __name__ == "__main__":
    main()
