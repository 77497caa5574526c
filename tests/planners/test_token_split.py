"""Division of tokens among copies against a linear programme of scipy's."""

import numpy as np
import pytest
from scipy.optimize import linprog

from moesim.placement import Placement
from moesim.planners.registry import run_planner
from moesim.planners.token_split import even_split, ideal_split, split_by_weights
from tests.planners.problems import make_problem, random_problem


def least_finish(loads, row, speeds):
    """z of LPLB's linear programme, one layer."""
    slots, devices = len(row), len(speeds)
    device_of = np.arange(slots) // (slots // devices)
    held = np.zeros((devices, slots + 1))
    held[device_of, np.arange(slots)] = 1
    held[:, -1] = -speeds
    whole = np.zeros((len(loads), slots + 1))
    whole[row, np.arange(slots)] = 1
    objective = np.zeros(slots + 1)
    objective[-1] = 1
    return linprog(objective, held, np.zeros(devices), whole, loads).fun


def random_case(rng):
    problem = random_problem(rng, experts_max=24)
    name = ["lpt", "eplb-global", "contiguous"][rng.integers(0, 3)]
    table = run_planner(name, problem).physical_to_logical
    placement = Placement(table, problem.devices, problem.experts, tuple(range(problem.layers)))
    batches = rng.poisson(
        problem.loads[None] / problem.loads.max().clip(1) * 50,
        (2, *table.shape[:1], problem.experts),
    )
    return problem, placement, batches.astype(float)


def device_finish(slot_tokens, placement, speeds):
    per_device = slot_tokens.reshape(*slot_tokens.shape[:2], placement.devices, -1).sum(3)
    return (per_device / speeds).max(2)


def sums_of_experts(slot_tokens, placement):
    found = np.zeros((len(slot_tokens), placement.layers, placement.experts))
    for layer, row in enumerate(placement.physical_to_logical):
        for slot, expert in enumerate(row):
            found[:, layer, expert] += slot_tokens[:, layer, slot]
    return found


def test_ideal_division_is_the_optimum_of_the_linear_programme():
    rng = np.random.default_rng(0)
    gained = 0
    for _ in range(150):
        problem, placement, batches = random_case(rng)
        speeds = problem.speed_factors
        split = ideal_split(batches, placement, speeds)
        assert (split.slot_tokens >= 0).all()
        np.testing.assert_allclose(
            sums_of_experts(split.slot_tokens, placement), batches, atol=1e-9
        )
        finish = device_finish(split.slot_tokens, placement, speeds)
        np.testing.assert_allclose(split.finish, finish, rtol=1e-9)
        even = device_finish(even_split(batches, placement), placement, speeds)
        assert (finish <= even * (1 + 1e-9)).all()
        gained += (finish < even * (1 - 1e-6)).any()
        for batch, layer in np.ndindex(finish.shape):
            best = least_finish(batches[batch, layer], placement.physical_to_logical[layer], speeds)
            assert split.bound[batch, layer] <= best * (1 + 1e-9) + 1e-9
            assert finish[batch, layer] <= best * (1 + 2e-6) + 1e-9
    assert gained > 50


def test_every_division_is_proven_in_deepseek_shape():
    rng = np.random.default_rng(1)
    popularity = np.arange(1.0, 257) ** -0.8
    problem = make_problem([rng.permutation(popularity)], 32, 288)
    placement = Placement(run_planner("lpt-swap", problem).physical_to_logical, 32, 256, (0,))
    batches = rng.multinomial(32 * 128 * 8, problem.loads[0] / problem.loads.sum(), (6, 1))
    split = ideal_split(batches, placement, np.ones(32))
    assert (split.finish <= split.bound * (1 + 1e-6)).all()
    even = device_finish(even_split(batches, placement), placement, np.ones(32))
    # Now and then the last device holds no expert with copies.
    assert (even >= split.finish).all()
    assert (even > split.finish).sum() >= 4


def test_load_follows_speed():
    """One expert everywhere: each device takes its share of the speed."""
    placement = Placement(np.array([[0, 0, 0]]), 3, 1, (0,))
    speeds = np.array([1.0, 2.0, 3.0])
    split = ideal_split(np.array([[[60.0]]]), placement, speeds)
    assert split.slot_tokens[0, 0] == pytest.approx([10, 20, 30])
    assert split.finish[0, 0] == split.bound[0, 0] == pytest.approx(10)


def test_fixed_weights():
    """Weights from mean loads are the ideal for batches in proportion to these, and sum up."""
    rng = np.random.default_rng(2)
    for _ in range(30):
        problem, placement, batches = random_case(rng)
        mean = ideal_split(problem.loads[None], placement, problem.speed_factors)
        weights = mean.slot_tokens[0]
        twice = split_by_weights(problem.loads[None] * 2, placement, weights)
        np.testing.assert_allclose(
            device_finish(twice, placement, problem.speed_factors), 2 * mean.finish, rtol=1e-9
        )
        split = split_by_weights(batches, placement, weights)
        np.testing.assert_allclose(sums_of_experts(split, placement), batches, atol=1e-9)


def test_empty_slots_stay_empty():
    placement = Placement(np.array([[0, 1, 0, -1]]), 2, 2, (0,))
    loads = np.array([[[10.0, 4.0]]])
    assert even_split(loads, placement)[0, 0].tolist() == [5, 4, 5, 0]
    split = ideal_split(loads, placement, np.ones(2))
    assert split.slot_tokens[0, 0] == pytest.approx([3, 4, 7, 0])
