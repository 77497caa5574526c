"""What is reported of a run, and the timeline."""

from __future__ import annotations

import json

import numpy as np
import pytest

from moesim.errors import UsageError
from moesim.serving.deployment import Deployment, Pool, Transfer
from moesim.serving.engines import find_engine
from moesim.serving.loads import closed_loop, open_loop, parse_lengths
from moesim.serving.metrics import Distribution, Targets, measure
from moesim.serving.simulation import kv_blocks_per_lane, simulate_requests
from moesim.serving.timeline import timeline, write_timeline

from .tables import made_up_tables


@pytest.fixture(scope="module")
def pool():
    return Pool(made_up_tables(), find_engine("vllm"), kv_tokens=20_000, groups=2)


@pytest.fixture(scope="module")
def run(pool):
    return simulate_requests(
        Deployment(pool), closed_loop(16, 300, 60, parse_lengths("uniform:0.5"))
    )


def blocks(pool):
    return np.array([kv_blocks_per_lane(pool) * pool.lanes * pool.groups])


def test_percentiles_are_values_that_occur():
    assert Distribution.of(np.array([])) is None
    one_to_hundred = Distribution.of(np.arange(1.0, 101))
    assert (one_to_hundred.p50, one_to_hundred.p90, one_to_hundred.p99) == (50, 90, 99)
    weighted = Distribution.of(np.array([3.0, 1.0, 2.0]), np.array([1, 98, 1]))
    assert (weighted.mean, weighted.p50, weighted.p99, weighted.max) == (1.03, 1, 2, 3)


def test_metrics_by_hand(pool, run):
    found = measure(run, blocks(pool))
    out = run.output_tokens
    span_s = run.finish_s.max() - run.arrival_s.min()
    assert found.duration_s == span_s
    assert found.output_tokens_per_s == pytest.approx(out.sum() / span_s)
    assert found.ttft.mean == pytest.approx((run.first_s - run.arrival_s).mean())
    assert found.tpot.mean == pytest.approx(((run.finish_s - run.first_s) / (out - 1)).mean())
    assert found.e2e.max == (run.finish_s - run.arrival_s).max()
    assert (np.repeat(run.gap_s, run.gap_count).size) == (out - 1).sum()
    assert found.itl.mean == pytest.approx((run.finish_s - run.first_s).sum() / (out - 1).sum())
    assert 0 < found.kv_share_mean < found.kv_share_max <= 1
    assert found.waiting_mean == pytest.approx((run.admitted_s - run.arrival_s).sum() / span_s)


def test_time_between_tokens_grows_by_the_prefills_that_come_between():
    load = closed_loop(4, 2000, 50, parse_lengths("uniform:0.5"))
    pool = Pool(made_up_tables(), find_engine("sglang"), kv_tokens=20_000)
    found = measure(simulate_requests(Deployment(pool), load), np.array([20_000]))
    assert found.itl.max > 1.5 * found.itl.p50


def test_goodput_counts_requests_that_keep_both_targets(pool, run):
    everything = measure(run, blocks(pool), targets=Targets(1e9, 1e9))
    assert everything.good_share == 1
    ttft_s, tpot_s = float(np.median(run.ttft_s)), float(np.median(run.tpot_s))
    found = measure(run, blocks(pool), targets=Targets(ttft_s, tpot_s))
    keep = (run.ttft_s <= ttft_s) & (run.tpot_s <= tpot_s)
    assert found.good_share == keep.mean()
    assert found.good_requests_per_s == pytest.approx(keep.sum() / found.duration_s)


def test_warm_up_does_not_count(pool, run):
    whole, warm = measure(run, blocks(pool)), measure(run, blocks(pool), warmup=16)
    assert warm.requests == whole.requests - 16
    assert warm.ttft.mean < whole.ttft.mean  # the burst at the start is what waits longest
    with pytest.raises(UsageError, match="--warmup 160"):
        measure(run, blocks(pool), warmup=160)


def test_host_time_of_requests_is_part_of_the_first_token(pool, run):
    plain, slow = measure(run, blocks(pool)), measure(run, blocks(pool), ttft_host_s=0.25)
    assert slow.ttft.mean == pytest.approx(plain.ttft.mean + 0.25)
    assert slow.tpot == plain.tpot


def test_a_timeline_is_in_the_trace_event_format(pool, tmp_path):
    """https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU"""
    load = open_loop(20.0, 300, 30, parse_lengths("constant"), count=40)
    run = simulate_requests(Deployment(pool, pool, Transfer(1e4, 0, 1e9, 1e-5)), load)
    data = json.loads(write_timeline(tmp_path / "trace.json", run).read_text())
    assert data["displayTimeUnit"] in ("ms", "ns")
    events = data["traceEvents"]
    for event in events:
        assert event["ph"] in "MXCbe"
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        if event["ph"] != "M":
            assert event["ts"] >= 0
        if event["ph"] == "X":
            assert event["dur"] > 0
        if event["ph"] == "C":
            assert event["args"]
            assert all(isinstance(value, int) for value in event["args"].values())
        if event["ph"] in "be":
            assert (event["cat"], type(event["id"])) == ("request", int)
    names = {(event["pid"], event["args"]["name"]) for event in events if event["ph"] == "M"}
    assert {(0, "requests"), (1, "worker 0"), (2, "worker 1")} <= names
    # Steps of a thread do not overlap, and phases nest.
    for worker in (1, 2):
        steps = [e for e in events if e["ph"] == "X" and e["pid"] == worker]
        ends = [step["ts"] + step["dur"] for step in steps]
        assert all(b["ts"] >= a - 1e-6 for a, b in zip(ends, steps[1:], strict=False))
    for request in range(40):
        own = [e for e in events if e["ph"] in "be" and e["id"] == request]
        assert [e["ph"] for e in own] == ["b", "e"] * 4
        times = [e["ts"] for e in own]
        assert times[0] == times[2]
        assert times[3:7:2] == times[4:8:2]
        assert times[7] == times[1]


def test_a_long_timeline_is_cut(run):
    data = timeline(run, most_steps=10)
    assert sum(event["ph"] == "X" for event in data["traceEvents"]) == 10
    assert data["otherData"] == {"steps": run.steps, "steps_written": 10}
