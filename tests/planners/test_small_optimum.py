"""The joint planner and the bounds against every placement of small chains."""

from itertools import product

import numpy as np
import pytest

from moesim.planners.registry import run_planner
from tests.benchmarks.chain_optimum import every_placement, optimum, optimum_among
from tests.benchmarks.placement import device_of, lower_bound, make_problem
from tests.benchmarks.placement_exact import random_instance
from tests.benchmarks.placement_instances import price


def test_the_optimum_by_trying_everything():
    rng = np.random.default_rng(0)
    for shape in ((4, 2, 1), (4, 2, 2), (4, 4, 2)):
        instance = random_instance(rng, 3, *shape)
        rows = every_placement(*shape[:2])
        tried = min(price(instance, np.array(found)) for found in product(rows, repeat=3))
        assert optimum(instance, rows) == pytest.approx(tried)


@pytest.mark.parametrize("shape", [(8, 2, 1), (8, 4, 2), (9, 3, 1), (12, 2, 2)])
def test_leaving_out_placements_leaves_the_optimum(shape):
    rng = np.random.default_rng(shape)
    for layers in (2, 4):
        instance, rows = random_instance(rng, layers, *shape), every_placement(*shape[:2])
        best = optimum(instance, rows)
        dealt = rows[rng.integers(0, len(rows), layers)]
        for known in (price(instance, dealt), best * 1.01, best):
            found, left = optimum_among(instance, rows, known)
            assert found == pytest.approx(best)
            assert all(count <= len(rows) for count in left)
        assert optimum_among(instance, rows, best * 0.9)[0] == best * 0.9


def test_few_placements_are_left_of_sixteen_experts():
    instance = random_instance(np.random.default_rng(3), 3, 16, 2, 1)
    known = device_of(run_planner("joint", make_problem(instance, 5.0, 0)).physical_to_logical, 2)
    best, left = optimum_among(instance, every_placement(16, 2), price(instance, known))
    assert best <= price(instance, known) <= best * 1.001
    assert max(left) < 12870


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
