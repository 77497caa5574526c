"""Layouts, estimates against played runs, and the search against trying everything."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.capacity.candidates import find_candidates
from moesim.capacity.costs import Costs
from moesim.capacity.deployments import Plan, play
from moesim.capacity.estimate import estimate_curve
from moesim.capacity.frontier import crossovers, frontier, undominated
from moesim.capacity.layouts import replica_layouts, replica_sizes
from moesim.capacity.question import Question
from moesim.capacity.search import answer
from moesim.capacity.why import runners_up
from moesim.cluster import load_cluster
from moesim.errors import UsageError
from moesim.model import load_model

SMALL = Question(
    "qwen3-30b-a3b",
    ("h100_sxm",),
    max_devices=4,
    concurrency=48,
    isl=512,
    osl=128,
    ttft_s=1.0,
    tpot_s=0.02,
    engine="vllm",
)


@cache
def _answered(_, holder):
    return answer(holder.question)


@cache
def _candidates(_, holder):
    return find_candidates(holder.question, load_model(holder.question.model, dense=True))[0]


class Holder:
    """Equal to any other: the text beside it is what is looked up."""

    def __init__(self, question):
        self.question = question

    def __eq__(self, other):
        return True

    def __hash__(self):
        return 0


def answered(question):
    return _answered(repr(question), Holder(question))


def candidates(question):
    return _candidates(repr(question), Holder(question))


def test_replicas_are_powers_of_two_and_whole_domains():
    assert replica_sizes(64, 8) == [1, 2, 4, 8, 16, 32, 64]
    assert replica_sizes(10, 8) == [1, 2, 4, 8]
    assert replica_sizes(72, 72) == [1, 2, 4, 8, 16, 32, 64, 72]


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
@pytest.mark.parametrize("cluster", ["8xh200_sxm", "2x8xh200_sxm", "4xl40s"])
def test_layouts_are_those_that_engines_run(engine, cluster):
    model = load_model("deepseek-v3")
    machine = load_cluster(cluster)
    layouts = list(replica_layouts(model, machine, engine, 8))
    assert len(layouts) == len(set(layouts)) > 0
    for layout in layouts:
        assert layout.devices == machine.devices
        assert layout.tp <= 8
        assert layout.moe_tp <= 8
        if engine == "vllm":
            assert layout.ep in (1, layout.stage_devices)
        if engine == "trtllm":
            assert layout.dp in (1, layout.stage_devices)


def test_a_dense_model_has_no_expert_layouts():
    layouts = list(
        replica_layouts(
            load_model("llama-3.1-8b", dense=True), load_cluster("4xh100_sxm"), "vllm", 8
        )
    )
    assert {(layout.dp, layout.ep) for layout in layouts} == {(1, 1)}


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
@pytest.mark.parametrize("isl", [256, 3000])
def test_estimates_are_near_what_is_played(engine, isl):
    question = replace(SMALL, engine=engine, isl=isl)
    errors = []
    for candidate in candidates(question):
        curve = estimate_curve(candidate, question)
        for concurrency in (1, 16, 64):
            if concurrency > curve.concurrency[-1]:
                continue
            played = play(Plan(candidate, 1), question, concurrency)
            _, tpot_s, rate = curve.at(concurrency)
            errors.append(abs(np.log(tpot_s / played.tpot_s)))
            assert rate * question.osl == pytest.approx(played.tokens_per_s, rel=0.35)
    assert np.median(errors) < 0.08
    assert np.quantile(errors, 0.9) < 0.3


def test_the_search_finds_what_trying_everything_finds():
    for objective in ("devices", "throughput", "cost"):
        question = replace(SMALL, objective=objective, modes=("aggregated",))
        found = answered(question)
        costs = Costs(question)
        best = min(
            costs.value(played)
            for candidate in candidates(question)
            for workers in range(1, question.max_devices // candidate.devices + 1)
            if (played := play(Plan(candidate, workers), question)) is not None
            and played.keeps(question)
        )
        assert costs.value(found.best) <= best * 1.005


@pytest.mark.parametrize("name", ["ttft_s", "tpot_s", "max_devices", "concurrency"])
def test_an_easier_question_has_no_worse_answer(name):
    harder = {"ttft_s": 0.2, "tpot_s": 0.012, "max_devices": 2, "concurrency": 96}
    base = replace(SMALL, modes=("aggregated",))
    hard, easy = answered(replace(base, **{name: harder[name]})), answered(base)
    if hard.best is not None:
        assert easy.best.plan.devices <= hard.best.plan.devices


def test_what_is_promised_is_kept():
    found = answered(SMALL)
    assert found.best.ttft_s <= SMALL.ttft_s
    assert found.best.tpot_s <= SMALL.tpot_s
    assert found.best.plan.devices <= SMALL.max_devices
    # Little's law: requests in flight are rate times time in the system.
    per_s = found.best.tokens_per_s / SMALL.osl
    assert per_s * found.best.metrics.e2e.mean == pytest.approx(SMALL.concurrency, rel=0.05)


def test_an_open_loop_is_served_at_its_rate():
    question = replace(SMALL, concurrency=None, rps=10.0, percentile=90)
    found = answered(question)
    assert found.best.tokens_per_s == pytest.approx(10.0 * SMALL.osl, rel=0.02)
    assert found.best.metrics.ttft.p90 <= SMALL.ttft_s


def test_disaggregated_workers_are_paired():
    question = replace(SMALL, modes=("disaggregated",))
    found = answered(question)
    plan = found.best.plan
    assert plan.prefill is not None
    assert plan.devices == plan.candidate.devices * plan.workers + (
        plan.prefill.devices * plan.prefill_workers
    )
    assert found.best.keeps(question)


def test_no_point_of_the_frontier_beats_another():
    points = frontier(answered(SMALL))
    assert len(points) >= 3
    rates = [played.tokens_per_s_per_device for played in points]
    users = [1 / played.tpot_s for played in points]
    assert users == sorted(users)
    assert rates == sorted(rates, reverse=True)
    assert all(played.lo <= 1 <= played.hi for played in points)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=40))
def test_undominated_points_are_those_that_no_other_beats(points):
    first, second = (np.array(column, float) for column in zip(*points, strict=True))
    kept = undominated(first, second)
    values = {points[place] for place in kept}
    for point in points:
        beaten = any(
            other[0] >= point[0] and other[1] >= point[1] and other != point for other in points
        )
        assert (point in values) == (not beaten)


def test_every_loser_has_a_reason():
    found = answered(SMALL)
    losers = runners_up(found)
    names = [loser.name for loser in losers]
    assert len(names) == len(set(names))
    assert found.best.plan.name not in names
    assert all(loser.reason for loser in losers)


def test_crossovers_name_both_layouts():
    found = answered(SMALL)
    for crossover in crossovers(found):
        assert "DP" in crossover.expert
        assert crossover.concurrency is None or crossover.concurrency >= 1


def test_a_price_is_that_of_the_question():
    found = answered(SMALL)
    cheap = Costs(replace(SMALL, prices={"h100_sxm": 1.0}))
    plan, rate = found.best.plan, found.best.tokens_per_s
    assert cheap.usd_per_mtok(plan, rate) == pytest.approx(plan.devices / 3600 / rate * 1e6)
    assert found.costs.usd_per_mtok(plan, rate) == pytest.approx(3 * cheap.usd_per_mtok(plan, rate))


def test_without_a_price_cost_is_no_objective():
    question = replace(SMALL, devices=("rtx_pro_6000_server",), objective="cost", max_devices=2)
    with pytest.raises(UsageError, match="--price rtx_pro_6000_server"):
        answer(question)
