"""Whole replays: against a plain one, and what must hold of every one."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from moesim.offload import scores
from moesim.offload.predictors import predict_with_recall
from moesim.offload.replay import Plan, Timing, replay
from moesim.offload.schedules import SCHEDULES
from moesim.offload.state import COUNTED

from . import plain

STEPS, LAYERS, EXPERTS = 60, 3, 10


def routing(seed, batch=2, top_k=3, steps=STEPS):
    rng = np.random.default_rng(seed)
    tokens = np.zeros((steps, LAYERS, EXPERTS), np.int64)
    favour = rng.gumbel(size=(LAYERS, EXPERTS))
    for step in range(steps):
        for layer in range(LAYERS):
            for _ in range(batch):
                key = favour[layer] + rng.gumbel(size=EXPERTS)
                tokens[step, layer, np.argsort(-key)[:top_k]] += 1
    return tokens


def timing(tokens, *, copy=1.0, cpu=0.7, other=0.2, read=3.0):
    most = int(tokens.max())
    rows = np.arange(most + 1)
    return Timing(
        gpu_s=0.05 + 0.01 * rows, cpu_s=cpu * (0.5 + 0.5 * rows), cpu_first_s=0.1, copy_s=copy,
        copy_narrow_s=copy / 2, read_s=read, other_s=np.full(len(tokens), other),
    )  # fmt: skip


def plan(tokens, slots, schedule="on-demand", score="lru", **more):
    shape = tokens.shape[1:]
    return Plan(
        schedule, scores.SCORES[score](tokens), np.full(shape[0], slots), np.zeros(shape, bool),
        **more,
    )  # fmt: skip


@pytest.mark.parametrize("schedule", ["on-demand", "split", "hybrid", "hybrid-code"])
@pytest.mark.parametrize("score", ["lru", "lfu", "belady"])
def test_same_as_the_plain_replay(schedule, score):
    tokens = routing(3)
    asked, cost = plan(tokens, 4, schedule, score), timing(tokens)
    if schedule == "split":
        asked.resident[:, :4] = True
    run = replay(tokens, asked, cost)
    step_s, hits = plain.replay(tokens, asked, cost)
    assert run.step_s == pytest.approx(step_s)
    assert run.total("resident") == hits.sum()


@pytest.mark.parametrize("schedule", list(SCHEDULES))
@pytest.mark.parametrize("ahead", [0, 1, 2])
@pytest.mark.parametrize("impact", [False, True])
def test_conservation(schedule, ahead, impact):
    """Each active expert runs once, busy times fit into the elapsed time, slots are kept."""
    tokens = routing(5)
    predicted = predict_with_recall(tokens, 0.8, 0.5, seed=1) if ahead else None
    asked = plan(
        tokens, 4, schedule, predicted=predicted, lookahead=max(ahead, 1), impact=impact,
        host=np.arange(EXPERTS)[None, :] < np.full((LAYERS, 1), 7),
    )  # fmt: skip
    run = replay(tokens, asked, timing(tokens))
    assert ((run.place != 255) == (tokens > 0)).all()
    counts = dict(zip(COUNTED, run.counts.sum(axis=0), strict=True))
    found = ("resident", "prefetched", "late", "copied", "on_cpu")
    assert sum(counts[name] for name in found) == counts["active"] == (tokens > 0).sum()
    elapsed = run.step_s.sum()
    assert (run.busy_s.sum(axis=0) <= elapsed + 1e-6 + (1 if ahead else 0) * 4.0).all()
    assert (run.step_s >= LAYERS * 0.2).all()
    if not ahead:
        assert counts["prefetches"] == 0


@pytest.mark.parametrize("score", ["lru", "lfu", "belady", "static"])
def test_more_slots_are_never_slower_on_demand(score):
    for seed in range(5):
        tokens = routing(seed)
        runs = [replay(tokens, plan(tokens, c, "on-demand", score), timing(tokens))
                for c in range(EXPERTS + 1)]  # fmt: skip
        hits = [run.total("resident") for run in runs]
        times = [run.step_s.sum() for run in runs]
        assert hits == sorted(hits)
        assert all(a >= b - 1e-9 for a, b in itertools.pairwise(times))


@pytest.mark.parametrize("schedule", ["on-demand", "serial"])
def test_a_faster_link_is_never_slower(schedule):
    tokens = routing(7)
    times = [replay(tokens, plan(tokens, 4, schedule), timing(tokens, copy=copy)).step_s.sum()
             for copy in (2.0, 1.0, 0.5, 0.1)]  # fmt: skip
    assert times == sorted(times, reverse=True)


def test_a_faster_cpu_helps_the_split():
    tokens = routing(8)
    asked = plan(tokens, 4, "split")
    times = [replay(tokens, asked, timing(tokens, cpu=cpu)).step_s.sum() for cpu in (1, 0.5, 0.1)]
    assert times == sorted(times, reverse=True)


def test_belady_hits_most():
    for seed in range(5):
        tokens = routing(seed, batch=1)
        hits = {name: replay(tokens, plan(tokens, 5, "on-demand", name), timing(tokens)).hit_rate()
                for name in ("lru", "lfu", "belady")}  # fmt: skip
        assert hits["belady"] >= max(hits.values())


def test_perfect_prefetch_hides_copies_behind_long_layers():
    tokens = routing(9)
    long = timing(tokens, copy=0.1, other=5.0)
    perfect = predict_with_recall(tokens, 1.0, 0.0, seed=0)
    run = replay(tokens, plan(tokens, EXPERTS, predicted=perfect), long)
    bare = replay(tokens, plan(tokens, EXPERTS), long)
    # The first event of all comes without a warning; everything else is there in time.
    assert run.total("copied") == (tokens[0, 0] > 0).sum()
    assert run.hit_rate() > bare.hit_rate()
    assert run.step_s.sum() < bare.step_s.sum()


def test_a_prefetch_that_has_begun_delays_the_copies_on_demand():
    """One layer, two steps; the prefetch is wrong and is under way when the gate is known."""
    tokens = np.zeros((2, 1, 4), np.int64)
    tokens[0, 0, 0] = tokens[1, 0, 1] = 1
    cost = Timing(np.array([0, 1.0]), np.array([0, 9.0]), 0.0, 4.0, 4.0, 9.0, np.full(2, 1.0))
    wrong = np.full((2, 1, 1), 2)
    # Step 0: 1 s, copy 4 s, compute 1 s: ends at 6. The link is free at 5, the next gate at 7.
    run = replay(tokens, plan(tokens, 4, predicted=wrong), cost)
    # The prefetch takes 5 … 9; the copy on demand 9 … 13, computed until 14.
    assert run.step_s.tolist() == [6.0, 8.0]
    assert replay(tokens, plan(tokens, 4), cost).step_s.tolist() == [6.0, 6.0]


def test_the_disk_is_read_once_where_host_memory_holds_what_was_read():
    tokens = np.zeros((3, 1, 4), np.int64)
    tokens[:, 0, 0] = 1
    cost = Timing(np.array([0, 1.0]), np.array([0, 9.0]), 0.0, 2.0, 2.0, 5.0, np.zeros(3))
    asked = plan(tokens, 0, host=np.array([[False, True, True, True]]))
    # Read 5 s, copy 2 s, compute 1 s; afterwards without the reading.
    run = replay(tokens, asked, cost)
    assert run.step_s.tolist() == [8.0, 3.0, 3.0]
    assert run.counts[:, COUNTED.index("read")].tolist() == [1, 0, 0]


def test_unpopular_experts_travel_narrow_and_are_not_kept():
    tokens = np.zeros((2, 1, 4), np.int64)
    tokens[:, 0] = [9, 1, 0, 0]
    cost = Timing(np.full(10, 1.0), np.full(10, 9.0), 0.0, 4.0, 2.0, 9.0, np.zeros(2))
    asked = plan(tokens, 4, narrow=np.array([True, True]))
    run = replay(tokens, asked, cost)
    # Copies: 4 s and 2 s; the second step has the popular one in its slot.
    assert run.step_s.tolist() == [7.0, 3.0]
    everything = replay(tokens, replace(asked, narrow=None), cost)
    assert everything.step_s.tolist() == [9.0, 2.0]


def test_prefetch_by_impact_takes_what_saves_most():
    """Layer 1 will need experts 1 (one token) and 2 (nine); the CPU runs what is missing.

    There is time for one copy. In the predictor's order it is expert 1, by impact expert 2.
    """
    tokens = np.zeros((1, 2, 4), np.int64)
    tokens[0, 0, 0] = 1
    tokens[0, 1, [1, 2]] = [1, 9]
    rows = np.arange(10)
    cost = Timing(np.full(10, 0.1), 1.0 * rows, 0.0, 3.0, 3.0, 9.0, np.full(1, 1.0))
    named = np.array([[[-1, -1], [1, 2]]])
    asked = plan(tokens, 2, "split", predicted=named)
    # Layer 0: 1 s and 1 s on the CPU; the gate of layer 1 is known at 3 s, the copy ends at 4 s.
    by_order = replay(tokens, asked, cost)
    by_impact = replay(tokens, replace(asked, impact=True), cost)
    assert by_order.step_s.tolist() == pytest.approx([3.0 + 9.0])
    assert by_impact.step_s.tolist() == pytest.approx([3.0 + 1.1])


def test_what_the_cpu_computed_fills_slots_while_the_link_is_idle():
    tokens = np.zeros((2, 1, 4), np.int64)
    tokens[:, 0, 0] = 1
    cost = Timing(np.array([0, 0.5]), np.array([0, 2.0]), 0.0, 1.0, 1.0, 9.0, np.full(2, 0.5))
    asked = plan(tokens, 2, "split")
    assert replay(tokens, asked, cost).step_s.tolist() == [2.5, 2.5]
    filled = replay(tokens, replace(asked, fill=True), cost)
    assert filled.step_s.tolist() == [2.5, 1.0]
    assert filled.total("prefetches") == 1


def test_prefill_may_have_a_schedule_of_its_own():
    tokens = np.zeros((2, 1, 4), np.int64)
    tokens[:, 0, 0] = 1
    cost = Timing(np.array([0, 0.5]), np.array([0, 2.0]), 0.0, 1.0, 1.0, 9.0, np.zeros(2))
    asked = plan(tokens, 0, "split", prefill=np.array([True, False]), prefill_schedule="on-demand")
    assert replay(tokens, asked, cost).step_s.tolist() == [1.5, 2.0]
