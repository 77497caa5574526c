"""The replay of offloading systems against its plain reference, and schedules against the best.

python -m tests.benchmarks.offload
"""

from __future__ import annotations

import time

import numpy as np

from moesim.offload import scores
from moesim.offload.replay import Plan, Timing, replay
from tests.offload import plain

STEPS, LAYERS, EXPERTS, TOP_K, SLOTS = 1500, 8, 64, 8, 16
PLAIN_STEPS = 60


def main() -> None:
    """Print events per second of both, and how far HybriMoE's rule is from the best division."""
    rng = np.random.default_rng(0)
    keys = rng.gumbel(size=(LAYERS, EXPERTS)) + rng.gumbel(size=(STEPS, LAYERS, EXPERTS))
    tokens = (keys.argsort(axis=2) >= EXPERTS - TOP_K).astype(np.int64)
    timing = Timing(
        np.array([0, 0.03]), np.array([0, 0.9]), 0.14, 1.25, 1.25, 2.0, np.full(STEPS, 0.7)
    )
    for schedule in ("on-demand", "split", "hybrid", "hybrid-code"):
        asked = Plan(
            schedule, scores.lru(tokens), np.full(LAYERS, SLOTS), np.zeros((LAYERS, EXPERTS), bool)
        )
        replay(tokens[:1], asked, timing)
        fast_s = _seconds(lambda asked=asked: replay(tokens, asked, timing)) / (STEPS * LAYERS)
        part = tokens[:PLAIN_STEPS]
        plain_s = _seconds(lambda asked=asked, part=part: plain.replay(part, asked, timing)) / (
            PLAIN_STEPS * LAYERS
        )
        print(f"{schedule:12} {1 / fast_s:12,.0f} events/s, {plain_s / fast_s:6.0f} × plain")
    ratios = []
    for _ in range(300):
        size = int(rng.integers(4, 8))
        cpu_s, copy_s = rng.uniform(0.3, 2, 2)
        layer = plain.Layer(
            [1] * size, (rng.random(size) < 0.4).tolist(), [0.0, 0.1], [0.0, cpu_s], 0.2, copy_s
        )
        ratios.append(plain.hybrid(layer).end / plain.optimum(layer))
    print(f"hybrid over the best division: mean {np.mean(ratios):.3f}, worst {np.max(ratios):.2f}")


def _seconds(run: object) -> float:
    begin = time.process_time()
    run()  # type: ignore[operator]
    return time.process_time() - begin


if __name__ == "__main__":
    main()
