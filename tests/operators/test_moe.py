"""The expert layer's physics: bounds, monotonicity, and what the shapes conserve."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from moesim.operators.moe import (
    TILES,
    MoeCoefficients,
    MoeDevice,
    MoeShapes,
    moe_time_s,
    padded_tiles,
)
from moesim.operators.moe_kernels import family, tile_choice, weight_bytes

HOPPER = MoeDevice(*(np.array(x) for x in (4.8e12, 989e12, 132.0, 50e6)))
GOOD = MoeCoefficients(
    launch_s=2e-5,
    active_expert_s=1e-7,
    local_expert_s=1e-8,
    copy_s=5e-10,
    group_copy_s=5e-10,
    weight_bandwidth_share=0.9,
    activation_bandwidth_share=0.5,
    group_bandwidth_share=2.0,
    tile_rows=40.0,
    row_cost=1.3,
    overlap_exponent=2.0,
    k_step_s=3e-9,
    wave_weight=1.0,
    k_prologue=200.0,
    k_prologue_memory=100.0,
    small_bandwidth=1.0,
    large_bandwidth=0.8,
    small_cost=1.0,
    large_cost=1.5,
    cache_penalty=0.2,
)
loads = arrays.arrays(np.int64, (3, 8), elements=st.integers(0, 3000))
bounded = settings(deadline=None, derandomize=True, max_examples=60)


def layer(tokens, hidden=4096.0, width=1536.0, weight=2.0):
    """Layers of ``[rows, experts]`` loads on one device that is its own group."""
    tokens = np.asarray(tokens, float)
    rows = len(tokens)
    full = np.full(rows, 1.0)
    return MoeShapes(
        hidden=full * hidden,
        width=full * width,
        input_matrices=full * 2,
        weight_bytes=full * weight,
        activation_bytes=full * 2,
        local_experts=full * tokens.shape[1],
        group_copies=tokens.sum(1),
        active=(tokens > 0).sum(1).astype(float),
        copies=tokens.sum(1),
        squared_copies=(tokens**2).sum(1),
        tiles=padded_tiles(tokens),
        tile_allowed=np.ones((len(TILES), rows), bool),
        variant=np.zeros(rows, np.int8),
    )


@bounded
@given(loads, st.integers(0, 7), st.integers(1, 500))
def test_more_tokens_are_never_faster(tokens, expert, more):
    fuller = tokens.copy()
    fuller[:, expert] += more
    slower = moe_time_s(layer(fuller), HOPPER, GOOD)
    assert (slower >= moe_time_s(layer(tokens), HOPPER, GOOD)).all()


@bounded
@given(loads, st.sampled_from(["memory_bytes_per_s", "peak_flop_per_s"]))
def test_a_better_device_is_never_slower(tokens, what):
    better = replace(HOPPER, **{what: getattr(HOPPER, what) * 1.5})
    here = moe_time_s(layer(tokens), HOPPER, GOOD)
    assert (moe_time_s(layer(tokens), better, GOOD) <= here * (1 + 1e-12)).all()


@bounded
@given(loads)
def test_nothing_beats_the_roofline(tokens):
    """Perfect shares, no overheads: still at least the weights read once and the FLOPs done."""
    perfect = GOOD.model_copy(
        update={"weight_bandwidth_share": 1.0, "row_cost": 1.0, "overlap_exponent": 8.0}
    )
    shapes = layer(tokens)
    elements = 3 * 4096 * 1536
    memory_s = shapes.active * elements * 2 / HOPPER.memory_bytes_per_s
    compute_s = shapes.copies * elements * 2 / HOPPER.peak_flop_per_s
    seconds = moe_time_s(shapes, HOPPER, perfect)
    assert (seconds >= np.maximum(memory_s, compute_s)).all()


@bounded
@given(loads)
def test_tiles_hold_every_token_and_no_more_than_one_tile_too_many(tokens):
    tiles = padded_tiles(tokens)
    held = tiles * TILES[:, None]
    assert (held >= tokens.sum(1)).all()
    assert (held < tokens.sum(1) + TILES[:, None] * np.maximum((tokens > 0).sum(1), 1)).all()
    assert (tiles >= (tokens > 0).sum(1)).all()


def test_skew_makes_a_small_batch_faster_and_a_large_one_slower():
    """Fewer active experts read fewer weights; measured rows show it (TensorRT-LLM on H200)."""
    small = moe_time_s(layer([[1] * 8, [8] + [0] * 7]), HOPPER, GOOD)
    assert small[1] < small[0]
    large = moe_time_s(layer([[2048] * 8, [16384] + [0] * 7]), HOPPER, GOOD)
    assert large[1] > 0.8 * large[0]


def test_idle_devices_take_the_launch_alone():
    idle = moe_time_s(layer([[0] * 8]), HOPPER, GOOD)
    assert idle[0] == pytest.approx(GOOD.launch_s + 8 * GOOD.local_expert_s, rel=1e-6)


def test_a_kernel_with_fewer_tiles_to_choose_from_is_never_faster():
    shapes = layer([[1, 5, 100, 900, 0, 0, 3, 64]])
    free = moe_time_s(shapes, HOPPER, GOOD)
    for index in range(len(TILES)):
        only = np.zeros_like(shapes.tile_allowed)
        only[index] = True
        assert moe_time_s(replace(shapes, tile_allowed=only), HOPPER, GOOD) >= free


def test_vector_round_trip():
    assert MoeCoefficients.of_vector(GOOD.vector()) == GOOD


def tiles_of(*arguments):
    allowed, variant = tile_choice(*arguments)
    return [TILES[column].tolist() for column in allowed.T], variant.tolist()


def test_sglang_default_switches_where_its_source_says():
    """fused_moe_triton_config.py: 16 rows while tokens <= local experts, then 64."""
    one = np.ones(2)
    tiles, variant = tiles_of(
        "sglang_fused_moe_triton",
        "bfloat16",
        "h200_sxm",
        np.array([64, 65]),
        one,
        64 * one,
        1536 * one,
    )
    assert tiles == [[16], [64]]
    assert variant == [1, 2]


def test_a_tuned_shape_may_use_any_tile():
    """E=128,N=384,device_name=NVIDIA_H200.json is in sglang 0.5.14."""
    tiles, variant = tiles_of(
        "sglang_fused_moe_triton",
        "bfloat16",
        "h200_sxm",
        np.array([4]),
        np.array([32]),
        np.array([128.0]),
        np.array([384.0]),
    )
    assert tiles == [TILES.tolist()]
    assert variant == [0]


def test_vllm_default_by_tokens():
    tokens = np.array([32, 33, 96, 97, 512, 513])
    one = np.ones(6)
    tiles, _ = tiles_of(
        "vllm_x_triton_tritonexperts", "bfloat16", "h200_sxm", tokens, one, 7 * one, 333 * one
    )
    assert tiles == [[16], [32], [32], [64], [64], [128]]


def test_marlin_counts_the_copies_of_all_ranks_against_its_own_experts():
    """fused_marlin_moe: the first tile of 8 … 64 with copies / experts / tile below 0.9."""
    copies = np.array([8.0, 8 * 14.4, 8 * 28.8, 8 * 1000])
    experts = np.full(4, 8.0)
    tiles, _ = tiles_of("x_marlin_y", "int4_wo", "h200_sxm", copies, copies, experts, experts)
    assert tiles == [[16], [32], [64], [64]]


def test_kernels_that_tune_themselves_use_any_tile():
    tiles, variant = tiles_of(
        "moe_torch_flow_cutlass",
        "fp8",
        "h200_sxm",
        np.array([9]),
        np.ones(1),
        np.ones(1),
        np.ones(1),
    )
    assert tiles == [TILES.tolist()]
    assert variant == [0]


@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        ("vllm_fp8moe_triton_tritonexperts", "triton"),
        ("sglang_marlin_moe_situ_as_silu", "marlin"),
        ("moe_torch_flow_nongated", "cutlass"),
        ("vllm_fp8moe_flashinfer_trtllm_trtllmfp8expertsmodular", "flashinfer_trtllm"),
        ("deepgemm", "deepgemm"),
    ],
)
def test_family(kernel, name):
    assert family(kernel) == name


def test_weight_bytes():
    assert weight_bytes("x", "nvfp4") == 0.5625  # 4 bits and an 8-bit scale per 16
    assert weight_bytes("sglang_fused_moe_triton", "w4a16_mxfp4") == 2.0
