"""How fast serving is simulated, in CPU time of one core.

    python -m tests.benchmarks.serving [--requests 10000 --concurrency 256 --repeats 3 --json]

Made-up step tables; requests of 1,024 tokens in and out (uniform from 0.8 on). For each engine: the
steps of the run, the best time of the repeats (everything behind the tables: the dense look-up, the
loop, the schedule's arrays), and both on so many short requests as there are slots, to compare with
the plain reference.

Goal: 10,000 requests at concurrency 256 in at most 3 s.
"""

from __future__ import annotations

import argparse
import json
import time

from moesim.serving.deployment import Deployment, Pool
from moesim.serving.engines import ENGINES, find_engine
from moesim.serving.loads import closed_loop, parse_lengths
from moesim.serving.simulation import simulate_requests
from tests.serving.plain import Plain
from tests.serving.tables import made_up_tables

GOAL_S = 3.0


def measure(engine, requests, concurrency, repeats):
    """Steps, and CPU seconds of both."""
    pool = Pool(made_up_tables(), find_engine(engine), kv_tokens=2048 * concurrency)
    deployment = Deployment(pool)
    lengths = parse_lengths("uniform:0.8")
    load = closed_loop(concurrency, 1024, 1024, lengths, count=requests)
    run = simulate_requests(deployment, load)
    best_s = min(cpu_s(lambda: simulate_requests(deployment, load)) for _ in range(repeats))
    small = closed_loop(concurrency, 256, 64, lengths, count=concurrency)
    short = simulate_requests(deployment, small)
    plain_s = cpu_s(lambda: Plain(deployment, small, short.duration_s))
    fast_s = min(cpu_s(lambda: simulate_requests(deployment, small)) for _ in range(repeats))
    return {
        "engine": engine,
        "steps": run.steps,
        "run_s": best_s,
        "step_s": best_s / run.steps,
        "small_steps": short.steps,
        "small_run_s": fast_s,
        "small_plain_s": plain_s,
    }


def cpu_s(subject):
    begin = time.process_time()
    subject()
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = [measure(name, given.requests, given.concurrency, given.repeats) for name in ENGINES]
    if given.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(
            f"{row['engine']:24}{row['steps']:8,} steps "
            f"{row['run_s']:6.3f} s ({row['step_s'] * 1e6:4.1f} µs per step); plain, of "
            f"{row['small_steps']:,} steps: {row['small_plain_s']:.2f} s, "
            f"{row['small_plain_s'] / row['small_run_s']:,.0f} times as long"
        )
    worst = max(row["run_s"] for row in rows)
    print(f"slowest {worst:.3f} s, goal {GOAL_S:g} s: {'kept' if worst <= GOAL_S else 'MISSED'}")


if __name__ == "__main__":
    main()
