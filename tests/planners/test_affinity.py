"""Planners that go by affinity: TensorRT-LLM's co-occurrence, ExFlow's and GRACE-MoE's grouping."""

from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.planners.affinity import pair_counts
from moesim.planners.affinity_groups import equal_clusters
from moesim.planners.cooccurrence import place_layer
from moesim.planners.registry import PLANNERS, run_planner
from tests.benchmarks.placement_instances import make_instance
from tests.planners.problems import make_problem, random_problem


def blocks(rng, experts, clusters, within=1.0, across=0.05):
    """Symmetric counts with hidden clusters of equal size, and the clusters."""
    hidden = rng.permutation(np.repeat(np.arange(clusters), experts // clusters))
    same = hidden[:, None] == hidden
    counts = np.where(same, within, across) * rng.uniform(0.8, 1.2, (experts, experts))
    return (counts + counts.T) / 2, hidden


def shelves(table, devices):
    return {frozenset(row) for row in table.reshape(devices, -1).tolist()}


def clusters_of(hidden):
    return {frozenset(np.flatnonzero(hidden == cluster).tolist()) for cluster in set(hidden)}


def test_cooccurrence_worked_by_hand():
    # Mean load 15, of which 0.8 (12) and 0.8 · 4 = 3 slots may be filled by co-occurrence.
    # Device 0: heaviest is 0 (6); with it most often 5 (1), then 4 (2); a fourth is over 0.8.
    # Device 1: heaviest left is 1 (5); then 3 (3); then 7 (1).  By load: 2 (4) to the lighter.
    loads = np.array([6.0, 5, 4, 3, 2, 1, 8, 1])
    loads[6] = 4.0
    pairs = np.zeros((8, 8))
    for i, j, count in ((0, 5, 9), (0, 4, 5), (1, 3, 7), (1, 7, 6)):
        pairs[i, j] = pairs[j, i] = count
    np.fill_diagonal(pairs, -1e9)
    found = place_layer(loads, np.ones(8, int), pairs, 2)
    # Loads 9 and 9 after step 2: 2 to device 0 (ties by number), then 6 to device 1.
    assert found == [[0, 5, 4, 2], [1, 3, 7, 6]]


def test_cooccurrence_stops_at_its_share_of_the_load():
    loads = np.array([10.0, 1, 1, 1])  # mean 6.5: expert 0 alone is over 0.8 of it
    pairs = np.ones((4, 4)) - 1e9 * np.eye(4)
    assert place_layer(loads, np.ones(4, int), pairs, 2) == [[0, 3], [1, 2]]


@pytest.mark.parametrize("seed", range(5))
def test_grace_finds_hidden_groups(seed):
    rng = np.random.default_rng(seed)
    pairs, hidden = blocks(rng, 24, 6)
    assert clusters_of(equal_clusters(pairs, 6)) == clusters_of(hidden)
    problem = make_problem(np.ones((1, 24)), 6, nodes=2, coactivation=pairs[None])
    table = run_planner("grace", problem).physical_to_logical
    assert shelves(table[0], 6) == clusters_of(hidden)


def test_grace_keeps_related_groups_in_a_node():
    rng = np.random.default_rng(3)
    device_pairs, device = blocks(rng, 16, 4)
    node = device // 2
    pairs = device_pairs + 0.3 * (node[:, None] == node)
    problem = make_problem(np.ones((1, 16)), 4, nodes=2, coactivation=pairs[None])
    table = run_planner("grace", problem).physical_to_logical[0]
    assert shelves(table, 4) == clusters_of(device)
    assert shelves(table, 2) == clusters_of(node)


def test_exflow_finds_a_hidden_chain():
    rng = np.random.default_rng(0)
    layers, experts, devices = 6, 24, 4
    rows = [rng.permutation(np.repeat(np.arange(devices), 6)) for _ in range(layers)]
    flow = np.stack([np.where(a[:, None] == b, 1.0, 0.1) for a, b in pairwise(rows)])
    problem = make_problem(np.ones((layers, experts)), devices, transitions=flow)
    table = run_planner("exflow", problem).physical_to_logical
    for layer, row in enumerate(rows):
        assert shelves(table[layer], devices) == clusters_of(row)
    kept = [set(row) for row in table[:, :6].tolist()]
    assert len({rows[layer][next(iter(shelf))] for layer, shelf in enumerate(kept)}) == 1


def test_exflow_stays_home_more_than_planners_that_know_no_flow():
    instance = make_instance("mixtral/4", "strong")
    layers, experts = instance.loads.shape
    problem = make_problem(instance.loads, 4, transitions=instance.transitions)

    def kept(name):
        table = run_planner(name, problem).physical_to_logical
        device = np.empty((layers, experts), int)
        np.put_along_axis(device, table, np.arange(experts)[None] // 2, 1)
        same = device[:-1, :, None] == device[1:, None, :]
        return (instance.transitions * same).sum()

    assert kept("exflow") > 1.15 * max(kept("lpt"), kept("random"), kept("contiguous"))


def test_answers_of_random_problems_are_valid():
    rng = np.random.default_rng(7)
    for _ in range(150):
        problem = random_problem(rng, experts_max=24)
        layers, experts = problem.loads.shape
        pairs = rng.gamma(0.3, 1.0, (layers, experts, experts))
        known = replace(
            problem,
            coactivation=pairs + pairs.transpose(0, 2, 1),
            transitions=rng.gamma(0.3, 1.0, (layers - 1, experts, experts)),
        )
        for name in ("cooccurrence", "exflow", "grace"):
            for asked in (problem, known):  # run_planner verifies
                first = run_planner(name, asked).physical_to_logical
                np.testing.assert_array_equal(first, run_planner(name, asked).physical_to_logical)


def test_pairs():
    problem = make_problem([[2.0, 1.0, 1.0]], 3)
    independent = pair_counts(problem, 0)
    np.testing.assert_allclose(independent, [[0, 0.5, 0.5], [0.5, 0, 0.25], [0.5, 0.25, 0]])
    counts = np.zeros((1, 3, 3))
    for i, j in combinations(range(3), 2):
        counts[0, i, j] = counts[0, j, i] = i + j
    known = replace(problem, coactivation=counts + 9 * np.eye(3))
    np.testing.assert_array_equal(pair_counts(known, 0), counts[0])
    with pytest.raises(InputError, match="coactivation"):
        replace(problem, coactivation=np.ones((1, 2, 2)))
    with pytest.raises(InputError, match="coactivation"):
        replace(problem, coactivation=-np.ones((1, 3, 3)))


@pytest.mark.parametrize("name", sorted(set(PLANNERS) - {"moetuner", "moetuner-free"}))
def test_every_planner_takes_all_that_is_known(name):
    """Planners that solve parts of a problem must cut its tables of pairs to the part too."""
    rng = np.random.default_rng(11)
    loads = rng.gamma(0.4, 100.0, (3, 16))
    loads[1] = 1.0  # layers differ in what there is to improve
    problem = make_problem(
        loads, 8, 24, nodes=2, routing_groups=4,
        coactivation=rng.random((3, 16, 16)), transitions=rng.random((2, 16, 16)),
    )  # fmt: skip
    assert run_planner(name, problem).physical_to_logical.shape == (3, 24)
