"""Free numbers of experts per device and layer, against every partition there is."""

import numpy as np
import pytest

from moesim.errors import InfeasibleError, InputError
from moesim.planners.free_slots import memory_slots
from moesim.planners.problem import device_finish_load
from moesim.planners.registry import run_planner
from tests.planners.problems import make_problem, random_loads, random_problem, set_partitions

NAME = "lpt-swap-free"


def held(table, problem):
    """[G] experts on every device over all layers."""
    return (table.reshape(problem.layers, problem.devices, -1) >= 0).sum((0, 2))


def finish_of(name, problem):
    return device_finish_load(run_planner(name, problem).physical_to_logical, problem).max(1)


def test_random_problems_keep_to_memory():
    rng = np.random.default_rng(0)
    better = 0
    for _ in range(300):
        loose = random_problem(rng, experts_max=20, layers_max=10)
        factors = rng.uniform(0.7, 1.4, loose.devices) if rng.random() < 0.5 else None
        problem = make_problem(
            loose.loads,
            loose.devices,
            loose.slots,
            speed_factors=loose.speed_factors,
            memory_factors=factors,
        )
        try:
            table = run_planner(NAME, problem).physical_to_logical
        except InfeasibleError:
            assert factors is not None
            continue
        assert (held(table, problem) <= memory_slots(problem)).all()
        if factors is None and problem.slots <= problem.experts * problem.devices:
            apart = make_problem(
                problem.loads,
                problem.devices,
                problem.slots,
                speed_factors=problem.speed_factors,
                distinct_copies=True,
            )
            free = device_finish_load(table, problem).max(1).sum()
            equal = finish_of("lpt-swap", apart).sum()
            assert free <= equal * (1 + 1e-9)
            better += free < equal * (1 - 1e-6)
    assert better > 5


def test_close_to_the_best_partition_of_every_layer():
    """Memory seldom binds with this many layers, so the best partitions can be reached."""
    rng = np.random.default_rng(1)
    partitions = [np.array(split) for split in set_partitions(8, 4)]
    for exponent, gain in ((0.4, 1.04), (0.7, 1.06)):
        popularity = np.arange(1.0, 9) ** -exponent
        loads = np.stack([rng.permutation(popularity) for _ in range(32)])
        loads *= rng.gamma(10, 0.1, loads.shape)
        problem = make_problem(loads, 4)
        best = [min(np.bincount(one, row).max() for one in partitions) for row in loads]
        free = finish_of(NAME, problem)
        assert free.sum() <= np.sum(best) * 1.005
        assert finish_of("lpt-swap", problem).sum() >= free.sum() * gain
        table = run_planner(NAME, problem).physical_to_logical
        assert held(table, problem).tolist() == [64] * 4


def test_best_of_all_where_memory_binds():
    """Two layers, three devices: every pair of partitions that keeps to the memory."""
    rng = np.random.default_rng(2)
    exact = 0
    for _ in range(60):
        problem = make_problem(random_loads(rng, 2, 6), 3)
        budget = memory_slots(problem)
        best = np.inf
        splits = np.array([split for split in set_partitions(6, 3)])
        names = np.array([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])
        for first in splits:
            one = np.bincount(first, minlength=3)
            for second in names[:, splits].reshape(-1, 6):
                if (one + np.bincount(second, minlength=3) <= budget).all():
                    sums = (
                        np.bincount(first, problem.loads[0]).max()
                        + np.bincount(second, problem.loads[1]).max()
                    )
                    best = min(best, sums)
        found = finish_of(NAME, problem).sum()
        assert found >= best * (1 - 1e-9)
        assert found <= best * 1.15 + 1e-9
        exact += found <= best * (1 + 1e-9)
    assert exact > 40


def test_load_follows_speed_within_memory():
    rng = np.random.default_rng(3)
    loads = rng.gamma(2.0, 1.0, (12, 48))
    speeds = np.array([2.0, 2.0, 1.0, 1.0, 1.0, 1.0])
    fast_and_large = make_problem(loads, 6, speed_factors=speeds, memory_factors=speeds)
    fast_and_small = make_problem(loads, 6, speed_factors=speeds, memory_factors=1 / speeds)
    ideal = loads.sum() / speeds.sum()
    assert finish_of(NAME, fast_and_large).sum() <= ideal * 1.02
    # Little memory on fast devices: their ten slots per layer are for the hottest experts, and
    # the others are left with no less than the rest.
    table = run_planner(NAME, fast_and_small).physical_to_logical
    on_fast = memory_slots(fast_and_small)[:2].sum() / len(loads)
    rest = np.sort(loads, axis=1)[:, : 48 - int(np.ceil(on_fast))].sum() / speeds[2:].sum()
    assert held(table, fast_and_small).tolist() == memory_slots(fast_and_small).tolist()
    assert rest > ideal
    assert device_finish_load(table, fast_and_small).max(1).sum() <= rest * 1.12


def test_shares_of_memory():
    problem = make_problem(np.ones((2, 9)), 3, memory_factors=np.array([1.0, 1.0, 2.0]))
    assert memory_slots(problem).tolist() == [5, 4, 9]
    with pytest.raises(InfeasibleError, match="device 1 has memory for 1 experts"):
        run_planner(NAME, make_problem(np.ones((2, 4)), 2, memory_factors=np.array([9.0, 1.0])))
    with pytest.raises(InputError, match="memory_factors"):
        make_problem(np.ones((2, 4)), 2, memory_factors=np.array([1.0, 0.0]))
