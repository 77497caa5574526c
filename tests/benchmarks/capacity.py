"""How long a capacity search takes, and how near its estimates are to what is played.

    python -m tests.benchmarks.capacity [--model deepseek-v3 --devices h200_sxm --max-devices 64
                                         --concurrency 1024 --sample 60 --seed 0 --json]

The search estimates every layout, ratio of workers and number of replicas, and plays the likeliest
request by request. Here its estimates are compared with plays of a random sample of all options,
and the time of the search with that of playing everything (from the sample's mean).

Goal: DeepSeek-V3 on up to 64 H200, search and frontier, in at most 5 s.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from moesim.capacity.deployments import play
from moesim.capacity.frontier import frontier
from moesim.capacity.question import Question
from moesim.capacity.search import answer

GOAL_S = 5.0


def measure(question: Question, sample: int, seed: int) -> dict[str, object]:
    """Seconds, counts and errors."""
    begin = time.perf_counter()
    found = answer(question)
    searched = time.perf_counter()
    points = frontier(found)
    done = time.perf_counter()
    chosen = np.random.default_rng(seed).permutation(len(found.options))[:sample]
    off, play_s = [], []
    for option in (found.options[place] for place in chosen):
        start = time.perf_counter()
        played = play(option.plan, question, expected=option.expected)
        play_s.append(time.perf_counter() - start)
        if played is not None:
            off.append(
                [
                    np.log(option.tpot_s / played.tpot_s),
                    np.log(option.tokens_per_s / played.tokens_per_s),
                ]
            )
    tpot, rate = np.abs(np.array(off).reshape(-1, 2)).T
    return {
        "options": len(found.options),
        "played": len(found.kept) + len(found.missed),
        "search_s": searched - begin,
        "frontier_s": done - searched,
        "frontier_points": len(points),
        "best": str(found.best.plan.candidate.layout) if found.best else None,
        "sample": len(tpot),
        "tpot_error_median": float(np.median(tpot)),
        "tpot_error_p90": float(np.quantile(tpot, 0.9)),
        "rate_error_median": float(np.median(rate)),
        "rate_error_p90": float(np.quantile(rate, 0.9)),
        "play_everything_s": float(np.mean(play_s)) * len(found.options),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="deepseek-v3")
    parser.add_argument("--devices", default="h200_sxm")
    parser.add_argument("--max-devices", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=1024)
    parser.add_argument("--sample", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    question = Question(
        given.model,
        tuple(given.devices.split(",")),
        max_devices=given.max_devices,
        concurrency=given.concurrency,
        isl=2048,
        osl=512,
        ttft_s=2.0,
        tpot_s=0.05,
        seed=given.seed,
    )
    # Compiled loops and measured tables are loaded once per process.
    measure(Question("qwen3-30b-a3b", ("h100_sxm",), 2, 8, isl=64, osl=16), 1, given.seed)
    found = measure(question, given.sample, given.seed)
    found["goal_s"] = GOAL_S
    found["ok"] = found["search_s"] + found["frontier_s"] <= GOAL_S
    if given.json:
        print(json.dumps(found, indent=1))
        return
    print(
        f"{found['options']:,} deployments, {found['played']} played: search "
        f"{found['search_s']:.1f} s, frontier of {found['frontier_points']} points "
        f"{found['frontier_s']:.1f} s; playing everything would take "
        f"{found['play_everything_s']:.0f} s\n"
        f"estimates against {found['sample']} plays: TPOT {found['tpot_error_median']:.1%} "
        f"(median), {found['tpot_error_p90']:.1%} (p90); tokens/s "
        f"{found['rate_error_median']:.1%}, "
        f"{found['rate_error_p90']:.1%}\n"
        f"goal {GOAL_S:.0f} s: {'met' if found['ok'] else 'MISSED'}"
    )


if __name__ == "__main__":
    main()
