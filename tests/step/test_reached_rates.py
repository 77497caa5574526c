"""Devices whose profile says what kernels reach: plans and forward steps price them alike."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.bound import step_lower_bound
from moesim.cluster import load_cluster
from moesim.cost import ReachedCost, RooflineCost
from moesim.fitted_costs import expert_cost, link_cost
from moesim.forward.machine import Machine
from moesim.forward.pricing import find_prices
from moesim.forward.work import ExpertWork, Op, TransferWork
from moesim.model import load_model
from moesim.schema import Evidence
from moesim.step import StepEvaluator
from tests.step.problems import random_batches, random_placement

MODEL = "small-moe-30b-dims"
CLUSTERS = ("4xascend_910b3", "2x4xascend_910b4", "2x2xascend_910c")


def priced(batches, cluster, cost="fitted", comm="home-rank", phase="prefill"):
    model, found = load_model(MODEL), load_cluster(cluster)
    tokens = batches.tokens_per_device
    return StepEvaluator(
        batches, model, found, comm, phase,
        expert_cost(model, found, cost, "sglang"),
        link_cost(model, found, cost, comm, phase, tokens),
    )  # fmt: skip


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    cluster=st.sampled_from(CLUSTERS),
    most=st.sampled_from([2, 40, 5000]),
    cost=st.sampled_from(["fitted", "roofline"]),
)
def test_experts_of_a_plan_cost_what_those_of_a_forward_step_do(seed, cluster, most, cost):
    model, found = load_model(MODEL), load_cluster(cluster)
    tokens = np.random.default_rng(seed).integers(0, most, (3, found.devices, 8))
    work = ExpertWork(
        slot_tokens=tokens,
        hidden=model.expert_input_size,
        width=model.expert_width,
        matrices=model.expert_matrices,
        dtype="bfloat16",
        weight_bytes=2.0,
        activation_bytes=2.0,
        arithmetic="bf16",
        group_tokens=1,
        top_k=model.top_k,
    )
    (price,) = find_prices([Op("experts", work)], Machine(found, "sglang", cost))
    plan = expert_cost(model, found, cost, "sglang")
    layer = plan.time(tokens)
    seconds, least_s = (float(part.max(axis=1).mean()) for part in (layer.total_s, layer.least_s))
    low, high = plan.interval(seconds, 1, least_s)
    assert plan.name == price.kernel == ("roofline" if cost == "roofline" else "reached rates")
    ends = (seconds, seconds * low, seconds * high)
    assert ends == pytest.approx((price.time_s, price.lo_s, price.hi_s), rel=1e-12)


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_even_all_to_alls_of_a_plan_cost_what_those_of_a_forward_step_do(cluster):
    model, found = load_model(MODEL), load_cluster(cluster)
    cards, per_device = found.devices, 512
    work = TransferWork(
        "dispatch", "decode", per_device, model.expert_input_size,
        2.0 * model.expert_input_size, model.top_k, model.experts, cards, 1.0,
    )  # fmt: skip
    (price,) = find_prices([Op("dispatch", work)], Machine(found, "sglang", "fitted"))
    links = link_cost(model, found, "fitted", "home-rank", "decode", per_device)
    vectors = np.full((cards, cards), per_device * model.top_k / cards)
    seconds, plain = links.dispatch.time(vectors)
    low, high = links.interval(float(seconds), float(plain.seconds))
    assert links.name == price.kernel == "reached rates"
    ends = (seconds, seconds * low, seconds * high)
    assert ends == pytest.approx((price.time_s, price.lo_s, price.hi_s), rel=1e-9)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    cluster=st.sampled_from(["4xascend_910b3", "2x2xascend_910c"]),
    comm=st.sampled_from(["home-rank", "chain"]),
    phase=st.sampled_from(["prefill", "decode"]),
    redundant=st.sampled_from([0, 4]),
    per_device=st.sampled_from([1, 3, 300]),
)
def test_a_step_lies_in_its_interval_and_above_its_bound(
    seed, cluster, comm, phase, redundant, per_device
):
    rng = np.random.default_rng(seed)
    batches = random_batches(rng, per_device=per_device)
    placement = random_placement(rng, redundant=redundant)
    evaluator = priced(batches, cluster, comm=comm, phase=phase)
    cost = evaluator.evaluate(placement)
    assert cost.evidence is Evidence.ASSUMED
    assert cost.lo_s * (1 - 1e-12) <= cost.step_s <= cost.hi_s * (1 + 1e-12)
    assert step_lower_bound(evaluator, 8 + redundant) <= cost.step_s * (1 + 1e-12)
    sheet = priced(batches, cluster, "roofline", comm, phase).evaluate(placement)
    assert cost.step_s > sheet.step_s


def test_shares_of_one_and_no_fixed_times_are_the_data_sheet():
    model, found = load_model(MODEL), load_cluster("4xascend_910b3")
    sheet = RooflineCost.of(model, found.device)
    tokens = np.array([[3, 0, 900], [1, 1, 1]])
    same = ReachedCost(sheet, sheet, 0.0).time(tokens)
    assert np.array_equal(same.total_s, sheet.time(tokens).total_s)
    half = ReachedCost(sheet, replace(sheet, memory_bytes_per_s=sheet.memory_bytes_per_s / 2), 1e-6)
    assert (half.time(tokens).total_s > same.total_s).all()
    assert np.array_equal(half.time(tokens).least_s, same.total_s)
