"""Prices of a step: rooflines by hand, fitted kernels within physics, intervals, watts."""

from dataclasses import replace
from math import hypot

import pytest

from moesim.cluster import load_cluster
from moesim.errors import InputError
from moesim.forward.energy import step_energy
from moesim.forward.machine import Links, Machine
from moesim.forward.request import StepRequest, run_request
from moesim.forward.roofline import roofline_price, roofline_s
from moesim.forward.work import CollectiveWork, GemmWork, MoveWork, Op, TransferWork
from moesim.hardware import Device, load_device
from moesim.intervals import add_intervals
from moesim.operators.power import device_power, shipped_power
from moesim.operators.roofline_errors import SIZES_S, roofline_interval, shipped_roofline_errors
from moesim.schema import Evidence

MODELS = (
    "deepseek-v3",
    "mixtral-8x7b",
    "qwen3-235b-a22b-fp8",
    "gpt-oss-120b",
    "qwen3-next-80b-a3b",
)
"""MLA, plain, FP8, windows and MXFP4, recurrences."""

SHARES = {"experts": 1.6, "small": 1.1, "gemm": 1.3, "attention": 1.3, "collective": 1.6,
          "dispatch": 1.5}  # fmt: skip
"""By how much fitted kernels may beat the data sheet: shares of bandwidth above 1 are fitted where
caches serve part of the bytes, collectives are helped by switches that add up (NVLink SHARP), and
DeepEP's bytes here are those without the tokens that share a rank."""


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("phase", ["decode", "prefill"])
@pytest.mark.parametrize("layout", [{"tp": 8}, {"tp": 8, "ep": 8}, {"dp": 8}, {"tp": 2, "dp": 4}])
def test_no_call_beats_physics(model, phase, layout):
    batch, context = (64, 2048) if phase == "decode" else (8, 1024)
    if model == "qwen3-next-80b-a3b" and layout.get("tp") == 8:
        batch //= 2
    found = run_request(
        StepRequest(model, "8xh200_sxm", phase, batch, context, engine="sglang", **layout)
    )
    for priced in found.ops:
        least_s = roofline_s(priced.op.work, found.machine) / SHARES[priced.op.operator]
        assert priced.price.time_s >= least_s, priced.op.name
        assert 0 < priced.price.lo_s <= priced.price.hi_s
    assert found.step_s == pytest.approx(sum(priced.time_s for priced in found.ops))
    assert 0 < found.lo_s < found.hi_s


def test_rooflines_by_hand():
    machine = Machine(load_cluster("2x8xh200_sxm"), "sglang", "roofline")
    device = load_device("h200_sxm")
    narrow, wide = GemmWork(1, 4096, 4096, "bfloat16"), GemmWork(8192, 4096, 4096, "fp8")
    assert roofline_s(narrow, machine) == narrow.bytes / 4.8e12
    assert roofline_s(wide, machine) == wide.flops / 1979e12
    assert roofline_s(MoveWork(4.8e6), machine) == 1e-6
    up, out = 450e9, 50e9
    links = Links.of(machine.cluster)
    assert (links.domain_devices, links.up_bytes_per_s, links.out_bytes_per_s) == (8, up, out)
    one = CollectiveWork("all_reduce", 1e6, 8)
    assert roofline_s(one, machine) == pytest.approx(2 * 7 / 8 * 1e6 / up + 3.33e-6)
    both = CollectiveWork("all_reduce", 1e6, 16)
    far = 2 * 1 / 2 * 1e6 / 8 / out
    assert roofline_s(both, machine) == pytest.approx(
        roofline_s(one, machine) + far + device.nic.latency.si
    )
    sent = TransferWork("dispatch", "decode", 128, 7168, 7392.0, 8, 256, 16, 1.0)
    # Half of the copies leave the node, by a card that is nine times as slow.
    assert roofline_s(sent, machine) == pytest.approx(
        128 * 8 * 7392 / 2 / out + device.nic.latency.si
    )


