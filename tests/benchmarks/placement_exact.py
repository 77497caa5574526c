"""The joint planner and the bounds against the optimum of small chain instances.

    python -m tests.benchmarks.placement_exact --instances 500

The optimum comes from dynamic programming over every placement of every layer that can be part of
it (``chain_optimum.py``), so it is exact for the cost that ``placement.py`` prices: the slowest
device of each layer, and travel between layers. Instances have 2 to 4 layers.
"""

import argparse
import time

import numpy as np

from moesim.planners.registry import run_planner
from tests.benchmarks.chain_optimum import every_placement, optimum_among
from tests.benchmarks.placement import device_of, lower_bound, make_problem
from tests.benchmarks.placement_instances import Instance, price

SHAPES = (
    # experts, devices, nodes: at most 34,650 placements of a layer
    (4, 2, 1),
    (6, 3, 1),
    (8, 2, 1),
    (8, 4, 2),
    (9, 3, 1),
    (12, 2, 2),
    (12, 3, 1),
    (14, 2, 2),
    (16, 2, 1),
    (16, 2, 2),
)


def random_instance(rng, layers, experts, devices, nodes):
    loads = rng.gamma(rng.uniform(0.3, 3), 1.0, (layers, experts))
    flow = rng.gamma(rng.uniform(0.1, 2), 1.0, (layers - 1, experts, experts))
    flow *= loads[:-1, :, None] * loads[1:, None, :]
    return Instance(
        "small", loads / loads.sum(1, keepdims=True),
        flow / np.maximum(flow.sum((1, 2), keepdims=True), 1e-300), devices, nodes, None,
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--instances", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bound-steps", type=int, default=20)
    parser.add_argument("--planners", default="lpt-swap,joint")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    names = options.planners.split(",")
    above, gaps, start = {name: [] for name in names}, [], time.perf_counter()
    for number in range(options.instances):
        shape = SHAPES[number % len(SHAPES)]
        instance = random_instance(rng, int(rng.integers(2, 5)), *shape)
        problem = make_problem(instance, 5.0, number)
        found = {
            name: device_of(run_planner(name, problem).physical_to_logical, shape[1])
            for name in names
        }
        known = min(found.values(), key=lambda place: price(instance, place))
        best, _ = optimum_among(instance, every_placement(*shape[:2]), price(instance, known))
        for name in names:
            above[name].append(price(instance, found[name]) / best - 1)
        gaps.append(1 - lower_bound(instance, problem, options.bound_steps, known)[0] / best)
    for name in names:
        found = np.array(above[name])
        assert found.min() > -1e-9, "a placement beats the optimum"
        print(f"{name}: {np.mean(found <= 1e-3):.1%} of {len(found)} within 0.1 % of the optimum, "
              f"mean {found.mean():.3%}, worst {found.max():.2%} above")  # fmt: skip
    assert min(gaps) > -1e-6, "a bound exceeds the optimum"
    print(f"bound: mean {np.mean(gaps):.1%}, worst {max(gaps):.1%} below the optimum")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
