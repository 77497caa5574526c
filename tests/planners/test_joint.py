"""The joint planner: exact sums, valid answers, optimal where that can be checked."""

from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from moesim.planners import joint as joint_module
from moesim.planners.chain_search import anneal_chain, propagate
from moesim.planners.compiled_random import below, random_state, uniform
from moesim.planners.joint import joint
from moesim.planners.outcome import PlanRequest
from moesim.planners.plan import make_plan
from moesim.planners.registry import run_planner
from moesim.planners.search_cost import SAMPLED_TOKENS, SearchCost
from moesim.planners.token_search import anneal_layer, link_seconds
from moesim.planners.token_starts import busiest_link_s
from moesim.planners.transport import transport
from moesim.planners.verify import verify_placement
from tests.benchmarks.placement_instances import make_instance, price
from tests.planners.problems import make_problem, random_problem


def make_cost(problem, comm, routing=None, **fields):
    defaults = {
        "tokens": problem.loads[:, None].astype(np.int64),
        "experts_s": lambda tokens: tokens.sum(axis=-1),
        "arrival_s": 0.0,
        "node_of": np.arange(problem.devices) // (problem.devices // problem.nodes),
        "nic_s": 0.0,
        "port_s": 0.0,
        "pair_vectors": 1.0,
        "near_s": 0.0,
        "far_s": 0.0,
    }
    return SearchCost(comm=comm, routing=routing, **(defaults | fields))


