"""Grouped GEMM: both kernels, all epilogues, against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.kernels import grouped_gemm as module
from moesim.kernels.config import GemmConfig, Part
from moesim.kernels.grouped_gemm import grouped_gemm, grouped_gemm_reference
from moesim.kernels.language import INTERPRETED
from moesim.kernels.quantise import BlockScales, quantise_rows_reference, quantise_weights
from moesim.kernels.targets import TARGETS

assert INTERPRETED, "run with TRITON_INTERPRET=1"

TILE = (Part(GemmConfig("tile", 64, 128, 64, 4, 3, group_m=2)),)
ROW = (Part(GemmConfig("row", 16, 128, 64, 4, 3)),)
SPLIT = (Part(GemmConfig("row", 32, 64, 64, 4, 3, split_k=3)),)
BOTH = (Part(ROW[0].config, 1, 16), Part(TILE[0].config, 17))
WAYS = {"tile": TILE, "row": ROW, "split": SPLIT, "both": BOTH}
WIDE = {
    "tile": (Part(GemmConfig("tile", 64, 128, 128, 4, 3)),),
    "row": (Part(GemmConfig("row", 16, 64, 128, 4, 3)),),
    "split": (Part(GemmConfig("row", 16, 128, 128, 4, 3, split_k=2)),),
}
ERROR = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float8_e4m3fn: 8e-3}
"""Rounding of the result: 2⁻¹¹ and 2⁻⁸ relative, and the interpreter truncates to bfloat16."""


@pytest.fixture(autouse=True)
def _unwritten_memory_is_nan(monkeypatch):
    empty = torch.empty

    def poisoned(*size, **options):
        tensor = empty(*size, **options)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(module.torch, "empty", poisoned)


def operands(histogram, n, k, dtype, *, spare=0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = sum(histogram)
    x = torch.randn(rows + spare, k, generator=generator)
    w = torch.randn(len(histogram), n, k, generator=generator) / k**0.5
    counts = torch.tensor(histogram, dtype=torch.int32)
    if dtype != torch.float8_e4m3fn:
        return x.to(dtype), w.to(dtype), counts, None
    x8, x_scale = quantise_rows_reference(x)
    w8, w_scale = quantise_weights(w)
    return x8, w8, counts, BlockScales(x_scale, w_scale)


def compare(x, w, counts, parts, **options):
    """The kernels' result against the reference; rows of no expert stay unwritten."""
    out = grouped_gemm(x, w, counts, parts=parts, **options)
    expected = grouped_gemm_reference(x, w, counts, **options)
    rows = int(counts.sum())
    assert out.shape == expected.shape
    assert torch.isnan(out[rows:]).all()
    out, expected = out[:rows].double(), expected[:rows]
    assert torch.isfinite(out).all()
    if rows:
        scale = expected.norm() / max(1, expected.numel()) ** 0.5
        assert (out - expected).norm() <= ERROR[x.dtype] * expected.norm()
        assert (out - expected).abs().max() <= 16 * ERROR[x.dtype] * max(
            scale.item(), expected.abs().max().item() / 8
        )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "histogram",
    [[0, 1, 70, 0, 17], [130, 0, 0], [1], [0, 0], [16, 17, 32]],
    ids=["ragged", "all-to-one", "one-row", "no-rows", "full-tiles"],
)
def test_ragged_groups(histogram, way):
    compare(*operands(histogram, 192, 128, torch.float16)[:3], WAYS[way])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("way", WAYS)
def test_gather_swiglu_and_router_weight(way, dtype):
    x, w, counts, _ = operands([5, 0, 33, 1], 160, 112, dtype, spare=3)
    rows = int(counts.sum())
    gather = torch.randint(0, x.shape[0], (rows + 2,), dtype=torch.int32)
    scale = torch.rand(rows + 2)
    compare(x, w, counts, WAYS[way], gather=gather, gated=True, row_scale=scale)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("way", WIDE)
def test_fp8_with_block_scales(way, gated):
    x, w, counts, scales = operands([3, 0, 40], 160, 320, torch.float8_e4m3fn, spare=1)
    compare(x, w, counts, WIDE[way], scales=scales, gated=gated)
    gather = torch.randint(0, x.shape[0], (44,), dtype=torch.int32)
    compare(x, w, counts, WIDE[way], scales=scales, gated=gated, gather=gather)


@given(
    histogram=st.lists(st.sampled_from([0, 0, 1, 2, 15, 16, 17, 40, 65]), min_size=1, max_size=6),
    n=st.integers(1, 100).map(lambda half: 2 * half),
    k=st.one_of(st.integers(1, 10).map(lambda part: 16 * part), st.integers(1, 150)),
    way=st.sampled_from(sorted(WAYS)),
    dtype=st.sampled_from([torch.float16, torch.bfloat16]),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    spare=st.integers(0, 3),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=20, deadline=None)
