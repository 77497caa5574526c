"""Replication, the load bound and LPT with swaps against every placement there is."""

import numpy as np
import pytest

from moesim.planners.load_bound import finish_load_bound
from moesim.planners.registry import run_planner
from moesim.planners.replicate import replicate
from moesim.planners.verify import largest_finish_load
from tests.planners.problems import make_problem, placements, random_loads, set_partitions


def best_finish(problem):
    """The least possible load over speed of the last device, over all copies and placements."""
    loads, speeds = problem.loads[0], problem.speed_factors
    best = np.inf
    for count, shelves in placements(problem):
        totals = [sum(loads[expert] / count[expert] for expert in shelf) for shelf in shelves]
        # _distributions fills equal devices in one order only; speeds tell devices apart.
        best = min(best, max(sorted(totals)[::-1] / np.sort(speeds)[::-1]))
    return best


def tiny_problem(rng):
    devices, room = [(1, 4), (2, 2), (2, 3), (2, 4), (3, 2), (4, 2)][rng.integers(0, 6)]
    slots = devices * room
    experts = int(rng.integers(max(1, slots - 3), slots + 1))
    speeds = rng.choice([0.5, 1.0, 1.5], devices) if rng.random() < 0.5 else np.ones(devices)
    return make_problem(random_loads(rng, 1, experts), devices, slots, speed_factors=speeds)


def test_bound_is_below_the_optimum_and_often_meets_it():
    rng = np.random.default_rng(0)
    met = close = 0
    for _ in range(250):
        problem = tiny_problem(rng)
        bound, optimum = finish_load_bound(problem)[0], best_finish(problem)
        assert bound <= optimum * (1 + 1e-12), problem
        met += bound >= optimum * (1 - 1e-9)
        found = largest_finish_load(run_planner("lpt-swap", problem).physical_to_logical, problem)
        assert found[0] >= optimum * (1 - 1e-9)
        close += found[0] <= optimum * 1.05 + 1e-12
    assert met > 125
    assert close > 190


def test_bound_with_free_sizes():
    rng = np.random.default_rng(1)
    for _ in range(200):
        devices = int(rng.integers(1, 5))
        experts = int(rng.integers(devices, 8))
        problem = make_problem(random_loads(rng, 1, experts), devices)
        best = min(
            np.bincount(split, problem.loads[0]).max() for split in set_partitions(experts, devices)
        )
        assert finish_load_bound(problem, free_sizes=True)[0] <= best * (1 + 1e-12)


@pytest.mark.parametrize(
    ("loads", "devices", "slots", "expected"),
    [
        ([4, 4, 4, 4], 2, 4, 8.0),  # the mean
        ([9, 1, 2, 3], 2, 4, 10.0),  # the hottest and the lightest
        ([9, 1, 2, 3], 2, 6, 7.5),  # two spare slots: the mean again
        ([12, 0, 0, 0, 0, 0], 3, 6, 12.0),
        ([12, 0, 0, 0, 0, 0], 3, 9, 4.0),  # the hottest in three copies
        ([12, 8, 8, 1], 2, 4, 14.5),
    ],
)
def test_bound_by_hand(loads, devices, slots, expected):
    assert finish_load_bound(make_problem([loads], devices, slots))[0] == pytest.approx(expected)


def test_bound_by_hand_with_speeds():
    # The slow device needs two experts, at least 1 + 2 at half the speed.
    problem = make_problem([[1, 2, 3, 3]], 2, speed_factors=np.array([10.0, 0.1]))
    assert finish_load_bound(problem)[0] == pytest.approx(30.0)


def test_replication_minimises_the_hottest_copy():
    rng = np.random.default_rng(2)

    def counts(left, spare):
        if left == 1:
            yield (1 + spare,)
            return
        for extra in range(spare + 1):
            for rest in counts(left - 1, spare - extra):
                yield (1 + extra, *rest)

    for _ in range(200):
        experts, spare = int(rng.integers(1, 6)), int(rng.integers(0, 6))
        loads = random_loads(rng, 1, experts)
        slot_expert, count = replicate(loads, experts + spare)
        best = min((loads[0] / np.array(option)).max() for option in counts(experts, spare))
        assert (loads[0] / count[0]).max() == pytest.approx(best)
        assert np.array_equal(np.bincount(slot_expert[0]), count[0])


def test_spare_slots_for_the_coldest():
    slot_expert, count = replicate(np.array([[9.0, 1.0, 0.5, 2.0]]), 7, to_coldest=2)
    assert slot_expert.tolist() == [[0, 1, 2, 3, 0, 2, 1]]
    assert count.tolist() == [[2, 2, 2, 1]]


def test_spare_slots_are_used_better_than_by_eplb():
    """Very skewed loads: EPLB splits so many experts that their copies do not pack."""
    rng = np.random.default_rng(4)
    popularity = np.arange(1.0, 257) ** -1.2
    loads = np.stack([rng.permutation(popularity) for _ in range(10)])
    loads *= rng.gamma(10, 0.1, loads.shape)
    for slots, devices in ((288, 32), (320, 64)):
        problem = make_problem(loads, devices, slots)
        bound = finish_load_bound(problem)
        ours, eplb = (
            np.array(largest_finish_load(run_planner(name, problem).physical_to_logical, problem))
            for name in ("lpt-swap", "eplb-global")
        )
        assert (ours <= bound * 1.002).all()
        assert eplb.mean() > bound.mean() * 1.015


def test_replication_spreads_at_most_one_copy_per_device():
    loads = np.array([[100.0, 1.0, 1.0]])
    _, count = replicate(loads, 7, largest_count=3)
    assert count.tolist() == [[3, 2, 2]]
    _, count = replicate(loads, 10, largest_count=3)  # 9 slots would do: no way to keep to it
    assert count.tolist() == [[8, 1, 1]]
    _, count = replicate(loads, 3, largest_count=1)
    assert count.tolist() == [[1, 1, 1]]


def test_swaps_close_the_gap():
    """58 layers of DeepSeek-V3's shape with the exponents that traces show."""
    rng = np.random.default_rng(3)
    popularity = np.arange(1.0, 257) ** -0.3
    loads = np.stack([rng.permutation(popularity) for _ in range(58)])
    loads *= rng.gamma(10, 0.1, loads.shape)
    for slots in (256, 288):
        problem = make_problem(loads, 32, slots)
        bound = finish_load_bound(problem)
        ratio = {
            name: np.array(
                largest_finish_load(run_planner(name, problem).physical_to_logical, problem)
            )
            / bound
            for name in ("lpt", "lpt-swap", "eplb-global")
        }
        assert ratio["lpt-swap"].mean() < 1.0005
        assert ratio["lpt-swap"].max() < 1.01
        assert (ratio["lpt-swap"] <= ratio["lpt"]).all()
        assert ratio["lpt"].mean() > 1.005
