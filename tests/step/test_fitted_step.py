"""Placements priced by fitted kernels and links: bounds still hold, and names say what was used."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.bound import step_lower_bound
from moesim.cluster import load_cluster
from moesim.fitted_costs import expert_cost, expert_format, link_cost
from moesim.hardware import load_device
from moesim.link_cost import Direction, roofline_links
from moesim.model import load_model
from moesim.placement import Placement
from moesim.planners.problem import PlacementProblem
from moesim.planners.registry import PLANNERS, run_planner
from moesim.schema import Evidence
from moesim.step import StepEvaluator
from tests.step.problems import random_batches, random_placement

MODEL = "small-moe-30b-dims"


def evaluator(batches, cluster="2x2xh100_sxm", comm="home-rank", phase="prefill", engine="sglang"):
    model, found = load_model(MODEL), load_cluster(cluster)
    tokens = batches.tokens_per_device
    return StepEvaluator(
        batches, model, found, comm, phase,
        expert_cost(model, found, "fitted", engine),
        link_cost(model, found, "fitted", comm, phase, tokens),
    )  # fmt: skip


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    comm=st.sampled_from(["home-rank", "chain"]),
    phase=st.sampled_from(["prefill", "decode"]),
    engine=st.sampled_from(["sglang", "trtllm", "vllm"]),
    cluster=st.sampled_from(["2x2xh100_sxm", "4xb200_sxm", "2x2xgb200", "2x2xl40s"]),
    redundant=st.sampled_from([0, 4]),
    per_device=st.sampled_from([1, 3, 300]),
)
def test_no_placement_beats_the_lower_bound(
    seed, comm, phase, engine, cluster, redundant, per_device
):
    rng = np.random.default_rng(seed)
    priced = evaluator(random_batches(rng, per_device=per_device), cluster, comm, phase, engine)
    cost = priced.evaluate(random_placement(rng, redundant=redundant))
    assert 0 < step_lower_bound(priced, 8 + redundant) <= cost.step_s * (1 + 1e-12)
    assert 0 < cost.lo_s < cost.hi_s
    parts = cost.layer_compute_s + cost.layer_dispatch_s + cost.layer_combine_s
    assert cost.step_s == pytest.approx(parts.sum())


@settings(deadline=None, derandomize=True, max_examples=10)
@given(seed=st.integers(0, 2**32), phase=st.sampled_from(["prefill", "decode"]))
def test_no_planner_beats_the_lower_bound(seed, phase):
    rng = np.random.default_rng(seed)
    batches = random_batches(rng, experts=16, top_k=3, per_device=64)
    priced = evaluator(batches, phase=phase)
    ids = batches.routing.transpose(1, 0, 2, 3).reshape(2, -1)
    problem = PlacementProblem(
        loads=np.stack([np.bincount(layer, minlength=16) for layer in ids]),
        devices=4,
        nodes=2,
        slots=16,
        speed_factors=np.ones(4),
        pair_bandwidth_bytes_per_s=priced.cluster.pair_bandwidth_bytes_per_s,
        routing_groups=4,
        transitions=np.ones((1, 16, 16)),
        time_limit_s=2,
    )
    bound_s = step_lower_bound(priced, 16)
    for name, entry in PLANNERS.items():
        if entry.engine_ready:
            table = run_planner(name, problem).physical_to_logical
            cost = priced.evaluate(Placement(table, 4, 16, (0, 1)))
            assert bound_s <= cost.step_s * (1 + 1e-12), name


def test_what_priced_a_plan_is_named():
    batches = random_batches(np.random.default_rng(0))
    priced = evaluator(batches)
    assert priced.expert_cost.name.startswith("sglang ")
    assert priced.expert_cost.evidence is Evidence.FITTED
    assert "DeepEP normal" in priced.link_cost.name
    assert "low-latency" in evaluator(batches, phase="decode").link_cost.name
    assert "NCCL" in evaluator(batches, "4xh100_sxm", "chain").link_cost.name


@pytest.mark.parametrize("cluster", ["4xmi300x", "2x2xl40s"])
def test_links_of_another_form_take_the_data_sheet(cluster):
    """A full mesh or PCIe is not what DeepEP's kernels were fitted on."""
    model, found = load_model(MODEL), load_cluster(cluster)
    links = link_cost(model, found, "fitted", "home-rank", "decode", 128)
    assert links.name == "roofline"
    assert links.evidence is found.evidence


def test_a_device_that_was_never_measured():
    model, found = load_model(MODEL), load_cluster("2x2xmi300x")
    cost = expert_cost(model, found, "fitted", "sglang")
    assert cost.evidence is Evidence.SPEC
    tokens = np.full(4, 100)
    roofline = expert_cost(model, found, "roofline", "sglang")
    assert cost.time(tokens).total_s > roofline.time(tokens).total_s
    low, high = cost.interval(1e-3, 400, 1e-3)
    own_low, own_high = expert_cost(
        model, load_cluster("2x2xh100_sxm"), "fitted", "sglang"
    ).interval(1e-3, 400, 1e-3)
    assert high / low > own_high / own_low


def test_expert_formats():
    hopper, blackwell = load_device("h100_sxm"), load_device("b200_sxm")
    found = {
        name: expert_format(load_model(name), hopper)
        for name in ("deepseek-v3", "mixtral-8x7b", "gpt-oss-120b", "kimi-k2.5")
    }
    assert found == {
        "deepseek-v3": "fp8_block",
        "mixtral-8x7b": "bfloat16",
        "gpt-oss-120b": "w4a16_mxfp4",
        "kimi-k2.5": "int4_wo",
    }
    assert expert_format(load_model("gpt-oss-120b"), blackwell) == "w4a8_mxfp4_mxfp8"


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    up=st.floats(0, 1e-2),
    out=st.floats(0, 1e-2),
    more=st.floats(0, 1e-3),
    launch=st.floats(0, 1e-4),
    copy=st.floats(0, 1e-4),
    flow=st.sampled_from([1.0, 1.5, 4.0, np.inf]),
)
def test_an_all_to_all_is_never_faster_than_its_links(up, out, more, launch, copy, flow):
    way = Direction(
        load_cluster("2x2xh100_sxm"), 1.0, launch_s=launch, copy_s=copy, flow_overlap=flow,
        latency_overlap=1.1,
    )  # fmt: skip
    seconds = float(way.seconds(np.array(up), np.array(out)))
    assert seconds >= max(up, out)
    assert seconds >= (max(launch, copy) if max(up, out) > 0 else 0) * (1 - 1e-12)
    assert float(way.seconds(np.array(up + more), np.array(out))) >= seconds * (1 - 1e-12)
    # The bound knows the busiest link, not how busy the other tier is.
    assert float(way.seconds(np.array(max(up, out)))) <= seconds * (1 + 1e-12)


def test_rates_scale_the_links():
    plain = roofline_links(load_model(MODEL), load_cluster("2x2xh100_sxm")).dispatch
    half = replace(plain, up_rate=0.5, out_rate=0.25)
    for link, slower in zip(plain.links, half.links, strict=True):
        ratio = slower.bandwidth_bytes_per_s / link.bandwidth_bytes_per_s
        assert ratio == (0.5 if link.tier == "scale-up" else 0.25)
    vectors = np.zeros((4, 4))
    vectors[0, 1] = 1000
    assert half.time(vectors)[0] > plain.time(vectors)[0]
