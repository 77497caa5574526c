"""What holds for every run."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from moesim.errors import InfeasibleError, UsageError
from moesim.serving.deployment import Deployment, Pool, Transfer
from moesim.serving.engines import ENGINES, find_engine
from moesim.serving.features import step_features
from moesim.serving.loads import Lengths, closed_loop, open_loop
from moesim.serving.metrics import measure
from moesim.serving.requests import Requests
from moesim.serving.schedule import latency_weights
from moesim.serving.simulation import simulate_requests

from .tables import made_up_tables
from .test_against_plain import cases

PARTS = ("sampled", "decode_attention", "chunk_attention")


@given(cases())
@settings(max_examples=150, deadline=None)
def test_tokens_requests_blocks_and_time_add_up(case):
    deployment, load = case
    run = simulate_requests(deployment, load)
    for name in ("arrival_s", "admitted_s", "first_s", "finish_s"):
        assert np.isfinite(getattr(run, name)).all(), name
    assert (run.arrival_s <= run.admitted_s).all()
    assert (run.admitted_s < run.first_s).all()
    assert (run.first_s <= run.finish_s).all()
    # Every prompt token that is not cached is computed, again after each preemption.
    computed = np.bincount(run.chunk_request, run.chunk_new, load.count)
    once = load.input_tokens - load.cached_tokens
    assert (computed >= once).all()
    assert (computed == once)[run.preemptions == 0].all()
    assert run.chunk_new.sum() == run.all_prefill_tokens.sum()
    if deployment.pool.tokens_per_step == 1 and deployment.prefill is None:
        # Each output token is made by a decode step, but for those that end a prefill.
        ended = np.bincount(run.chunk_request, run.chunk_last, load.count).astype(int)
        assert run.all_decode_sequences.sum() == (load.output_tokens - ended).sum()
    # A worker does one step at a time, and no cache overflows.
    for worker in range(run.workers):
        own = run.worker == worker
        begin, end = run.start_s[own], (run.start_s + run.duration_s)[own]
        assert (begin[1:] >= end[:-1]).all()
        pool = deployment.pool
        if deployment.prefill is not None and worker < deployment.prefill.workers:
            pool = deployment.prefill
        blocks = pool.kv_tokens // pool.lanes // pool.policy.block_tokens
        assert (run.kv_blocks[own] <= blocks * pool.lanes * pool.groups).all()
    metrics = measure(run, np.full(run.workers, 10**9))
    assert 0 < metrics.busy_share <= 1 + 1e-9
    assert metrics.itl is None or metrics.itl.max < metrics.duration_s * (1 + 1e-9)


@given(cases())
@settings(max_examples=100, deadline=None)
def test_durations_are_the_weighted_parts(case):
    deployment, load = case
    if deployment.prefill is not None:
        return
    run = simulate_requests(deployment, load)
    pool = deployment.pool
    fit, parts = pool.coefficients, step_features(run, pool)
    total = np.array(fit.step_host_s)[run.kind]
    for name in (*pool.tables.components, *PARTS):
        total = total + np.array(fit.weight(name))[run.kind] * parts[name]
    total += fit.sequence_host_s * parts["sequences"] + fit.token_host_s * parts["tokens"]
    total += fit.kernel_host_s * parts["kernels"] - parts["hidden"]
    np.testing.assert_allclose(total, run.duration_s, rtol=1e-9)


@given(cases())
@settings(max_examples=150, deadline=None)
def test_latencies_are_linear_in_the_times_of_steps(case):
    deployment, load = case
    run = simulate_requests(deployment, load)
    if not run.closed or run.workers > 1:
        with pytest.raises(UsageError, match="closed loop"):
            latency_weights(run)
        return
    counted = np.arange(load.count) >= load.count // 3
    for mask in (None, counted):
        chosen = np.ones(load.count, bool) if mask is None else mask
        tpot, ttft = latency_weights(run, mask)
        assert ttft @ run.duration_s == pytest.approx(run.ttft_s[chosen].mean())
        expected = run.tpot_s[chosen]
        if np.isfinite(expected).any():
            assert tpot @ run.duration_s == pytest.approx(np.nanmean(expected))


@pytest.mark.parametrize("engine", ENGINES)
def test_order_of_steps_does_not_depend_on_their_durations(engine):
    load = closed_loop(24, 300, 200, Lengths("uniform", 0.8), seed=3)
    runs = []
    for seed in (0, 1):
        pool = Pool(made_up_tables(seed), find_engine(engine), kv_tokens=4000, groups=2)
        runs.append(simulate_requests(Deployment(pool), load))
    for name in ("kind", "tokens", "all_prefill_tokens", "first_step", "last_step"):
        assert (getattr(runs[0], name) == getattr(runs[1], name)).all()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("workers", [1, 3])
def test_littles_law(engine, workers):
    """Requests in flight = rate × time in the system, where concurrency is constant."""
    load = closed_loop(32, 400, 100, Lengths("constant"), count=3200)
    pool = Pool(made_up_tables(), find_engine(engine), kv_tokens=100_000, workers=workers)
    run = simulate_requests(Deployment(pool, router="least-loaded"), load)
    middle = slice(320, 2880)
    inside = run.arrival_s[middle]
    rate = (inside.size - 1) / (inside[-1] - inside[0])
    in_system = (run.finish_s - run.arrival_s)[middle].mean()
    assert rate * in_system == pytest.approx(32, rel=0.03)


@pytest.mark.parametrize("engine", ENGINES)
def test_one_request_at_a_time(engine):
    """TTFT is the prefill's step, TPOT the plain mean of decode steps."""
    load = closed_loop(1, 500, 50, Lengths("constant"), count=3)
    pool = Pool(made_up_tables(), find_engine(engine), kv_tokens=2000)
    run = simulate_requests(Deployment(pool), load)
    assert run.steps == 3 * 50
    steps = run.duration_s.reshape(3, 50)
    np.testing.assert_allclose(run.ttft_s, steps[:, 0])
    np.testing.assert_allclose(run.tpot_s, steps[:, 1:].mean(axis=1))
    assert (run.context[1:50] == np.arange(500, 549)).all()


