"""LPT with swaps slot by slot against plain loops, and how even it gets in DeepSeek-V3's shape."""

import numpy as np
import pytest

from moesim.planners.load_bound import finish_load_bound
from moesim.planners.problem import device_finish_load
from moesim.planners.registry import run_planner
from tests.benchmarks.balance import GENERATORS, make_loads
from tests.planners import plain_lpt_swap
from tests.planners.problems import make_problem, random_problem


@pytest.mark.parametrize("name", ["lpt", "lpt-swap"])
def test_against_plain_loops(name):
    rng = np.random.default_rng(8)
    plain = {"lpt": plain_lpt_swap.lpt, "lpt-swap": plain_lpt_swap.lpt_swap}[name]
    for _ in range(200):
        problem = random_problem(rng, experts_max=30, layers_max=2)
        ours = run_planner(name, problem).physical_to_logical
        np.testing.assert_array_equal(ours, plain(problem))


def test_against_plain_loops_in_deepseek_shape():
    problem = make_problem(make_loads("gamma", 0, 1.0, 1, 256), 32, 288, nodes=4, routing_groups=8)
    ours = run_planner("lpt-swap", problem).physical_to_logical
    np.testing.assert_array_equal(ours, plain_lpt_swap.lpt_swap(problem))


@pytest.mark.parametrize("slots", [288, 320])
@pytest.mark.parametrize("generator", GENERATORS)
def test_within_a_thousandth_of_the_bound(generator, slots):
    for exponent in (0.3, 0.7, 1.0, 1.2):
        problem = make_problem(make_loads(generator, 5, exponent, 8, 256), 32, slots)
        table = run_planner("lpt-swap", problem).physical_to_logical
        largest = device_finish_load(table, problem).max(1)
        assert (finish_load_bound(problem) >= 0.999 * largest).all()
