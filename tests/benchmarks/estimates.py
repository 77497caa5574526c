"""How many expert layers per second the fitted cost model estimates.

    python -m tests.benchmarks.estimates [--rows 20000] [--repeats 5]

Layers of random shapes and histograms on the shipped coefficients of one kernel, one thread. The
exit status is 6 below the goal of 100 000 layers a second.
"""

import argparse
import sys
import time

import numpy as np

from moesim.operators.moe import TILES, MoeDevice, MoeShapes, moe_time_s, padded_tiles
from moesim.operators.moe_fits import shipped_moe_fits

GOAL_PER_S = 100_000


def layers(rows, experts=32, seed=0):
    """Random expert layers of one device: ``[rows, experts]`` Poisson loads."""
    source = np.random.default_rng(seed)
    mean = 2.0 ** source.uniform(-4, 10, (rows, 1))
    return source.poisson(mean, (rows, experts))


def shapes_of(tokens, seed=0):
    """What the physics needs of the loads; counting tiles is part of an estimate."""
    rows = len(tokens)
    source = np.random.default_rng(seed)
    copies = tokens.sum(axis=1).astype(float)
    return MoeShapes(
        hidden=source.choice([2048.0, 4096.0, 7168.0], rows),
        width=source.choice([768.0, 1536.0, 2048.0], rows),
        input_matrices=np.full(rows, 2.0),
        weight_bytes=np.full(rows, 1.0),
        activation_bytes=np.full(rows, 1.0),
        local_experts=np.full(rows, float(tokens.shape[1])),
        group_copies=copies * 8,
        active=np.count_nonzero(tokens, axis=1).astype(float),
        copies=copies,
        squared_copies=(tokens.astype(float) ** 2).sum(axis=1),
        tiles=padded_tiles(tokens),
        tile_allowed=np.ones((len(TILES), rows), bool),
        variant=np.zeros(rows, np.int8),
    )


def rate_per_s(rows, repeats):
    """Best of some repeats, histograms to seconds."""
    tokens = layers(rows)
    device = MoeDevice(*(np.array(x) for x in (4.8e12, 1979e12, 132.0, 50e6)))
    of = shipped_moe_fits().find("h200_sxm", "trtllm", "fp8_block").coefficients
    best = np.inf
    for _ in range(repeats):
        start = time.perf_counter()
        moe_time_s(shapes_of(tokens), device, of)
        best = min(best, time.perf_counter() - start)
    return rows / best


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rate = rate_per_s(options.rows, options.repeats)
    print(f"{rate:,.0f} layer estimates per second (goal {GOAL_PER_S:,})")
    return 0 if rate >= GOAL_PER_S else 6


if __name__ == "__main__":
    sys.exit(main())