def test_any_histogram_and_size(histogram, n, k, way, dtype, flags, spare, seed):
    x, w, counts, _ = operands(histogram, n, k, dtype, spare=spare, seed=seed)
    rows = x.shape[0]
    gather, gated, scaled = flags
    generator = torch.Generator().manual_seed(seed)
    compare(
        x,
        w,
        counts,
        WAYS[way],
        gather=torch.randint(0, max(1, rows), (rows,), generator=generator, dtype=torch.int32)
        if gather and rows
        else None,
        gated=gated,
        row_scale=torch.rand(rows, generator=generator) if scaled else None,
    )


@pytest.mark.parametrize("experts", [1, 2, 64, 512])
def test_numbers_of_experts(experts):
    generator = np.random.default_rng(experts)
    histogram = np.zeros(experts, dtype=int)
    active = generator.choice(experts, min(experts, 12), replace=False)
    histogram[active] = generator.integers(1, 20, len(active))
    for way in ("tile", "row"):
        compare(*operands(histogram.tolist(), 64, 64, torch.float16)[:3], WAYS[way])


def strided_rows(x, w):
    wide = torch.full((x.shape[0], x.shape[1] + 16), 9.0, dtype=x.dtype)
    wide[:, : x.shape[1]] = x
    return wide[:, : x.shape[1]], w


def unaligned_rows(x, w):
    wide = torch.full((x.shape[0], x.shape[1] + 1), 9.0, dtype=x.dtype)
    wide[:, 1:] = x
    return wide[:, 1:], w


def columns_first(x, w):
    return x.T.contiguous().T, w


def experts_last(x, w):
    return x, w.transpose(0, 1).contiguous().transpose(0, 1)


def repeated_row(x, w):
    return x[:1].expand(x.shape[0], -1), w


@pytest.mark.parametrize(
    "change", [strided_rows, unaligned_rows, columns_first, experts_last, repeated_row]
)
def test_strides(change):
    x, w, counts, _ = operands([4, 0, 21], 96, 128, torch.float16)
    x, w = change(x, w)
    for way in ("tile", "split"):
        compare(x, w, counts, WAYS[way])


def far_apart(distance, count):
    """Float16 memory that costs nothing where it is not touched."""
    store = torch.UntypedStorage(2 * distance * count)
    return torch.tensor([], dtype=torch.float16).set_(store, 0, (distance * count,), (1,))


def test_offsets_beyond_32_bits():
    """Rows, and experts, that lie more than 2³¹ elements apart."""
    apart, rows, experts, n, k = 2**22, 520, 515, 32, 64
    memory = far_apart(apart, rows)
    x = memory.as_strided((rows, k), (apart, 1))
    w = memory.as_strided((experts, n, k), (apart, k, 1), 4096)
    used_rows, used_experts = [519, 3, 514, 1], [1, 513, 514]
    torch.manual_seed(0)
    for row in used_rows:
        x[row] = torch.randn(k)
    for expert in used_experts:
        w[expert] = torch.randn(n, k) / 8
    counts = torch.zeros(experts, dtype=torch.int32)
    counts[used_experts] = torch.tensor([1, 1, 2], dtype=torch.int32)
    gather = torch.tensor(used_rows, dtype=torch.int32)
    for way in ("tile", "row"):
        compare(x, w, counts, WAYS[way], gather=gather)


def test_rows_of_one_experts_weights_beyond_32_bits(monkeypatch):
    """As in weights [N, E, K]; through a descriptor, and through pointers as on Ampere."""
    x, exact, counts, _ = operands([3, 2], 40, 64, torch.float16)
    w = far_apart(2**26, 40).as_strided((2, 40, 64), (128, 2**26, 1))
    w.copy_(exact)
    for way in ("tile", "row"):
        compare(x, w, counts, WAYS[way])
    monkeypatch.setattr("moesim.kernels.launch.target_of", lambda device: TARGETS["sm_80"])
    compare(x, w, counts, TILE)


def test_the_models_own_choice_is_right_too():
    compare(*operands([2, 0, 1, 9], 128, 256, torch.float16)[:3], None)


def test_counts_that_promise_too_much_do_not_write_behind_the_result():
    x, w, counts, _ = operands([4, 6], 64, 64, torch.float16)
    whole = torch.full((64, 64), 7.0, dtype=torch.float16)
    counts[1] = 40
    from moesim.kernels.launch import Operands, TileTables, launch

    for way in ("tile", "row"):
        launch(
            Operands(x, w, whole[:10], None, None, None, False),
            TileTables(counts, 10),
            WAYS[way],
        )
        assert (whole[10:] == 7).all()
