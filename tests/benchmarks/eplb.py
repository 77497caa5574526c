"""EPLB here against EPLB as published: every slot, and the time it takes.

    git clone https://github.com/deepseek-ai/EPLB
    python -m tests.benchmarks.eplb --reference EPLB/eplb.py [--seeds 3] [--repeats 3] [--json]

The reference file (commit d52c72d) is loaded from the path that is given and run as it is, in this
process, with the threads that torch chooses. Both get the same tables of 58 layers × 256 experts:

    zipf     the load of the r-th expert is r^-exponent, the experts shuffled in every layer
    tokens   the same as whole numbers, one million tokens per layer
    ties     the same as whole numbers, 2000 tokens per layer: most experts tie with others

The experts have 288 slots on 32 devices of 4 nodes, in 8 routing groups (hierarchical policy) and
in 1 (global policy). Before timing, each runs once. The best of the repeats counts. Goals: every
slot identical, at least 10 × as fast everywhere, below 50 ms.
"""

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np

from moesim.planners.eplb import rebalance

LAYERS, EXPERTS, SLOTS, DEVICES, NODES = 58, 256, 288, 32, 4
POLICIES = {"hierarchical": (8, NODES), "global": (1, 1)}
EXPONENTS = (0.4, 0.8, 1.2)
SPEED_UP_GOAL = 10.0
TIME_GOAL_S = 0.050


def zipf_loads(seed: int, exponent: float, tokens: float | None) -> np.ndarray:
    """[58, 256] float64; whole numbers if ``tokens`` per layer are given."""
    generator = np.random.default_rng(seed)
    popularity = np.arange(1.0, EXPERTS + 1) ** -exponent
    popularity /= popularity.sum()
    loads = np.stack([generator.permutation(popularity) for _ in range(LAYERS)])
    return loads if tokens is None else np.floor(loads * tokens)


def compare(reference: ModuleType, loads: np.ndarray, policy: str, repeats: int) -> dict:
    import torch

    groups, nodes = POLICIES[policy]
    table = torch.from_numpy(loads)

    def published() -> np.ndarray:
        return reference.rebalance_experts(table, SLOTS, groups, nodes, DEVICES)[0].numpy()

    def ours() -> np.ndarray:
        return rebalance(loads, SLOTS, groups, nodes, DEVICES)

    differing = int((published() != ours()).sum())
    published_s, ours_s = _best_s(published, repeats), _best_s(ours, repeats)
    return {
        "differing_slots": differing,
        "reference_s": published_s,
        "ours_s": ours_s,
        "speed_up": published_s / ours_s,
    }


def readme_example(reference: ModuleType) -> bool:
    """Whether the example of EPLB's README gives the same table."""
    import torch

    loads = np.array(
        [
            [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
            [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
        ]
    )
    published = reference.rebalance_experts(torch.from_numpy(loads), 16, 4, 2, 8)[0].numpy()
    return bool((published == rebalance(loads, 16, 4, 2, 8)).all())


def _best_s(function: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("published_eplb", path)
    if spec is None or spec.loader is None:
        sys.exit(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--reference", type=Path, required=True, help="the published eplb.py")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    reference = _load(options.reference)
    rows = []
    for policy in POLICIES:
        for kind, tokens in (("zipf", None), ("tokens", 1e6), ("ties", 2e3)):
            for exponent in EXPONENTS:
                for seed in range(options.seeds):
                    loads = zipf_loads(seed, exponent, tokens)
                    row = {"policy": policy, "loads": kind, "exponent": exponent, "seed": seed}
                    rows.append(row | compare(reference, loads, policy, options.repeats))
                    if not options.json:
                        _show(rows[-1])
    speed_ups = [row["speed_up"] for row in rows]
    result = {
        "schema": "moesim.benchmark-eplb/1",
        "ok": True,
        "runs": rows,
        "readme_example_identical": readme_example(reference),
        "identical": all(row["differing_slots"] == 0 for row in rows),
        "speed_up": {"min": min(speed_ups), "median": float(np.median(speed_ups))},
        "largest_s": max(row["ours_s"] for row in rows),
    }
    result["ok"] = bool(
        result["identical"]
        and result["readme_example_identical"]
        and min(speed_ups) >= SPEED_UP_GOAL
        and result["largest_s"] < TIME_GOAL_S
    )
    if options.json:
        print(json.dumps(result))
    else:
        print(
            f"identical {result['identical']}, README example "
            f"{result['readme_example_identical']}, speed-up at least {min(speed_ups):.0f} x "
            f"(median {result['speed_up']['median']:.0f} x), at most {result['largest_s']:.3f} s"
        )
    return 0 if result["ok"] else 6


def _show(row: dict) -> None:
    print(
        f"{row['policy']:12} {row['loads']:6} exponent {row['exponent']} seed {row['seed']}: "
        f"{row['differing_slots']} of {LAYERS * SLOTS} slots differ, "
        f"{row['reference_s'] * 1e3:7.1f} ms / {row['ours_s'] * 1e3:5.1f} ms "
        f"= {row['speed_up']:5.1f}"
    )


if __name__ == "__main__":
    sys.exit(main())
