"""Attention: counts by hand and by brute force, monotonicity, coefficients found again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.calibrate.fit_attention import CONTEXT_ATTENTION, GENERATION_ATTENTION
from moesim.operators.attention import (
    AttentionCalls,
    AttentionKernel,
    AttentionShape,
    DecodeBlocks,
    DecodeCoefficients,
    PrefillBlocks,
    PrefillCoefficients,
    attended_pairs,
    attention_seconds,
    decode_geometry,
    key_blocks,
    prefill_geometry,
)
from tests.calibrate.synthetic_operators import H200, grid, held_out, table

HEAD = AttentionShape.plain(128, "bfloat16", "bfloat16")
PREFILL = PrefillCoefficients(
    query_rows=128,
    key_columns=128,
    shares_heads=True,
    launch_s=9e-6,
    block_s=1e-6,
    compute_efficiency=0.65,
    memory_efficiency=0.6,
    cache_efficiency=0.4,
    token_s=1e-10,
    longest_share=0.8,
    balance_exponent=2.0,
    slowdown=0.1,
)
DECODE = DecodeCoefficients(
    key_columns=64,
    heads_per_block=64,
    splits=True,
    launch_s=7e-6,
    block_s=2.5e-6,
    core_bytes_per_s=60e9,
    memory_efficiency=0.9,
    merge_s=2.5e-6,
    head_s=1e-9,
    overlap_exponent=2.5,
    blocks_per_core=1.0,
)


def calls(batch=1, query=1, past=0, heads=8, kv_heads=8, window=0):
    return AttentionCalls(
        *(np.atleast_1d(x) for x in (batch, query, past, heads, kv_heads, window))
    )


def seconds(coefficients, **call):
    return attention_seconds(calls(**call), HEAD, coefficients, H200)[0]


def test_pairs_of_query_and_key_by_hand():
    assert attended_pairs(4, 0) == 1 + 2 + 3 + 4
    assert attended_pairs(2, 3) == 4 + 5
    assert attended_pairs(4, 0, window_tokens=2) == 1 + 2 + 2 + 2
    assert attended_pairs(1, 1000, window_tokens=128) == 128


@settings(deadline=None, derandomize=True, max_examples=80)
@given(
    st.integers(1, 300),
    st.integers(0, 300),
    st.sampled_from([0, 1, 16, 100]),
    st.sampled_from([16, 64]),
    st.sampled_from([16, 32]),
)
def test_key_blocks_against_a_mask(query, past, window, span, columns):
    """A key block counts for a query block if any of its pairs is allowed."""
    q = past + np.arange(query)[:, None]
    k = np.arange(past + query)[None, :]
    mask = (k <= q) & ((k > q - window) if window else True)
    met = [
        sum(mask[i : i + span, j : j + columns].any() for j in range(0, past + query, columns))
        for i in range(0, query, span)
    ]
    mean, most = key_blocks(query, past, window, span, columns)
    assert mean == pytest.approx(np.mean(met))
    assert most == max(met)


def test_prefill_counts_by_hand():
    """Two sequences of 256 tokens, 8 heads on 2: blocks of 128 rows are 32 tokens of 4 heads."""
    g = prefill_geometry(
        calls(batch=2, query=256, heads=8, kv_heads=2), HEAD, PrefillBlocks(128, 128, True)
    )
    assert g.blocks.tolist() == [2 * 2 * 8]
    assert g.mean_key_blocks.tolist() == [1.5]  # four blocks meet one, four meet two
    assert g.most_key_blocks.tolist() == [2]
    assert g.key_block_flops == 2 * 128 * 128 * (128 + 128)
    assert g.query_bytes.tolist() == [2 * 256 * 8 * 128 * (2 + 2)]
    assert g.cache_bytes.tolist() == [2 * 256 * 2 * 128 * (2 + 2)]


def test_decode_counts_by_hand():
    """One query over 999 + 1 keys, 32 heads on 8: 16 blocks of 64 keys, split up to 16 ways."""
    g = decode_geometry(
        calls(batch=3, past=999, heads=32, kv_heads=8), HEAD, DecodeBlocks(64, 64, True)
    )
    assert g.cache_bytes.tolist() == [[3 * 8 * 1000 * 2 * 128 * 2]]
    assert g.key_blocks[0, :5].tolist() == [16, 8, 4, 2, 1]
    assert g.blocks[0, :5].tolist() == [24, 48, 96, 192, 384]
    assert g.allowed[0].tolist() == [True] * 5 + [False] * 4
    assert g.merged_bytes[0, :2].tolist() == [0, 2 * 3 * 32 * 2 * 128 * 4]


def test_a_window_bounds_the_cache_that_decode_reads():
    windowed = [seconds(DECODE, batch=8, past=past, window=128) for past in (127, 1000, 100_000)]
    assert windowed[0] == windowed[1] == windowed[2]
    assert seconds(DECODE, batch=8, past=100_000) > 3 * windowed[0]


def test_heads_that_share_a_cache_read_it_once():
    shared = decode_geometry(calls(heads=32, kv_heads=4, past=4095), HEAD, DECODE.blocks)
    own = decode_geometry(calls(heads=32, kv_heads=32, past=4095), HEAD, DECODE.blocks)
    assert own.cache_bytes[0, 0] == 8 * shared.cache_bytes[0, 0]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    st.integers(1, 64),
    st.integers(1, 6000),
    st.integers(0, 6000),
    st.sampled_from([1, 2, 8]),
    st.sampled_from([1, 4, 8]),
)
def test_prefill_is_above_its_roofline_and_monotone(batch, query, past, kv_heads, share):
    call = {"batch": batch, "query": query, "past": past, "kv_heads": kv_heads}
    call |= {"heads": kv_heads * share}
    now = seconds(PREFILL, **call)
    flops = 4 * batch * kv_heads * share * 128 * attended_pairs(query, past)
    assert now > flops / H200.peak_flop_per_s + PREFILL.launch_s
    for name, value in (("batch", 2 * batch), ("query", query + 512), ("past", past + 512)):
        assert seconds(PREFILL, **(call | {name: value})) >= now


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(1, 512), st.integers(0, 60_000), st.sampled_from([1, 2, 8]))
def test_decode_is_above_its_roofline_and_grows_with_batch(batch, past, kv_heads):
    call = {"batch": batch, "past": past, "heads": 8 * kv_heads, "kv_heads": kv_heads}
    now = seconds(DECODE, **call)
    moved = batch * kv_heads * (past + 1) * 2 * 128 * 2
    assert now > moved / H200.memory_bytes_per_s + DECODE.launch_s
    assert seconds(DECODE, **(call | {"batch": 2 * batch})) >= now
    # Longer by eight: another split may suit better, but never so as to win.
    assert seconds(DECODE, **(call | {"past": 8 * past + 7})) >= now


def attention_table(operator, rows, coefficients, **changes):
    columns = {"head_dim": np.full(len(rows["batch"]), 128)} | rows
    names = ("batch", "query_tokens", "past_tokens", "heads", "kv_heads", "window_tokens")
    measured = AttentionCalls(*(columns[name] for name in names))
    true_s = attention_seconds(measured, HEAD, coefficients, H200)
    labels = {"kv_dtype": "bfloat16"} | changes
    found = table(operator.name, columns, true_s, noise=0.02, **labels)
    return type(found)(operator.with_variant(found.frame), found.report)


HEADS = np.array([1, 2, 4, 8, 16, 32])


def grouped(rows):
    """Rows with kv_heads ≤ heads."""
    keep = rows["kv_heads"] <= rows["heads"]
    return {name: values[keep] for name, values in rows.items()}


def test_known_prefill_coefficients_are_found_again():
    rows = grouped(
        grid(
            batch=np.array([1, 4, 16]),
            query_tokens=np.array([1, 64, 256, 1024, 2048, 8192]),
            past_tokens=np.array([0]),
            heads=HEADS,
            kv_heads=np.array([1, 4, 8]),
            window_tokens=np.array([0]),
        )
    )
    errors, [fitted] = held_out(
        CONTEXT_ATTENTION, attention_table(CONTEXT_ATTENTION, rows, PREFILL)
    )
    assert np.median(errors) < 0.025
    assert fitted.variant == "full"
    assert fitted.coefficients.shares_heads
    assert fitted.coefficients.launch_s == pytest.approx(PREFILL.launch_s, rel=0.1)
    assert fitted.coefficients.compute_efficiency == pytest.approx(0.65, rel=0.15)
    assert AttentionKernel.parse(fitted.to_dict()) == fitted


def test_known_decode_coefficients_are_found_again_and_variants_are_apart():
    rows = grouped(
        grid(
            batch=np.array([1, 8, 64, 256]),
            query_tokens=np.array([1]),
            past_tokens=np.array([1, 127, 1023, 4095, 16383]),
            heads=HEADS,
            kv_heads=np.array([1, 4, 8]),
            window_tokens=np.array([0]),
        )
    )
    measured = attention_table(GENERATION_ATTENTION, rows, DECODE)
    errors, fitted = held_out(GENERATION_ATTENTION, measured)
    assert np.median(errors) < 0.025
    by_variant = {kernel.variant: kernel.coefficients for kernel in fitted}
    shared = by_variant["full, 2-32 heads"]
    assert shared.splits
    assert shared.heads_per_block == 64
    assert shared.memory_efficiency == pytest.approx(0.9, rel=0.1)
    assert shared.launch_s == pytest.approx(DECODE.launch_s, rel=0.25)


def test_other_kernels_and_formats_are_not_covered():
    rows = grid(
        batch=np.array([1, 2]),
        query_tokens=np.array([16]),
        past_tokens=np.array([0]),
        heads=HEADS,
        kv_heads=np.array([1]),
        window_tokens=np.array([0]),
    )
    fp4 = attention_table(CONTEXT_ATTENTION, rows, PREFILL, kv_dtype="fp4")
    assert CONTEXT_ATTENTION.fit(fp4, np.ones(len(fp4.frame), bool)) == {}
    assert np.isnan(CONTEXT_ATTENTION.predict(fp4, {})).all()


def test_a_variant_without_a_fit_takes_its_sibling():
    rows = grouped(
        grid(
            batch=np.array([1, 8, 64]),
            query_tokens=np.array([1]),
            past_tokens=np.array([1, 1023, 16383]),
            heads=HEADS,
            kv_heads=np.array([1, 8]),
            window_tokens=np.array([0]),
        )
    )
    measured = attention_table(GENERATION_ATTENTION, rows, DECODE)
    alone = rows["heads"] == rows["kv_heads"]
    fitted = GENERATION_ATTENTION.fit(measured, ~alone)
    assert {kernel.variant for kernel in fitted.values()} == {"full, 2-32 heads"}
    errors = GENERATION_ATTENTION.predict(measured, fitted) / measured.frame["latency_s"] - 1
    assert np.isfinite(errors).all()
    assert np.median(np.abs(errors[alone])) < 0.1
