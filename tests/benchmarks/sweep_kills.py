"""Whether kills leave a mark on a sweep.

    python -m tests.benchmarks.sweep_kills [--kills 50 --points 800 --jobs 2 --seed 0 --json]

A grid of one-step estimates is swept once and left alone. Then, for every kill, it is swept anew,
all its processes are killed (SIGKILL) at a random moment between start and end, and it is resumed;
some are killed a second time while they resume. Both tables must have the bytes of the one left
alone, and what the store held at the kill must be there still, unchanged.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import tempfile
import time
from contextlib import closing
from pathlib import Path
from shutil import rmtree

from tests.benchmarks.sweep import command, grid_of

TABLES = ("sweep.json", "sweep.csv")


def stored(out: Path) -> dict[str, str]:
    """Results by key; none before there is a store."""
    file = out / "results.sqlite"
    if not file.exists():
        return {}
    with closing(sqlite3.connect(file)) as store:
        try:
            return dict(store.execute("SELECT key, result FROM points").fetchall())
        except sqlite3.OperationalError:  # killed before it had made its table
            return {}


def kill_after(seconds: float, words: list[str]) -> bool:
    """Whether the command was still running when all of its processes were killed."""
    process = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    time.sleep(seconds)
    running = process.poll() is None
    if running:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return running


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--points", type=int, default=800)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    chance = random.Random(given.seed)
    same = struck = midway = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        grid = folder / "grid.yaml"
        grid.write_text(grid_of(given.points))
        begin = time.perf_counter()
        subprocess.run(command(grid, folder / "whole", given.jobs), check=True, capture_output=True)
        whole_s = time.perf_counter() - begin
        expected = [(folder / "whole" / table).read_bytes() for table in TABLES]
        for number in range(given.kills):
            out = folder / f"killed-{number}"
            words = command(grid, out, given.jobs, "--resume")
            struck += kill_after(chance.uniform(0.0, whole_s), words)
            kept = stored(out)
            midway += bool(kept)
            if chance.random() < 0.2:
                kill_after(chance.uniform(0.0, whole_s), words)
            subprocess.run(words, check=True, capture_output=True)
            now = stored(out)
            found = [(out / table).read_bytes() for table in TABLES]
            same += found == expected and all(now[key] == kept[key] for key in kept)
            rmtree(out)
    found = {
        "kills": given.kills,
        "points": given.points,
        "struck_before_the_end": struck,
        "struck_with_points_in_the_store": midway,
        "resumed_to_the_same_tables": same,
        "ok": same == given.kills,
    }
    if given.json:
        print(json.dumps(found, indent=1))
        return
    print(
        f"{same} of {given.kills} kills resumed to the same tables; {struck} struck before the "
        f"end, {midway} with points in the store"
    )


if __name__ == "__main__":
    main()
