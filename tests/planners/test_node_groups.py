"""Groups on nodes against every pairing, every placement and hierarchical EPLB."""

from itertools import permutations

import numpy as np
import pytest

from moesim.errors import InfeasibleError
from moesim.planners import node_groups
from moesim.planners.load_bound import finish_load_bound
from moesim.planners.node_groups import grouped_load_bound, pair_groups
from moesim.planners.problem import device_finish_load
from moesim.planners.registry import run_planner
from tests.planners.problems import make_problem, placements, random_loads, random_problem

NAME = "lpt-swap-hierarchical"


def node_problem(problem, node, groups):
    """One node with the experts of these groups."""
    size = problem.experts // problem.routing_groups
    devices = problem.devices // problem.nodes
    experts = [group * size + member for group in groups for member in range(size)]
    return make_problem(
        problem.loads[:, experts],
        devices,
        problem.slots // problem.nodes,
        speed_factors=problem.speed_factors[node * devices : (node + 1) * devices],
    )


def all_pairings(groups, nodes):
    share = groups // nodes
    found = set()
    for order in permutations(range(groups)):
        found.add(
            tuple(tuple(sorted(order[node * share : (node + 1) * share])) for node in range(nodes))
        )
    return sorted(found)


def best_grouped_finish(problem):
    """The least finish over all pairings and all placements inside nodes (one layer, tiny)."""
    best = np.inf
    for pairing in all_pairings(problem.routing_groups, problem.nodes):
        worst = 0.0
        for node, groups in enumerate(pairing):
            inside = node_problem(problem, node, groups)
            speeds = np.sort(inside.speed_factors)[::-1]
            least = min(
                max(
                    np.sort([sum(inside.loads[0][e] / count[e] for e in s) for s in shelves])[::-1]
                    / speeds
                )
                for count, shelves in placements(inside)
            )
            worst = max(worst, least)
        best = min(best, worst)
    return best


def tiny_problem(rng):
    nodes, per_node, groups, size, room = [
        (2, 1, 4, 1, 3),
        (2, 2, 2, 3, 2),
        (2, 2, 4, 1, 2),
        (3, 1, 3, 2, 3),
        (2, 2, 2, 2, 2),
    ][rng.integers(0, 5)]
    devices = nodes * per_node
    return make_problem(
        random_loads(rng, 1, groups * size),
        devices,
        devices * room,
        nodes=nodes,
        routing_groups=groups,
        speed_factors=rng.choice([0.5, 1.0, 2.0], devices)
        if rng.random() < 0.5
        else np.ones(devices),
    )


def test_bound_is_below_the_optimum_and_the_planner_often_reaches_it():
    rng = np.random.default_rng(0)
    met = close = 0
    for _ in range(120):
        problem = tiny_problem(rng)
        bound, optimum = grouped_load_bound(problem)[0], best_grouped_finish(problem)
        assert finish_load_bound(problem)[0] <= bound <= optimum * (1 + 1e-12)
        met += bound >= optimum * (1 - 1e-9)
        table = run_planner(NAME, problem).physical_to_logical
        found = device_finish_load(table, problem).max()
        assert found >= optimum * (1 - 1e-9)
        close += found <= optimum * 1.05 + 1e-12
    assert met > 80
    assert close > 100


def test_pairing_is_the_best_of_all():
    rng = np.random.default_rng(1)
    for nodes, groups, size in ((4, 8, 3), (3, 6, 2), (2, 6, 2)):
        problem = make_problem(
            rng.gamma(0.5, 1.0, (3, groups * size)),
            nodes * 2,
            nodes * 2 * 4,
            nodes=nodes,
            routing_groups=groups,
            speed_factors=rng.choice([1.0, 0.7], nodes * 2),
        )
        best = np.full(3, np.inf)
        for pairing in all_pairings(groups, nodes):
            bounds = [
                finish_load_bound(node_problem(problem, *pair)) for pair in enumerate(pairing)
            ]
            best = np.minimum(best, np.max(bounds, axis=0))
        chosen = pair_groups(problem)
        for layer in range(3):
            assert sorted(chosen[layer].ravel()) == list(range(groups))
            reached = max(
                finish_load_bound(node_problem(problem, *pair))[layer]
                for pair in enumerate(chosen[layer])
            )
            assert reached == best[layer]
        np.testing.assert_array_equal(grouped_load_bound(problem), best)


def test_groups_stay_whole_and_no_layer_is_less_even_than_eplb():
    rng = np.random.default_rng(2)
    better = 0
    for _ in range(150):
        problem = random_problem(rng)
        table = run_planner(NAME, problem).physical_to_logical
        size = problem.experts // problem.routing_groups
        for row in table.reshape(problem.layers, problem.nodes, -1):
            groups = [set(node // size) for node in row]
            assert {len(held) for held in groups} == {problem.routing_groups // problem.nodes}
            assert len(set.union(*groups)) == problem.routing_groups
        ours, eplb = (
            device_finish_load(run_planner(name, problem).physical_to_logical, problem).max(1)
            for name in (NAME, "eplb-hierarchical")
        )
        assert (ours <= eplb * (1 + 1e-9)).all()
        assert (ours >= grouped_load_bound(problem) * (1 - 1e-9)).all()
        better += (ours < eplb * (1 - 1e-6)).any()
    assert better > 50


def test_deepseek_shape_reaches_the_best_pairing():
    rng = np.random.default_rng(3)
    popularity = np.arange(1.0, 257) ** -1.0
    loads = np.stack([rng.permutation(popularity) for _ in range(12)])
    problem = make_problem(loads, 32, 288, nodes=4, routing_groups=8)
    bound = grouped_load_bound(problem)
    ours, eplb = (
        device_finish_load(run_planner(name, problem).physical_to_logical, problem).max(1)
        for name in (NAME, "eplb-hierarchical")
    )
    assert (ours <= bound * 1.002).all()
    assert eplb.mean() > ours.mean() * 1.03


def test_many_groups_are_packed_by_load(monkeypatch):
    rng = np.random.default_rng(4)
    problem = make_problem(rng.gamma(0.5, 1.0, (2, 32)), 8, 40, nodes=4, routing_groups=16)
    exact = grouped_load_bound(problem)  # too many steps: the bound without groups
    np.testing.assert_array_equal(exact, finish_load_bound(problem))
    chosen = pair_groups(problem)
    assert np.array_equal(np.sort(chosen.reshape(2, -1), axis=1), [list(range(16))] * 2)
    small = make_problem(rng.gamma(0.5, 1.0, (2, 16)), 4, 20, nodes=2, routing_groups=4)
    best = device_finish_load(run_planner(NAME, small).physical_to_logical, small).max(1)
    monkeypatch.setattr(node_groups, "EXACT_STEPS", 0)
    packed = device_finish_load(run_planner(NAME, small).physical_to_logical, small).max(1)
    assert (packed <= best * 1.2).all()


def test_torn_groups_are_refused():
    torn = make_problem(np.ones((1, 16)), 4, 16, nodes=4, routing_groups=2)
    for call in (grouped_load_bound, pair_groups, lambda p: run_planner(NAME, p)):
        with pytest.raises(InfeasibleError, match=r"16 experts in 2 groups .* 4 nodes"):
            call(torn)