def test_wait_in_front_of_a_single_slot():
    """M/D/1: Pollaczek and Khinchine's mean wait ρ S / (2 (1 − ρ))."""
    policy = find_engine("vllm", max_sequences=1)
    pool = Pool(made_up_tables(), policy, kv_tokens=5000)
    one = simulate_requests(Deployment(pool), closed_loop(1, 256, 8, Lengths("constant"), count=1))
    service_s = one.finish_s[0]
    for load in (0.3, 0.6, 0.8):
        requests = open_loop(
            load / service_s, 256, 8, Lengths("constant"), count=60_000, seed=int(load * 10)
        )
        run = simulate_requests(Deployment(pool), requests)
        wait_s = (run.admitted_s - run.arrival_s).mean()
        assert wait_s == pytest.approx(load * service_s / (2 * (1 - load)), rel=0.06)


def test_speculation_divides_the_steps():
    """Three drafts, 2.5 tokens per step: a request of 1 + 250 tokens decodes in 100 steps."""
    pool = Pool(
        made_up_tables(), find_engine("vllm"), kv_tokens=5000, draft_tokens=3, tokens_per_step=2.5
    )
    run = simulate_requests(
        Deployment(pool), closed_loop(1, 100, 251, Lengths("constant"), count=1)
    )
    assert run.steps == 1 + 100
    assert (run.tokens[1:] == 4).all()
    assert (run.sampled[1:] == 4).all()


def test_a_cache_travels_at_the_speed_of_its_link():
    pool = Pool(made_up_tables(), find_engine("vllm"), kv_tokens=100_000)
    load = closed_loop(1, 1000, 5, Lengths("constant"), count=2)
    transfer = Transfer(1e5, 1e6, 1e9, 1e-3)
    run = simulate_requests(Deployment(pool, pool, transfer), load)
    prefill_s = run.duration_s[run.worker == 0]
    np.testing.assert_allclose(run.ttft_s, prefill_s + 0.101 + 1e-3)
    assert (run.kind[run.worker == 1] == 0).all()


def test_prompts_wait_for_decode_tokens_or_the_other_way_round():
    """The mixed order computes both in a step; the other stops decoding for prompts."""
    load = closed_loop(8, 200, 50, Lengths("uniform", 0.5), seed=1)
    both = {}
    for engine, mixed in (("vllm", None), ("sglang", None), ("sglang", True)):
        pool = Pool(made_up_tables(), find_engine(engine, mixed_chunk=mixed), kv_tokens=100_000)
        run = simulate_requests(Deployment(pool), load)
        both[engine, mixed] = ((run.all_decode_sequences > 0) & (run.all_prefill_tokens > 0)).sum()
    assert both["vllm", None] > 10
    assert both["sglang", None] == 0
    assert both["sglang", True] > 10


def test_memory_that_is_promised_is_there():
    """Without eviction nobody is preempted; who packs memory full has to preempt."""
    load = closed_loop(64, 200, 400, Lengths("uniform", 0.5), seed=1)
    found = {}
    for engine in ENGINES:
        pool = Pool(made_up_tables(), find_engine(engine), kv_tokens=9_000)
        found[engine] = int(simulate_requests(Deployment(pool), load).preemptions.sum())
    assert found["trtllm"] == 0
    assert found["trtllm-max-utilization"] > 0
    assert found["vllm"] > found["sglang"] > 0


def test_a_request_larger_than_the_cache_is_refused():
    pool = Pool(made_up_tables(), find_engine("vllm"), kv_tokens=500)
    with pytest.raises(InfeasibleError, match=r"600 tokens .* KV cache"):
        simulate_requests(Deployment(pool), closed_loop(1, 500, 100, Lengths("constant")))


def test_cached_prefixes_are_not_computed():
    load = closed_loop(2, 100, 3, Lengths("constant"), hit_ratio=0.75)
    pool = Pool(made_up_tables(), find_engine("vllm"), kv_tokens=5000)
    run = simulate_requests(Deployment(pool), load)
    assert (run.chunk_new == 25).all()
    assert (run.chunk_past == 75).all()


def test_replicas_share_the_load():
    count = 400
    arrivals = np.zeros(count)
    load = Requests(np.full(count, 300), np.full(count, 60), np.zeros(count, int), arrivals)
    pool = Pool(made_up_tables(), find_engine("vllm"), kv_tokens=10**6, workers=4, groups=2)
    for router in ("round-robin", "least-loaded"):
        run = simulate_requests(Deployment(pool, router=router), load)
        prefilled = np.bincount(run.worker, run.all_prefill_tokens)
        assert (prefilled == 300 * count / 4).all()
