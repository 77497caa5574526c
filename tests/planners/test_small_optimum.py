"""The joint planner and the bounds against every placement of small chains."""

from itertools import product

import numpy as np
import pytest

from moesim.planners.registry import run_planner
from tests.benchmarks.placement import device_of, lower_bound, make_problem
from tests.benchmarks.placement_exact import every_placement, optimum, random_instance
from tests.benchmarks.placement_instances import price


def test_the_optimum_by_trying_everything():
    rng = np.random.default_rng(0)
    for shape in ((4, 2, 1), (4, 2, 2), (4, 4, 2)):
        instance = random_instance(rng, 3, *shape)
        rows = every_placement(*shape[:2])
        tried = min(price(instance, np.array(found)) for found in product(rows, repeat=3))
        assert optimum(instance, rows) == pytest.approx(tried)


@pytest.mark.parametrize("seed", range(12))
def test_joint_is_optimal_and_the_bound_is_below(seed):
    rng = np.random.default_rng(seed)
    shape = ((6, 3, 1), (8, 2, 1), (6, 2, 2), (8, 4, 2))[seed % 4]
    instance = random_instance(rng, 2 + seed % 3, *shape)
    best = optimum(instance, every_placement(*shape[:2]))
    problem = make_problem(instance, 5.0, seed)
    found = device_of(run_planner("joint", problem).physical_to_logical, shape[1])
    assert best * (1 - 1e-9) <= price(instance, found) <= best * 1.001
    bound, _ = lower_bound(instance, problem, 10, found)
    assert 0.5 * best < bound <= best * (1 + 1e-9)
