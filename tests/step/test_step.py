import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.bound import step_lower_bound
from moesim.cluster import load_cluster
from moesim.cost import RooflineCost
from moesim.errors import UsageError
from moesim.hardware import load_device
from moesim.model import load_model
from moesim.placement import Placement
from moesim.step import StepEvaluator
from moesim.workload import sample_routing
from tests.step.problems import random_batches, random_placement

MODEL = "small-moe-30b-dims"


def evaluator(batches, cluster="2x2xh100_sxm", comm="home-rank", phase="prefill"):
    return StepEvaluator(batches, load_model(MODEL), load_cluster(cluster), comm, phase)


def test_roofline_of_one_expert_by_hand():
    model, device = load_model(MODEL), load_device("h100_sxm")
    cost = RooflineCost.of(model, device)
    hidden, width = 2048, 768
    weights = 3 * hidden * width * 2
    one = cost.time(np.array([[1]]))
    moved = weights + hidden * 2 + 2 * width * 2 + hidden * 2
    assert one.memory_s[0] == pytest.approx(moved / device.memory_bytes_per_s)
    assert one.compute_s[0] == pytest.approx(2 * 3 * hidden * width / 989.4e12)
    assert one.total_s[0] == one.memory_s[0]
    # Far above the ridge point arithmetic takes over, and an idle expert's weights are not read.
    many = cost.time(np.array([[100_000, 0]]))
    assert many.total_s[0] == many.compute_s[0]
    assert cost.time(np.array([[0, 0]])).total_s[0] == 0


@settings(deadline=None, derandomize=True, max_examples=50)
@given(tokens=st.lists(st.integers(0, 5000), min_size=2, max_size=6), more=st.integers(1, 500))
def test_roofline_grows_with_tokens_and_with_active_experts(tokens, more):
    cost = RooflineCost.of(load_model(MODEL), load_device("h100_sxm"))
    base = cost.time(np.array(tokens)).total_s
    grown = cost.time(np.array([tokens[0] + more, *tokens[1:]])).total_s
    assert grown > base
    # The same tokens on fewer experts never take longer.
    merged = cost.time(np.array([sum(tokens), *[0] * (len(tokens) - 1)])).total_s
    assert merged <= base


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    comm=st.sampled_from(["home-rank", "chain"]),
    phase=st.sampled_from(["prefill", "decode"]),
    redundant=st.sampled_from([0, 4]),
)
def test_cost_adds_up_and_stays_within_its_bounds(seed, comm, phase, redundant):
    rng = np.random.default_rng(seed)
    priced = evaluator(random_batches(rng), comm=comm, phase=phase)
    cost = priced.evaluate(random_placement(rng, redundant=redundant))
    parts = cost.layer_compute_s + cost.layer_dispatch_s + cost.layer_combine_s
    assert cost.step_s == pytest.approx(parts.sum())
    assert 0 < cost.balance <= 1
    assert 0 <= cost.internode_fraction <= cost.remote_fraction <= 1
    assert 0 <= cost.internode_bytes <= cost.traffic_bytes.sum() + 1e-9
    assert cost.device_tokens.sum() == pytest.approx(12 * 2 * 2)
    assert not np.diag(cost.traffic_bytes).any()
    bound = step_lower_bound(priced, 8 + redundant)
    assert 0 < bound <= cost.step_s * (1 + 1e-12)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    comm=st.sampled_from(["home-rank", "chain"]),
    phase=st.sampled_from(["prefill", "decode"]),
    cluster=st.sampled_from(["2xh100_sxm", "2x1xh100_sxm"]),
)
def test_no_placement_beats_the_lower_bound(seed, comm, phase, cluster):
    rng = np.random.default_rng(seed)
    batches = random_batches(rng, devices=2, per_device=5, experts=4, top_k=2)
    priced = evaluator(batches, cluster, comm, phase)
    halves = [(a, b) for a, b in itertools.combinations(range(4), 2)]
    rows = [[*half, *sorted(set(range(4)) - set(half))] for half in halves]
    best = min(
        priced.evaluate(Placement(np.array(pair), 2, 4, (0, 1))).step_s
        for pair in itertools.product(rows, repeat=2)
    )
    assert step_lower_bound(priced, 4) <= best * (1 + 1e-12)


def test_bound_is_met_where_nothing_can_be_gained():
    # One device: no communication, no imbalance.
    batches = random_batches(np.random.default_rng(0), devices=1)
    priced = evaluator(batches, "1xh100_sxm")
    placement = Placement(np.tile(np.arange(8), (2, 1)), 1, 8, (0, 1))
    assert priced.evaluate(placement).step_s == pytest.approx(step_lower_bound(priced, 8))


def test_renaming_experts_changes_nothing():
    rng = np.random.default_rng(5)
    batches, placement = random_batches(rng), random_placement(rng)
    new_id = np.stack([rng.permutation(8) for _ in range(2)])
    renamed = Placement(np.take_along_axis(new_id, placement.physical_to_logical, 1), 4, 8, (0, 1))
    before = evaluator(batches).evaluate(placement)
    after = evaluator(batches.permute_experts(new_id)).evaluate(renamed)
    assert after.step_s == before.step_s
    np.testing.assert_array_equal(after.traffic_bytes, before.traffic_bytes)


def test_even_loads_on_an_even_cluster_are_balanced():
    loads = np.full((2, 8), 100.0)
    batches = sample_routing(loads, top_k=2, devices=4, tokens_per_device=5000, seed=0)
    placement = Placement(np.tile(np.arange(8), (2, 1)), 4, 8, (0, 1))
    cost = evaluator(batches).evaluate(placement)
    assert cost.balance > 0.97
    assert cost.remote_fraction == pytest.approx(3 / 4, abs=0.01)
    assert cost.internode_fraction == pytest.approx(1 / 2, abs=0.01)
    assert cost.evidence == "assumed"


def test_a_placement_for_another_cluster_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(UsageError, match="devices"):
        evaluator(random_batches(rng)).evaluate(random_placement(rng, devices=8))
    with pytest.raises(UsageError, match="batches are for 4 devices"):
        evaluator(random_batches(rng), "2x4xh100_sxm")
