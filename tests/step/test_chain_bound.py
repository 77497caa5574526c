"""The bound on travel between layers: below every placement, and tightened by eigenvalues."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from moesim.bound import step_lower_bound
from moesim.chain_bound import chain_lower_bound_s
from moesim.cluster import load_cluster
from moesim.link_cost import roofline_links
from moesim.model import load_model
from moesim.placement import Placement
from moesim.step import StepEvaluator
from moesim.workload import Batches
from tests.step.problems import random_batches

MODEL = load_model("small-moe-30b-dims")


def evaluator(batches, cluster, **way):
    cluster = load_cluster(cluster)
    links = roofline_links(MODEL, cluster)
    links = replace(links, dispatch=replace(links.dispatch, **way))
    return StepEvaluator(batches, MODEL, cluster, "chain", "prefill", links=links)


def topical(rng, *, batches, layers, devices, experts, per_device=40):
    """Tokens that follow topics: neighbouring layers' experts belong together, diffusely."""
    weight = rng.gamma(0.3, 1.0, (layers, experts, experts)) + 0.02
    topic = rng.integers(0, experts, (batches, devices * per_device))
    noise = rng.gumbel(size=(batches, layers, *topic.shape[1:], experts))
    scores = np.log(weight)[np.arange(layers)[None, :, None], topic[:, None, :]] + noise
    routing = np.argsort(-scores, axis=-1)[..., :2].astype(np.uint8)
    return Batches(routing, None, experts, devices, per_device)


def cheapest_travel_s(priced, rows):
    """The least all-to-alls of two layers over every pair of placements in ``rows``."""
    layers, experts = (0, 1), priced.batches.experts
    costs = [
        priced.evaluate(Placement(np.array(pair), priced.cluster.devices, experts, layers))
        for pair in itertools.product(rows, repeat=2)
    ]
    return min(cost.layer_dispatch_s.sum() for cost in costs)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("cluster", ["2xh100_sxm", "2x1xh100_sxm"])
@pytest.mark.parametrize("way", [{}, {"launch_s": 2e-6, "copy_s": 1e-6, "flow_overlap": 2.0}])
def test_no_placement_travels_less(seed, cluster, way):
    rng = np.random.default_rng(seed)
    batches = topical(rng, batches=3, layers=2, devices=2, experts=6)
    priced = evaluator(batches, cluster, **way)
    halves = [list(half) for half in itertools.combinations(range(6), 3)]
    rows = [[*half, *sorted(set(range(6)) - set(half))] for half in halves]
    best_s = cheapest_travel_s(priced, rows)
    for tighten_s in (0.0, 30.0):
        bound_s = chain_lower_bound_s(priced, 6, tighten_s=tighten_s) / batches.count
        assert 0 < bound_s <= best_s * (1 + 1e-12)


def test_eigenvalues_tighten_and_time_is_shared_among_the_layers():
    batches = topical(np.random.default_rng(5), batches=2, layers=5, devices=4, experts=32)
    priced = evaluator(batches, "2x2xh100_sxm")
    pair_s = 0.25 * (32 / 256) ** 3
    found = [
        chain_lower_bound_s(priced, 32, tighten_s=seconds)
        for seconds in (0.0, 1.5 * pair_s, 2.5 * pair_s, 1.0, 30.0)
    ]
    assert found[0] < found[1] < found[2] < found[3] == found[4]
    assert found[3] > 1.1 * found[0]
    step_s = [step_lower_bound(priced, 32, tighten_s=seconds) for seconds in (0.0, 30.0)]
    assert step_s[1] - step_s[0] == pytest.approx((found[3] - found[0]) / 2)


def test_seconds_that_are_not_convex_are_bounded_batch_by_batch():
    batches = topical(np.random.default_rng(5), batches=2, layers=3, devices=4, experts=32)
    priced = evaluator(batches, "2x2xh100_sxm", launch_s=1e-6, latency_overlap=0.5)
    plain, tightened = (chain_lower_bound_s(priced, 32, tighten_s=s) for s in (0.0, 30.0))
    assert plain == tightened


def test_copies_and_short_rows_are_not_bounded():
    rng = np.random.default_rng(1)
    priced = evaluator(random_batches(rng), "2x2xh100_sxm")
    assert chain_lower_bound_s(priced, 12, tighten_s=1.0) == 0
    priced = evaluator(random_batches(rng, ragged=True), "2x2xh100_sxm")
    assert chain_lower_bound_s(priced, 8, tighten_s=1.0) == 0
