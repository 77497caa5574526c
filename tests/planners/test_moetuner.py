"""MoETuner's two ILPs against enumeration, with both solvers, and the planners around them."""

import time
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from moesim.errors import InfeasibleError
from moesim.planners.assignment import bottleneck_assignment
from moesim.planners.moetuner import moetuner, moetuner_free
from moesim.planners.moetuner_chain import (
    MappingProblem,
    map_along_chain,
    memory_deviation,
    memory_pattern,
    tail_cost,
)
from moesim.planners.moetuner_clusters import (
    LayerItems,
    balanced_clusters,
    deviation,
    deviation_bound,
)
from moesim.planners.moetuner_mapping import _tail_bound, map_clusters
from moesim.planners.problem import SolveOutcome
from moesim.planners.registry import run_planner
from tests.planners.problems import (
    all_mappings,
    make_problem,
    random_loads,
    random_problem,
    set_partitions,
)


def members(split, clusters):
    return np.array(split)[:, None] == np.arange(clusters)


def random_items(rng, *, free):
    clusters = int(rng.integers(1, 5))
    size = None if free else int(rng.integers(2 if clusters < 4 else 1, 8 // clusters + 1))
    experts = int(rng.integers(max(clusters, 5), 9)) if free else clusters * size
    loads = rng.gamma(2.0, 100.0, (1, experts)) if rng.random() < 0.6 else None
    loads = random_loads(rng, 1, experts) if loads is None else loads
    load = np.sort(loads[0])[::-1].copy()
    return LayerItems(load, np.ones(experts, np.int64), clusters, size)


def best_deviation(items):
    splits = set_partitions(len(items.load), items.clusters, items.size)
    return min(deviation(items, members(split, items.clusters)) for split in splits)


def worst_start(items):
    """A feasible clustering that no one tried to balance."""
    experts = np.arange(len(items.load))
    cluster = experts // items.size if items.size else np.minimum(experts, items.clusters - 1)
    return members(cluster, items.clusters)


@pytest.mark.parametrize("free", [False, True])
def test_first_ilp_is_optimal(free):
    rng = np.random.default_rng(0)
    solved = 0
    for index in range(150):
        items = random_items(rng, free=free)
        best = best_deviation(items)
        assert deviation_bound(items) <= best * (1 + 1e-9) + 1e-9
        for solver in ("highs", "cbc") if index % 6 == 0 else ("highs",):
            answer = balanced_clusters(
                items, worst_start(items), solver=solver, time_limit_s=20, stop_gap=0.0
            )
            assert answer.objective == pytest.approx(best, rel=1e-6, abs=1e-6 * items.mean)
            assert answer.outcome in (SolveOutcome.OPTIMAL, SolveOutcome.WITHIN_GAP)
            assert answer.bound <= answer.objective
            sizes = answer.member.sum(0)
            assert (sizes == items.size).all() if items.size else (sizes >= 1).all()
            assert (answer.member.sum(1) == 1).all()
        solved += deviation(items, worst_start(items)) > best * (1 + 1e-6)
    assert solved > 50


def test_first_ilp_with_copies():
    """Against every way to choose distinct clusters for the copies of each expert."""
    rng = np.random.default_rng(1)
    clusters, size = 3, 2
    for _ in range(25):
        count = np.array([2, 2, 1, 1])
        load = np.sort(rng.gamma(1.0, 1.0, 4))[::-1].copy()
        items = LayerItems(load, count, clusters, size)
        best, start = np.inf, None
        for flat in np.ndindex(*[2] * 12):
            member = np.array(flat, bool).reshape(4, 3)
            if (member.sum(1) == count).all() and (member.sum(0) == size).all():
                best, start = min(best, deviation(items, member)), member
        answer = balanced_clusters(items, start, solver="auto", time_limit_s=20, stop_gap=0.0)
        assert answer.objective == pytest.approx(best, rel=1e-6, abs=1e-6)
        assert (answer.member.sum(1) == count).all()
        assert (answer.member.sum(0) == size).all()


def test_first_ilp_ends_as_it_says():
    rng = np.random.default_rng(2)
    items = LayerItems(np.sort(rng.gamma(1, 1, 64))[::-1].copy(), np.ones(64, np.int64), 8, 8)
    start = worst_start(items)
    cut = balanced_clusters(items, start, solver="auto", time_limit_s=0.3, stop_gap=0.0)
    assert cut.outcome is SolveOutcome.FEASIBLE
    assert cut.bound < cut.objective < deviation(items, start)
    no_time = balanced_clusters(items, start, solver="auto", time_limit_s=0.0, stop_gap=0.0)
    assert no_time.outcome is SolveOutcome.HEURISTIC
    assert no_time.objective == deviation(items, start)
    huge = LayerItems(np.ones(256) + np.arange(256), np.ones(256, np.int64), 32, 8)
    refused = balanced_clusters(
        huge, worst_start(huge), solver="auto", time_limit_s=60, stop_gap=0.0
    )
    assert refused.outcome is SolveOutcome.HEURISTIC
    even = LayerItems(np.ones(8), np.ones(8, np.int64), 4, 2)
    for load in (even.load, 0 * even.load):
        trivial = replace(even, load=load)
        answer = balanced_clusters(
            trivial, worst_start(trivial), solver="auto", time_limit_s=0.0, stop_gap=0.0
        )
        assert (answer.outcome, answer.objective) == (SolveOutcome.OPTIMAL, 0.0)


def test_bottleneck_assignment():
    rng = np.random.default_rng(3)
    for _ in range(200):
        n = int(rng.integers(1, 6))
        cost = rng.integers(0, 10, (n, n)).astype(float)
        cost[rng.random((n, n)) < 0.2] = np.inf
        worst = [max(cost[i, c] for i, c in enumerate(order)) for order in permutations(range(n))]
        if min(worst) == np.inf:
            with pytest.raises(ValueError, match="no perfect matching"):
                bottleneck_assignment(cost)
            continue
        column = bottleneck_assignment(cost)
        assert sorted(column) == list(range(n))
        assert cost[np.arange(n), column].max() == min(worst)


def random_mapping(rng, layers, devices, *, equal_sizes, equal_links):
    flow = rng.gamma(0.5, 100.0, (layers - 1, devices, devices))
    if equal_sizes:
        sizes = np.full((layers, devices), 2)
    else:
        sizes = np.stack([1 + rng.multinomial(devices, np.full(devices, 1 / devices))] * layers)
        sizes = np.stack([rng.permutation(row) for row in sizes])
    seconds = np.ones((devices, devices)) if equal_links else rng.choice([1.0, 9.0], (devices,) * 2)
    np.fill_diagonal(seconds, 0.0)
    return MappingProblem(flow, sizes, seconds)


@pytest.mark.parametrize("equal_sizes", [True, False])
@pytest.mark.parametrize("equal_links", [True, False])
def test_second_ilp_is_optimal(equal_sizes, equal_links):
    """First the least deviation from equal memory, then the shortest tails."""
    rng = np.random.default_rng(4)
    for index in range(14):
        layers, devices = [(2, 2), (2, 3), (3, 3), (2, 4)][index % 4]
        problem = random_mapping(
            rng, layers, devices, equal_sizes=equal_sizes, equal_links=equal_links
        )
        ways = [
            (round(memory_deviation(problem, device), 9), tail_cost(problem, device))
            for device in all_mappings(layers, devices)
        ]
        off, best = min(ways)
        assert _tail_bound(problem) <= min(cost for _, cost in ways) * (1 + 1e-12)
        objectives = []
        for solver in ("highs", "cbc") if index < 4 else ("highs",):
            answer = map_clusters(problem, solver=solver, time_limit_s=30, stop_gap=0.0)
            assert memory_deviation(problem, answer.device) == pytest.approx(off, abs=1e-9)
            assert answer.objective == tail_cost(problem, answer.device)
            assert answer.objective == pytest.approx(best, rel=1e-5)
            assert answer.bound <= best * (1 + 1e-6)
            assert answer.outcome in (SolveOutcome.OPTIMAL, SolveOutcome.WITHIN_GAP)
            objectives.append(answer.objective)
        assert np.ptp(objectives) <= 1e-5 * best


def test_chain_is_sound_and_better_than_identity():
    rng = np.random.default_rng(5)
    gain = []
    for devices in (4, 8, 16):
        problem = random_mapping(rng, 12, devices, equal_sizes=False, equal_links=False)
        slots = memory_pattern(problem)
        device = map_along_chain(problem, slots)
        assert (np.sort(device, 1) == np.arange(devices)).all()
        taken = np.zeros_like(slots)
        np.put_along_axis(taken, device, problem.sizes, 1)
        np.testing.assert_array_equal(taken, slots)
        assert _tail_bound(problem) <= tail_cost(problem, device)
        identity = np.tile(np.arange(devices), (12, 1))
        gain.append(tail_cost(problem, device) / tail_cost(problem, identity))
    assert max(gain) < 0.9


def cluster_flow(problem, table):
    """[L-1, G, G] assignments from device to device, in plain loops."""
    layers, devices = problem.layers, problem.devices
    shelves = table.reshape(layers, devices, -1)
    flow = np.zeros((layers - 1, devices, devices))
    for layer in range(layers - 1):
        copies = [
            np.bincount(row[row >= 0], minlength=problem.experts) for row in table[layer:][:2]
        ]
        for g, h in np.ndindex(devices, devices):
            for i in shelves[layer, g][shelves[layer, g] >= 0]:
                for j in shelves[layer + 1, h][shelves[layer + 1, h] >= 0]:
                    share = copies[0][i] * copies[1][j]
                    flow[layer, g, h] += problem.transitions[layer, i, j] / share
    return flow


@pytest.mark.parametrize("solver", ["highs", "cbc"])
def test_planners_on_random_problems(solver):
    """run_planner verifies the tables; objectives are those of the tables."""
    rng = np.random.default_rng(6)
    for index in range(50 if solver == "highs" else 12):
        problem = random_problem(rng, experts_max=8, redundancy=index % 2 == 0, speeds=False)
        devices, experts = problem.devices, problem.experts
        if problem.layers > 1 and index % 4:
            flow = rng.gamma(0.5, 1.0, (problem.layers - 1, experts, experts))
            problem = replace(problem, transitions=flow)
        links = rng.choice([1e9, 9e9], (devices, devices))
        problem = replace(
            problem, pair_bandwidth_bytes_per_s=links, time_limit_s=0.3, solver=solver
        )
        for name in ("moetuner", "moetuner-free"):
            crowded = problem.slots > experts * devices
            if crowded if name == "moetuner" else experts < devices:
                with pytest.raises(InfeasibleError, match=r"copies of an expert|no empty cluster"):
                    run_planner(name, problem)
                continue
            start_s = time.perf_counter()
            answer = run_planner(name, problem)
            assert time.perf_counter() - start_s < problem.time_limit_s + 5
            _check_answer(name, problem, answer)


def _check_answer(name, problem, answer):
    table, detail = answer.physical_to_logical, answer.detail
    count = np.stack([np.bincount(row[row >= 0], minlength=problem.experts) for row in table])
    share = np.where(table >= 0, np.take_along_axis(problem.loads / count, table, 1), 0.0)
    load = share.reshape(problem.layers, problem.devices, -1).sum(2)
    off = np.abs(load - load.mean(1, keepdims=True)).sum()
    assert detail["ilp1_objective_tokens"] == pytest.approx(off, rel=1e-6, abs=1e-6)
    assert 0 <= detail["ilp1_gap"] <= 1
    if name == "moetuner":
        assert table.shape == (problem.layers, problem.slots)
        assert (table >= 0).all()
    else:
        assert (count == 1).all()
        held = (table >= 0).reshape(problem.layers, problem.devices, -1).sum((0, 2))
        off = np.abs(held - held.mean()).sum()
        assert detail["memory_deviation_experts"] == pytest.approx(off)
        assert ("relaxed" in detail.get("note", "")) == (off > 1e-9)
    if problem.devices > 1 and problem.layers > 1 and problem.transitions is not None:
        seconds = 1 / problem.pair_bandwidth_bytes_per_s
        np.fill_diagonal(seconds, 0.0)
        tails = (cluster_flow(problem, table) * seconds).max((1, 2)).sum()
        assert detail["ilp2_objective_s_per_byte"] == pytest.approx(tails, rel=1e-9)
        assert detail["ilp2_method"]
    elif problem.devices > 1:
        assert "ILP 2 left out" in detail["note"]


def test_free_sizes_are_more_even():
    """Skewed loads: a hot expert alone beats a hot expert with company."""
    loads = [[12.0, 3, 3, 3, 3, 3, 3, 3]] * 2
    problem = make_problem(loads, 4, 8)
    equal, free = moetuner(problem), moetuner_free(problem)
    # {12,3},{3,3}×3 is off by 15 − 8.25 and three times 8.25 − 6; {12},{3,3},{3,3},{3,3,3} by less.
    assert equal.detail["ilp1_objective_tokens"] == pytest.approx(2 * 13.5)
    assert free.detail["ilp1_objective_tokens"] == pytest.approx(2 * 9.0)
    assert equal.outcome is free.outcome is SolveOutcome.OPTIMAL
    # Sizes 1, 2, 2, 3 in both layers: 4, 4, 4, 4 over both.
    assert free.detail["memory_deviation_experts"] == 0
    single = moetuner_free(make_problem(loads[:1], 4, 8))
    assert single.detail["memory_deviation_experts"] == 2
    assert "off by 2 experts" in single.detail["note"]


def test_transitions_decide_the_mapping():
    """Two clusters that hand tokens only to each other's successors end on one device."""
    loads = np.ones((2, 4))
    flow = np.zeros((1, 4, 4))
    flow[0, [0, 1, 2, 3], [3, 2, 1, 0]] = 1.0
    flow[0, [0, 1, 2, 3], [2, 3, 0, 1]] = 1.0
    problem = make_problem(loads, 2, 4, transitions=flow)
    answer = moetuner(problem)
    best = min(
        sum(flow[0, i, j] for i in first for j in range(4) if j not in second)
        for first, second in [
            (answer.physical_to_logical[0, :2], answer.physical_to_logical[1, :2])
        ]
    )
    tail = answer.detail["ilp2_objective_s_per_byte"]
    assert tail == pytest.approx(best / 1e9)
    assert answer.detail["ilp2_outcome"] == "optimal"


def test_hopeless_sizes_come_back_at_once():
    rng = np.random.default_rng(8)
    flow = rng.random((3, 256, 256))
    problem = make_problem(
        rng.gamma(1, 1, (4, 256)), 32, 288, nodes=4, transitions=flow, time_limit_s=600.0
    )
    for name in ("moetuner", "moetuner-free"):
        start_s = time.perf_counter()
        answer = run_planner(name, problem)
        assert time.perf_counter() - start_s < 10
        assert answer.outcome is SolveOutcome.HEURISTIC
        assert "too large" in answer.detail["note"]
        assert answer.detail["ilp2_method"].startswith("layer by layer")


def test_time_limit_is_kept():
    rng = np.random.default_rng(9)
    problem = make_problem(
        rng.gamma(1, 1, (4, 64)), 8, 64, transitions=rng.random((3, 64, 64)), time_limit_s=1.0
    )
    for solver in ("cbc", "highs"):
        start_s = time.perf_counter()
        answer = run_planner("moetuner", replace(problem, solver=solver))
        assert time.perf_counter() - start_s < 1.0 + 5.0
        assert answer.outcome in (SolveOutcome.FEASIBLE, SolveOutcome.HEURISTIC)


def test_infeasible():
    with pytest.raises(InfeasibleError, match="no empty cluster: 3 experts cannot fill 4 devices"):
        moetuner_free(make_problem(np.ones((1, 3)), 4, 4))
    with pytest.raises(InfeasibleError, match="copies of an expert on distinct devices"):
        moetuner(make_problem(np.ones((1, 2)), 1, 3))