def test_roofline_intervals_are_those_of_measured_kernels():
    found = shipped_roofline_errors()
    assert all(len(sizes) == len(SIZES_S) for sizes in found.intervals.values())
    assert found.intervals.keys() == found.shortest_s.keys() == found.rows.keys()
    assert sum(found.rows.values()) > 100_000
    # Fixed times make short kernels miss their roofline by more.
    short, long = roofline_interval("gemm", 0.5e-6), roofline_interval("gemm", 1e-3)
    assert short[0] > long[0] > 1
    assert short[1] > long[1]


def test_intervals_of_one_operator_add_up_and_others_by_squares():
    total, low, high = add_intervals(
        [("gemm", 10.0, 8.0, 12.0), ("gemm", 20.0, 17.0, 23.0), ("attention", 5.0, 1.0, 9.0)]
    )
    assert total == 35
    assert low == pytest.approx(35 - hypot(5, 4))
    assert high == pytest.approx(35 + hypot(5, 4))
    # A roofline lies below its interval.
    total, low, high = add_intervals([("gemm", 1.0, 2.0, 4.0)])
    assert (total, low, high) == (1, 2, 4)


def test_more_work_takes_longer():
    words = {"model": "mixtral-8x7b", "cluster": "8xh100_sxm", "routing": "balanced"}
    times = [run_request(StepRequest(batch=batch, **words)).step_s for batch in (1, 16, 256)]
    assert times == sorted(times)
    longer = run_request(StepRequest(batch=16, context=32_768, **words)).step_s
    assert longer > times[1]


def test_skew_costs_in_prefill():
    words = ("deepseek-v3", "8xh200_sxm", "prefill", 8, 2048)
    even = run_request(StepRequest(*words, dp=8, routing="balanced"))
    skewed = run_request(StepRequest(*words, dp=8, routing="power-law:1.2"))
    assert skewed.step_s > 1.05 * even.step_s


def test_a_roofline_knows_no_kernel():
    found = run_request(StepRequest("mixtral-8x7b", "8xh100_sxm", cost="roofline"))
    assert {priced.price.kernel for priced in found.ops} == {"roofline"}
    assert found.step_s < found.lo_s
    assert found.evidence is not Evidence.FITTED
    npu = run_request(StepRequest("mixtral-8x7b", "8xascend_910b3", cost="roofline"))
    assert {priced.price.kernel for priced in npu.ops} == {"roofline"}


@pytest.mark.parametrize("cluster", ["1xepyc_9554", "1xascend_910b3", "1xduplex"])
def test_kernels_of_gpus_say_nothing_of_other_devices(cluster):
    found = run_request(StepRequest("granite-3.0-1b-a400m", cluster, batch=4, context=256))
    says = found.machine.device.reached is not None
    assert {priced.price.kernel for priced in found.ops} == {
        "reached rates" if says else "roofline"
    }
    assert found.hi_s > 2 * found.lo_s


def test_a_pipeline_stage_holds_half():
    words = ("qwen3-235b-a22b", "8xh200_sxm", "decode", 64, 4096)
    whole = run_request(StepRequest(*words, tp=4, dp=2, ep=8))
    halved = run_request(StepRequest(*words, tp=4, pp=2, ep=4))
    assert halved.memory.attention == pytest.approx(whole.memory.attention / 2)
    assert halved.memory.experts == pytest.approx(whole.memory.experts)
    assert halved.shape.load.sequences == 32
    assert halved.batch_tokens == 64


def test_watts_of_a_measured_device():
    power = device_power(load_device("b200_sxm"))
    fit = shipped_power().fits[0]
    assert power.evidence is Evidence.FITTED
    assert power.watts(0, 0) == pytest.approx(fit.idle_share * 1000)
    assert power.watts(0, 1) == pytest.approx((fit.idle_share + fit.memory_share) * 1000)
    assert power.watts(1, 1) == 1000
    assert fit.median_error < 0.3
    assert fit.interval[0] < 1 < fit.interval[1]