def place(table, devices):
    """[L, E] device of every expert of a table without copies."""
    found = np.empty(table.shape, np.int64)
    slots = table.shape[1]
    np.put_along_axis(found, table, np.arange(slots)[None] // (slots // devices), 1)
    return found


def test_transport_against_scipy():
    rng = np.random.default_rng(0)
    for trial in range(300):
        places, size = rng.integers(1, 6, 2)
        items = rng.integers(1, places * size + 1)
        if trial % 2:
            cost = rng.integers(-3, 4, (items, places)).astype(float)
        else:
            cost = rng.normal(size=(items, places))
        found = transport(cost, np.full(places, size))
        assert (np.bincount(found, minlength=places) <= size).all()
        rows, columns = linear_sum_assignment(np.repeat(cost, size, axis=1))
        best = np.repeat(cost, size, axis=1)[rows, columns].sum()
        assert cost[np.arange(items), found].sum() == pytest.approx(best, abs=1e-9)


def test_transport_ends_where_costs_differ_by_little_more_than_rounding():
    """Cycles of moves then seemed to gain for ever, where sums were rounded."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        places, size = int(rng.integers(3, 9)), int(rng.integers(5, 40))
        noise = 10.0 ** rng.uniform(-13.5, -11)
        cost = rng.choice(rng.normal(size=3), (places * size, 1))
        cost = cost + noise * rng.normal(size=(places * size, places))
        found = transport(cost, np.full(places, size))
        assert (np.bincount(found, minlength=places) == size).all()


def test_random_numbers():
    state = random_state(7)
    draws = np.array([below(state, 10) for _ in range(20_000)])
    assert np.bincount(draws, minlength=10).min() > 1800
    shares = np.array([uniform(state) for _ in range(20_000)])
    assert 0 < shares.min() < shares.max() < 1
    assert abs(shares.mean() - 0.5) < 0.01


@pytest.mark.parametrize("seed", range(6))
def test_the_chain_search_keeps_its_books(seed):
    """The change that it reports is that of the cost computed afresh."""
    rng = np.random.default_rng(seed)
    layers, devices, nodes, room = 4, 4, 2, 3
    copies = devices * room
    flow = rng.gamma(0.3, 1.0, (layers - 1, copies, copies)).astype(np.float32)
    copy_s = rng.gamma(0.5, 1.0, (layers, 3, 2, copies)).astype(np.float32)
    speed, node_of = rng.uniform(0.5, 2, devices), np.arange(devices) // (devices // nodes)
    start = np.stack([rng.permutation(np.arange(copies) // room) for _ in range(layers)])
    problem = make_problem(np.ones((layers, copies)), devices, nodes=nodes)
    cost = make_cost(problem, "chain", near_s=0.3, far_s=1.1)

    def seconds(found):
        return joint_module._travel_s(flow, found, cost) + joint_module._slowest_s(
            copy_s, found, speed
        )

    found = start.copy()
    change = anneal_chain(
        found, np.tile(np.arange(copies), (layers, 1)), flow, copy_s, speed, node_of,
        0.3, 1.1, 3000, 0.5, 0.01, random_state(seed),
    )  # fmt: skip
    assert change < 0
    assert seconds(found) - seconds(start) == pytest.approx(change, rel=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_the_token_search_keeps_its_books(seed):
    rng = np.random.default_rng(seed)
    devices, nodes, room, tokens = 6, 3, 3, 128
    copies = devices * room
    node_of = np.arange(devices) // (devices // nodes)
    uses = rng.random((copies, tokens)) < 0.2
    copy_s = rng.gamma(0.5, 1e-3, (4, 2, copies)).astype(np.float32)
    speed = rng.uniform(0.5, 2, devices)
    start = rng.permutation(np.arange(copies) // room)

    def seconds(found):
        on_device = np.stack([uses[found == device].any(axis=0) for device in range(devices)])
        in_node = np.stack([on_device[node_of == node].any(axis=0) for node in range(nodes)])
        links = link_seconds(in_node.sum(1), on_device.sum(1), node_of, 1e-3, 2e-4)
        return links + joint_module._slowest_s(copy_s[None], found[None], speed)

    found = start.copy()
    change = anneal_layer(
        found, np.arange(copies), np.packbits(uses, axis=1).view(np.uint64), copy_s, speed,
        node_of, 1e-3, 2e-4, 4000, 1e-2, 1e-4, random_state(seed),
    )  # fmt: skip
    assert change < 0
    assert seconds(found) - seconds(start) == pytest.approx(change, rel=1e-4)


def test_link_seconds_by_hand():
    """Two nodes of two devices; a token touches nodes 0 and 1, another only device 3."""
    node_hits, device_hits = np.array([1, 2]), np.array([1, 0, 1, 1])
    node_of = np.array([0, 0, 1, 1])
    # NICs: into node 1 come its 2 hits from the one other node. Ports: 4 devices' tokens touch
    # device 0 once; the relays of node 1 pass on 2 vectors from 2 nodes each.
    assert link_seconds(node_hits, device_hits, node_of, 1.0, 0.0) == 2
    assert link_seconds(node_hits, device_hits, node_of, 0.0, 1.0) == 4


def test_planted_placements_are_found():
    for shape in ("qwen3/8", "deepseek-v3/32"):
        instance = make_instance(shape, "planted", seed=3)
        rng = np.random.default_rng(0)
        found = [
            propagate(instance.transitions, instance.devices, instance.nodes, sweeps=4, rng=rng)
            for _ in range(2)
        ]
        best = min(price(instance, device_of) for device_of in found)
        assert best <= price(instance, instance.hidden) * 1.0001


def all_partitions(experts, devices):
    room = experts // devices
    rows = {tuple(row) for row in permutations(np.repeat(np.arange(devices), room))}
    return np.array(sorted(rows))


def test_small_cases_equal_brute_force():
    rng = np.random.default_rng(1)
    options = all_partitions(4, 2)
    for _ in range(100):
        loads = rng.integers(1, 40, (3, 4)).astype(float)
        flow = rng.gamma(0.4, 10.0, (2, 4, 4))
        problem = make_problem(loads, 2, transitions=flow)
        cost = make_cost(problem, "chain", near_s=rng.uniform(0, 2), pair_vectors=30.0, far_s=9.0)
        problem = replace(problem, cost=cost)
        answer = joint(problem)
        vectors = joint_module._flow(problem, cost, np.tile(np.arange(4), (3, 1)))
        copy_s = joint_module._copy_seconds(cost, np.tile(np.arange(4), (3, 1)), 2)

        def seconds(found, vectors=vectors, copy_s=copy_s, cost=cost):
            return joint_module._travel_s(vectors, found, cost) + joint_module._slowest_s(
                copy_s, found, np.ones(2)
            )

        best = min(
            seconds(np.stack([options[i] for i in row]))
            for row in product(range(len(options)), repeat=3)
        )
        assert seconds(place(answer.physical_to_logical, 2)) <= best * 1.001


def test_answers_are_valid_and_repeatable(monkeypatch):
    monkeypatch.setattr(joint_module, "PROPOSALS_PER_COPY", 200)
    monkeypatch.setattr(joint_module, "LEAST_PROPOSALS", 1)
    rng = np.random.default_rng(2)
    for trial in range(30):
        problem = random_problem(rng, experts_max=20)
        layers, experts = problem.loads.shape
        routing = rng.integers(-1, experts, (layers, SAMPLED_TOKENS, 2))
        comm = "home-rank" if trial % 2 else "chain"
        transitions = rng.random((layers - 1, experts, experts)) if trial % 2 == 0 else None
        problem = replace(problem, transitions=transitions)
        loads = np.minimum(problem.loads, 1e6)
        problem = replace(
            problem,
            loads=loads,
            cost=make_cost(
                replace(problem, loads=loads), comm, routing if trial % 2 else None,
                nic_s=1.0, port_s=0.1, near_s=1e-3, far_s=1e-2, arrival_s=0.1,
            ),
        )  # fmt: skip
        answer = joint(problem)
        verify_placement(answer.physical_to_logical, problem)
        again = joint(problem)
        assert (answer.physical_to_logical == again.physical_to_logical).all()


@pytest.mark.parametrize("comm", ["home-rank", "chain"])
def test_the_sample_runs_faster_on_tokens_not_seen(comm):
    outcome = make_plan(PlanRequest(comm=comm))
    held_out = {name: score.holdout.step_s for name, score in outcome.scores.items()}
    assert outcome.chosen == "joint"
    assert min(held_out, key=held_out.get) == "joint"


def grouped_tokens(rng, tokens, experts, groups, per_token, top_k, friends):
    """[T, K] experts of tokens that pick groups which go together, in pairs of friends."""
    size = experts // groups
    rows = np.empty((tokens, top_k), np.int64)
    for token in rows:
        pair = (
            friends[rng.integers(len(friends))] if rng.random() < 0.9 else rng.permutation(groups)
        )
        reach = np.concatenate([np.arange(g * size, (g + 1) * size) for g in pair[:per_token]])
        token[:] = rng.choice(reach, top_k, replace=False)
    return rows


def node_hits(table, routing, devices, nodes):
    """Distinct nodes per token."""
    experts = table.shape[-1]
    node = np.empty(experts, int)
    node[table] = np.arange(experts) // (experts // nodes)
    return np.mean([len(set(node[row])) for row in routing])


@pytest.mark.parametrize("seed", range(3))
def test_groups_that_tokens_use_together_end_up_on_one_node(seed):
    rng = np.random.default_rng(seed)
    experts, groups, devices, nodes = 32, 8, 8, 4
    friends = rng.permutation(groups).reshape(4, 2)
    draw = [grouped_tokens(rng, SAMPLED_TOKENS, experts, groups, 2, 4, friends) for _ in range(2)]
    loads = np.bincount(draw[0].ravel(), minlength=experts).astype(float)
    pairs = np.zeros((experts, experts))
    for row in draw[0]:
        pairs[row[:, None], row] += 1
    problem = make_problem(
        loads[None], devices, nodes=nodes, routing_groups=groups, coactivation=pairs[None]
    )
    cost = make_cost(
        problem, "home-rank", routing=draw[0][None], nic_s=10 * loads.sum(), port_s=1e-9
    )
    table = joint(replace(problem, cost=cost)).physical_to_logical[0]
    even = run_planner("eplb", problem).physical_to_logical[0]
    # Nine in ten tokens need one node; EPLB pairs the groups by load alone. Also on new tokens.
    for routing in draw:
        found = node_hits(table, routing, devices, nodes)
        assert found < 1.2
        assert found < node_hits(even, routing, devices, nodes) - 0.1


@pytest.mark.parametrize("seed", range(4))
def test_the_busiest_link_against_counting_tokens(seed):
    rng = np.random.default_rng(seed)
    devices, nodes, tokens = 6, 3, 128
    uses = rng.random((18, tokens)) < 0.1
    device_of, node_of = rng.permutation(np.arange(18) // 3), np.arange(devices) // 2
    on_device = np.stack([uses[device_of == device].any(axis=0) for device in range(devices)])
    in_node = np.stack([on_device[node_of == node].any(axis=0) for node in range(nodes)])
    expected = link_seconds(in_node.sum(1), on_device.sum(1), node_of, 1e-3, 2e-4)
    words = np.packbits(uses, axis=1).view(np.uint64)
    assert busiest_link_s(words, device_of, node_of, 1e-3, 2e-4) == pytest.approx(expected)
    assert busiest_link_s(words[:, :0], device_of, node_of, 1e-3, 2e-4) == 0
