"""Ops around the GEMMs against references: exact where they count, close where they sum."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.kernels.combine import combine, combine_reference
from moesim.kernels.language import INTERPRETED
from moesim.kernels.permute import permute, permute_reference
from moesim.kernels.quantise import quantise_rows, quantise_rows_reference
from moesim.kernels.routing import Router, route, route_reference
from moesim.kernels.tile_table import ANY_ROWS, tile_table, tile_table_reference

assert INTERPRETED, "run with TRITON_INTERPRET=1"


@given(
    tokens=st.integers(0, 70),
    experts=st.sampled_from([1, 2, 5, 64, 100, 512]),
    top_k=st.integers(1, 10),
    score=st.sampled_from(["softmax", "sigmoid"]),
    renormalise=st.booleans(),
    biased=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=20, deadline=None)
def test_routing(tokens, experts, top_k, score, renormalise, biased, seed):
    router = Router(min(top_k, experts), score, renormalise, scale=2.5)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, experts, generator=generator) * 3
    bias = torch.rand(experts, generator=generator) if biased else None
    ids, weights = route(logits, router, bias)
    expected_ids, expected = route_reference(logits, router, bias)
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(weights.double(), expected, rtol=1e-5, atol=1e-7)


def test_routing_of_equal_and_of_broken_logits():
    logits = torch.zeros(3, 48)
    logits[1] = float("nan")
    logits[2, :] = float("-inf")
    logits[2, 7] = 1.0
    ids, weights = route(logits, Router(4))
    assert ids[0].tolist() == [0, 1, 2, 3]
    assert ((ids >= 0) & (ids < 48)).all()
    assert all(len(set(row)) == 4 for row in ids.tolist())
    assert torch.isnan(weights[1]).all()
    assert weights[2].tolist() == [1.0, 0.0, 0.0, 0.0]
    saturated = torch.tensor([[30.0, 40.0, 20.0]])
    assert route(saturated, Router(3, "sigmoid"))[0].tolist() == [[1, 0, 2]]


def test_routing_reads_any_strides():
    logits = torch.randn(48, 20).half().T
    ids, _ = route(logits, Router(3))
    assert torch.equal(ids, route_reference(logits, Router(3))[0])


@given(
    tokens=st.integers(0, 150),
    experts=st.sampled_from([1, 3, 32, 33, 300, 512]),
    top_k=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=20, deadline=None)
def test_permutation(tokens, experts, top_k, seed):
    """Ids of other devices' experts included."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(-1, experts + 2, (tokens, top_k), generator=generator, dtype=torch.int32)
    weights = torch.rand(tokens, top_k, generator=generator)
    got, expected = permute(ids, weights, experts), permute_reference(ids, weights, experts)
    for field in ("counts", "token", "row", "weight"):
        assert torch.equal(getattr(got, field), getattr(expected, field)), field


@given(
    histogram=st.lists(st.integers(0, 90), min_size=1, max_size=40),
    block_m=st.sampled_from([16, 64, 128]),
    fewest=st.sampled_from([1, 17, 40]),
    most=st.sampled_from([16, 39, ANY_ROWS]),
    short=st.integers(-3, 3),
)
@settings(max_examples=40, deadline=None)
def test_tile_table(histogram, block_m, fewest, most, short):
    counts = torch.tensor(histogram, dtype=torch.int32)
    rows = max(0, sum(histogram) + max(0, short))
    got = tile_table(counts, rows, block_m, fewest=fewest, most=most)
    expected = tile_table_reference(counts, rows, block_m, fewest=fewest, most=most)
    used = int(got.used)
    assert used == int(expected.used) <= got.capacity == expected.capacity
    assert torch.equal(got.tiles[:, :used], expected.tiles[:, :used])


@given(
    histogram=st.lists(st.integers(0, 90), min_size=1, max_size=40),
    threshold=st.integers(1, 64),
)
@settings(max_examples=20, deadline=None)
def test_two_tables_hold_every_row_once(histogram, threshold):
    counts = torch.tensor(histogram, dtype=torch.int32)
    rows = sum(histogram)
    seen = torch.zeros(rows, dtype=torch.int32)
    owner = torch.arange(len(histogram)).repeat_interleave(counts.long())
    for block_m, fewest, most in ((16, 1, threshold), (64, threshold + 1, ANY_ROWS)):
        table = tile_table(counts, rows, block_m, fewest=fewest, most=most)
        for expert, begin, end in table.tiles[:, : int(table.used)].T.tolist():
            assert 0 < end - begin <= block_m
            assert (owner[begin:end] == expert).all()
            seen[begin:end] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_combine(dtype):
    torch.manual_seed(0)
    y = torch.randn(40, 1100).to(dtype)
    row = torch.randperm(40)[:33].reshape(11, 3).int()
    row[4, 1] = -1
    row[5] = -1
    got, expected = combine(y, row), combine_reference(y, row)
    torch.testing.assert_close(got.double(), expected, rtol=1e-2, atol=1e-2)
    assert (got[5] == 0).all()
    assert torch.equal(combine(y[:, ::2], row), combine(y[:, ::2].contiguous(), row))


@given(rows=st.integers(0, 70), k=st.integers(1, 300), seed=st.integers(0, 2**16))
@settings(max_examples=15, deadline=None)
def test_quantisation_is_the_references_to_the_bit(rows, k, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, k, generator=generator) * torch.exp2(
        torch.randint(-20, 20, (rows, 1), generator=generator).float()
    )
    x[::3, : k // 2] = 0
    elements, scales = quantise_rows(x)
    expected, expected_scales = quantise_rows_reference(x)
    assert torch.equal(scales, expected_scales)
    # The interpreter's rounding drops the sign of what becomes zero; nothing depends on it.
    assert torch.equal(elements.float(), expected.float())