def test_watts_of_other_devices():
    hopper = device_power(load_device("h100_sxm"))
    assert hopper.evidence is Evidence.SPEC
    assert hopper.limit_w == 700
    assert "b200_sxm" in hopper.source
    duplex = load_device("duplex")
    by_profile = device_power(duplex)
    # 3.48 pJ/bit and 0.23 pJ/FLOP (Duplex, MICRO 2024).
    assert by_profile.memory_w == pytest.approx(3.48e-12 * 8 * duplex.memory_bytes_per_s)
    assert by_profile.compute_w == pytest.approx(0.23e-12 * duplex.peak_flop_per_s("bf16"))
    assert device_power(load_device("h100_sxm").model_copy(update={"tdp": None})) is None


def test_energy_of_a_step_is_power_times_time():
    found = run_request(StepRequest("mixtral-8x7b", "8xb200_sxm", batch=32))
    energy = found.energy
    assert energy.j_per_token == pytest.approx(energy.device_w * found.step_s * 8 / 32)
    assert energy.lo_j_per_token < energy.j_per_token < energy.hi_j_per_token
    assert 400 < energy.device_w < 1000
    blind = Machine(found.machine.cluster, "sglang", "fitted")
    blind.__dict__["power"] = None
    assert step_energy(found.ops, blind, 8, 32, (found.step_s, found.lo_s, found.hi_s)) is None


def test_a_step_says_what_its_kernels_are():
    found = run_request(StepRequest("deepseek-v3", "8xh200_sxm", batch=64, dp=8))
    kernels = {priced.op.name: priced.price for priced in found.ops}
    assert kernels["moe.experts"].evidence is Evidence.FITTED
    assert "sglang" in kernels["moe.experts"].kernel
    assert "deepep" in kernels["moe.dispatch"].kernel
    other = run_request(replace(_request(found), engine="trtllm"))
    assert "trtllm" in {p.op.name: p.price for p in other.ops}["moe.experts"].kernel


def test_time_of_the_host_is_no_time_of_a_step():
    """vLLM's products in FP8 by blocks were measured at the pace of their host."""
    steps = {
        engine: run_request(StepRequest("minimax-m2.5", "4xb200_sxm", batch=64, engine=engine))
        for engine in ("vllm", "sglang")
    }
    prices = {
        engine: {priced.op.name: priced.price for priced in found.ops}["gqa.qkv"]
        for engine, found in steps.items()
    }
    assert prices["vllm"].time_s < 20e-6
    assert "vllm" not in prices["vllm"].kernel
    assert prices["vllm"].time_s == prices["sglang"].time_s


def _request(found):
    return StepRequest("deepseek-v3", found.machine.cluster.name, batch=64, dp=8)


def test_devices_that_say_what_kernels_reach_are_priced_by_it():
    machine = Machine(load_cluster("2x16xascend_910c"), "sglang", "fitted")
    shares = machine.device.reached
    assert shares is not None
    for op, share, call in (
        (Op("large", GemmWork(8192, 8192, 8192, "sq")), shares.compute, shares.matrix_call),
        (Op("thin", GemmWork(1, 8192, 8192, "sq")), shares.memory, shares.matrix_call),
        (Op("moved", MoveWork(1e9)), shares.memory, shares.vector_call),
        (Op("sent", CollectiveWork("all_gather", 1e12, 32)), shares.link, shares.collective_call),
    ):
        price = roofline_price(op, machine)
        least = roofline_s(op.work, machine)
        assert price.time_s == pytest.approx(least / share.si + call.si, rel=1e-3)
        assert least <= price.lo_s <= price.time_s <= price.hi_s
        assert price.evidence == "assumed"


def test_shares_are_at_most_all():
    device = load_device("ascend_910c").to_dict()
    device["reached"]["memory"]["value"] = "101 %"
    with pytest.raises(InputError, match="more than the whole"):
        Device.parse(device)
