"""Joules per token of served runs."""

import pytest

from moesim.hardware import load_device
from moesim.serving.request import LoadRequest, PoolRequest, ServingRequest
from moesim.serving.run import run_serving


def served(concurrency, **changes):
    load = LoadRequest(concurrency=concurrency, requests=4 * concurrency, isl=128, osl=32)
    given = {"pool": PoolRequest("2xh100_sxm"), "load": load} | changes
    return run_serving(ServingRequest("qwen3-30b-a3b", **given))


def test_power_times_time_is_energy():
    found = served(16)
    energy = found.energy
    device = load_device("h100_sxm")
    assert energy.device_w < device.tdp.si
    joules = energy.device_w * found.devices * found.metrics.duration_s
    tokens = float(found.schedule.output_tokens.sum())
    assert energy.j_per_token == pytest.approx(joules / tokens, rel=0.02)
    assert energy.lo_j_per_token < energy.j_per_token < energy.hi_j_per_token


def test_batches_share_what_weights_cost():
    assert served(64).energy.j_per_token < 0.5 * served(1).energy.j_per_token


def test_prefill_workers_count():
    pool = PoolRequest("1xh100_sxm", tp=1)
    alone = served(8, pool=pool)
    split = served(8, pool=pool, prefill=pool)
    assert split.devices == 2
    # Two devices, one of them idle most of the time, draw more than one and less than two busy.
    drawn = split.energy.device_w * 2
    assert alone.energy.device_w < drawn < 2 * alone.energy.device_w


def test_a_device_without_watts_has_no_energy():
    assert served(4, pool=PoolRequest("8xascend_910c"), cost="roofline").energy is None
