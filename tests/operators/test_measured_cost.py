"""Experts priced by kernels that were measured on one's own GPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.bound import step_lower_bound
from moesim.calibrated_cost import CalibratedCost
from moesim.cluster import load_cluster
from moesim.cost_model import cost_in_words, cost_model
from moesim.errors import InputError, UsageError
from moesim.fitted_costs import expert_cost, link_cost
from moesim.forward.machine import Machine
from moesim.forward.request import StepRequest, run_request
from moesim.hardware import load_device
from moesim.measured_cost import LAYERS, MeasuredCost
from moesim.measured_kernels import MeasuredKernels, load_measured
from moesim.model import load_model
from moesim.operators.grouped_gemm import GroupedCoefficients, GroupedWork, grouped_s
from moesim.operators.moe import overhead_parts_s
from moesim.operators.moe_fits import moe_fit_for
from moesim.schema import Evidence
from moesim.step import StepEvaluator
from tests.operators.measured_files import PARALLEL, SERIAL, fits, loaded, written
from tests.step.problems import random_batches, random_placement

H200 = "h200_sxm"


def layer_of(measured, model="qwen3-30b-a3b", engine="vllm", devices=1):
    spec, device = load_model(model), load_device(H200)
    fit = moe_fit_for(device, "bfloat16", engine=engine)
    shipped = CalibratedCost.of(spec, device, fit, devices)
    return shipped, measured.cost(shipped)


def by_hand(of: GroupedCoefficients, tokens, hidden, width):
    """Both products of a gated layer, one term at a time."""
    total = 0.0
    for columns, depth in ((2 * width, hidden), (hidden, width)):
        read_s = np.where(tokens > 0, 2.0 * columns * depth / of.weight_bytes_per_s, 0.0).sum()
        padded = np.ceil(tokens / of.tile_rows) * of.tile_rows
        compute_s = (padded * 2.0 * columns * depth / of.flop_per_s).sum()
        p = of.overlap_exponent
        total += (read_s**p + compute_s**p) ** (1 / p) + (tokens > 0).sum() * of.expert_s
    return total


@settings(deadline=None, derandomize=True, max_examples=40)
@given(seed=st.integers(0, 2**32), most=st.sampled_from([2, 30, 3000]))
def test_products_come_from_the_file_and_the_rest_does_not(tmp_path_factory, seed, most):
    tokens = np.random.default_rng(seed).integers(0, most, 128).astype(float)
    folder = tmp_path_factory.mktemp("fits")
    shipped, cost = layer_of(loaded(folder, kernel="moesim"))
    assert isinstance(cost, MeasuredCost)
    products_s = by_hand(PARALLEL, tokens, 2048, 768)
    assert cost.products_s(tokens) == pytest.approx(products_s, rel=1e-9)
    around = overhead_parts_s(
        shipped.shapes(tokens[None]), shipped.device, shipped.fit.coefficients
    )
    around_s = sum(float(part[0]) for name, part in around.items() if name != "active_expert_s")
    layer = cost.time(tokens)
    assert layer.total_s == pytest.approx(around_s + products_s, rel=1e-9)
    assert layer.least_s == pytest.approx(products_s, rel=1e-9)
    assert layer.compute_s <= layer.total_s
    assert layer.memory_s <= layer.total_s
    # A GPU that is twice as fast: half the products, the same around them.
    _, twice = layer_of(loaded(folder, fits(2.0), kernel="moesim"))
    assert twice.time(tokens).total_s == pytest.approx(around_s + products_s / 2, rel=1e-9)


def test_products_are_those_that_the_fit_evaluates(tmp_path):
    """The same through ``grouped_s``, of which launches and rows are priced with the rest."""
    _, cost = layer_of(loaded(tmp_path, kernel="torch-loop"))
    rows = np.random.default_rng(1).integers(0, 40, (5, 128)).astype(float)
    coefficients = fits().fits[2].coefficients
    expected = np.zeros(5)
    for columns, depth in ((2 * 768, 2048), (2048, 768)):
        ones = np.ones(5)
        work = GroupedWork(rows, ones * 2 * columns * depth, ones * 2 * columns * depth, ones * 0)
        expected += grouped_s(coefficients, work) - coefficients.call_s
    assert cost.products_s(rows) == pytest.approx(expected, rel=1e-9)


def test_the_kernel_is_the_engines_own_or_the_one_named(tmp_path):
    measured = loaded(tmp_path)
    names = {engine: layer_of(measured, engine=engine)[1].fit.kernel
             for engine in ("vllm", "sglang", "trtllm")}  # fmt: skip
    assert names == {"vllm": "vllm-fused-moe", "sglang": "vllm-fused-moe", "trtllm": "moesim"}
    assert layer_of(loaded(tmp_path, kernel="torch-loop"))[1].fit.kernel == "torch-loop"
    alone = loaded(tmp_path, fits(kernels=("somebody-elses",)))
    assert layer_of(alone)[1].fit.kernel == "somebody-elses"


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    kernel=st.sampled_from(["moesim", "torch-loop"]),
    redundant=st.sampled_from([0, 4]),
    per_device=st.sampled_from([1, 3, 300]),
    comm=st.sampled_from(["home-rank", "chain"]),
)
def test_no_placement_beats_the_lower_bound(
    tmp_path_factory, seed, kernel, redundant, per_device, comm
):
    rng = np.random.default_rng(seed)
    batches = random_batches(rng, per_device=per_device)
    model, cluster = load_model("small-moe-30b-dims"), load_cluster("2x2xh200_sxm")
    measured = loaded(tmp_path_factory.mktemp("fits"), kernel=kernel)
    priced = StepEvaluator(
        batches, model, cluster, comm, "decode",
        expert_cost(model, cluster, measured, "vllm"),
        link_cost(model, cluster, measured, comm, "decode", per_device),
    )  # fmt: skip
    cost = priced.evaluate(random_placement(rng, redundant=redundant))
    assert 0 < step_lower_bound(priced, 8 + redundant) <= cost.step_s * (1 + 1e-12)
    assert cost.lo_s <= cost.step_s * (1 + 1e-12)
    assert cost.step_s <= cost.hi_s * (1 + 1e-12)


def step(cost, model="qwen3-30b-a3b", **words):
    return run_request(
        StepRequest(model, "4xh200_sxm", batch=64, routing="uniform", cost=cost, **words)
    )


@pytest.mark.parametrize("layout", [{"dp": 4}, {"ep": 4}, {}])
def test_a_step_takes_experts_from_the_file_and_all_else_as_before(tmp_path, layout):
    measured, plain = step(loaded(tmp_path, fits(0.5)), **layout), step("fitted", **layout)
    for own, other in zip(measured.ops, plain.ops, strict=True):
        if own.op.operator == "experts":
            assert "measured on NVIDIA H200" in own.price.kernel
            assert own.time_s > other.time_s
            assert own.price.lo_s <= own.price.time_s <= own.price.hi_s
            assert own.price.evidence is Evidence.FITTED
        else:
            assert own.price == other.price
    assert measured.step_s > plain.step_s


def test_plans_price_experts_as_steps_do(tmp_path):
    measured = loaded(tmp_path)
    model, cluster = load_model("qwen3-30b-a3b"), load_cluster("4xh200_sxm")
    found = step(measured, dp=4)
    experts = next(priced for priced in found.ops if priced.op.operator == "experts")
    tokens = experts.op.work.slot_tokens
    cost = expert_cost(model, cluster, measured, "sglang")
    seconds = float(cost.time(tokens).total_s.max(axis=-1).mean())
    assert seconds == pytest.approx(experts.price.time_s, rel=1e-12)
    assert cost.name == experts.price.kernel


def test_formats_that_the_file_does_not_measure_keep_their_price(tmp_path):
    measured = loaded(tmp_path)
    steps = (step(cost, "minimax-m2.5") for cost in (measured, "fitted"))
    own, other = ([priced.price for priced in found.ops] for found in steps)
    assert own == other
    model = load_model("qwen3-30b-a3b")
    words = cost_in_words(measured, model, "fp8_block", "sglang")
    assert "measures no experts in fp8_block" in words
    assert "vllm-fused-moe" in cost_in_words(measured, model, "bfloat16", "sglang")


def test_experts_that_are_stored_otherwise_keep_their_price(tmp_path):
    measured, change = loaded(tmp_path), ("ternary",)
    model = load_model("qwen3-30b-a3b", transforms=change)
    assert model.stores_experts_otherwise
    steps = (step(cost, transforms=change) for cost in (measured, "fitted"))
    own, other = ([priced.price for priced in found.ops] for found in steps)
    assert own == other
    assert "stored in this form" in cost_in_words(measured, model, "bfloat16", "sglang")


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
@pytest.mark.parametrize("devices", [1, 8])
def test_intervals_are_no_narrower_than_those_of_engines_layers(tmp_path, engine, devices):
    _, cost = layer_of(loaded(tmp_path), engine=engine, devices=devices)
    for tokens, regime in ((8, "decode"), (512, "mixed"), (8192, "prefill")):
        low, high = cost.interval(1e-3, tokens, 6e-4)
        known = LAYERS.get((engine, devices > 1)) or LAYERS["vllm", devices > 1]
        assert low <= min(known[regime][0], 1.0)
        assert high >= max(known[regime][1], 1.0)


def test_words_and_files():
    assert cost_model("fitted") == "fitted"
    assert cost_model("roofline") == "roofline"
    with pytest.raises(UsageError, match="--cost 'fited' is not known"):
        cost_model("fited")
    with pytest.raises(InputError, match="no such file"):
        cost_model("nowhere.json")


def test_a_file_that_changes_is_read_again(tmp_path):
    first = loaded(tmp_path)
    assert load_measured(first.named) is first
    assert loaded(tmp_path, fits(0.25, processor="Another")).fits.processor == "Another"


@pytest.mark.parametrize(
    ("device", "changes", "words"),
    [
        ("h100_sxm", {}, "another device than h100_sxm"),
        ("b200_sxm", {}, "another device than b200_sxm"),
        ("ascend_910b3", {}, "ascend_910b3 is none"),
        (H200, {"cores": 78}, "78 cores"),
        (H200, {"memory_bytes": 96e9}, "96 GB"),
        (H200, {"cores": None}, "another device"),
        (H200, {"device": "cpu"}, "calibrate measure --device cpu"),
    ],
)
def test_kernels_of_another_device_are_refused(tmp_path, device, changes, words):
    measured = loaded(tmp_path, fits(**changes))
    with pytest.raises(InputError) as error:
        measured.check(load_device(device))
    assert words in str(error.value)
    cluster = load_cluster(f"2x{device}")
    with pytest.raises(InputError):
        Machine(cluster, "sglang", measured)
    with pytest.raises(InputError):
        expert_cost(load_model("qwen3-30b-a3b"), cluster, measured, "sglang")


def test_a_gpu_that_is_known_from_yaml_alone_takes_them(tmp_path):
    device = load_device(H200).model_copy(update={"name": "my_gpu"})
    measured = loaded(tmp_path)
    measured.check(device)
    shipped = CalibratedCost.of(
        load_model("qwen3-30b-a3b"), device, moe_fit_for(device, "bfloat16", engine="vllm"), 1
    )
    cost = measured.cost(shipped)
    assert cost.evidence is Evidence.SPEC
    bare = device.model_copy(update={"cores": None})
    with pytest.raises(InputError, match="132, as NVIDIA H200 has"):
        measured.check(bare)


def test_serial_kernels_split_at_few_rows(tmp_path):
    """The bound holds although an expert of few rows is not packed."""
    _, cost = layer_of(loaded(tmp_path, kernel="torch-loop"))
    assert SERIAL.few_rows == 8
    whole, halves = np.zeros(128), np.zeros((2, 128))
    whole[0], halves[:, 0] = 12, 6
    assert cost.lower_bound_s(whole, 2.0, 2) <= cost.time(halves).total_s.max()


def test_what_is_no_such_file(tmp_path):
    path = written(tmp_path)
    with pytest.raises(InputError, match="no such kernel") as error:
        load_measured(f"{path}:nix")
    assert "torch-loop" in str(error.value)
    path.write_text('{"schema": "moesim.kernels/1"}')
    with pytest.raises(InputError, match="calibrate fit --source"):
        load_measured(str(path))
    path.write_text('{"schema": "moesim.fitted-moe/1"}')
    with pytest.raises(InputError, match="grouped-gemm/1"):
        load_measured(str(path))
    assert isinstance(replace(loaded(tmp_path), kernel=None), MeasuredKernels)
