"""Latent attention: both forms by hand, modules, and coefficients found again."""

import numpy as np
import pytest

from moesim.calibrate.fit_mla import MLA
from moesim.operators.attention import AttentionCalls, DecodeCoefficients, PrefillCoefficients
from moesim.operators.gemm import GemmCoefficients, GemmKernel, gemm_seconds
from moesim.operators.mla import (
    MlaKernel,
    ModuleCoefficients,
    absorbed_head,
    expanded_head,
    mla_seconds,
    module_seconds,
    projections,
    with_kv_heads,
)
from tests.calibrate.synthetic_operators import H200, grid, held_out, table

OPERATORS = {operator.name: operator for operator in MLA}
PREFILL = PrefillCoefficients(
    query_rows=128,
    key_columns=128,
    shares_heads=False,
    launch_s=12e-6,
    block_s=2e-6,
    compute_efficiency=0.7,
    memory_efficiency=0.8,
    cache_efficiency=0.6,
    token_s=1e-10,
    longest_share=0.9,
    balance_exponent=1.5,
    slowdown=0.1,
)
DECODE = DecodeCoefficients(
    key_columns=64,
    heads_per_block=64,
    splits=True,
    launch_s=8e-6,
    block_s=4e-6,
    core_bytes_per_s=70e9,
    memory_efficiency=0.9,
    merge_s=2e-6,
    head_s=1e-9,
    overlap_exponent=2.5,
    blocks_per_core=1.0,
)
MODULE = ModuleCoefficients(
    host_s=2e-5, projection_efficiency=0.7, projection_memory_efficiency=0.8, norm_s=2e-9
)
HEADS = np.array([1, 2, 4, 8, 16, 32, 64, 128])


def kernel(attention, *, absorbed, module=None):
    return MlaKernel(
        system="h200_sxm",
        engine="vllm",
        version="1.0",
        kernel="k",
        dtype="bfloat16",
        kv_dtype="bfloat16",
        gemm_dtype="bfloat16" if module else "",
        absorbed=absorbed,
        processor=H200,
        gemm_processor=H200 if module else None,
        attention=attention,
        module=module,
    )


def calls_of(rows):
    names = ("batch", "query_tokens", "past_tokens", "heads", "heads")
    values = [rows[name] for name in names]
    return AttentionCalls(*values, np.zeros_like(values[0]))


def mla_table(name, rows, known, **labels):
    columns = rows | {"tp": np.ones_like(rows["batch"])}
    true_s = mla_seconds(calls_of(columns), known)
    return table(name, columns, true_s, noise=0.02, kv_dtype="bfloat16", **labels)


def decode_rows():
    return grid(
        batch=np.array([1, 8, 64, 256]),
        query_tokens=np.array([1]),
        past_tokens=np.array([1, 63, 1023, 4095, 16383, 65535]),
        heads=HEADS,
    )


def test_sizes_of_deepseek_v3():
    """576 elements per token are cached for all heads together (arXiv:2412.19437, section 2)."""
    latent = absorbed_head(2, 2)
    assert (latent.key_dim, latent.value_dim) == (576, 512)
    assert latent.cache_bytes_per_token == 576 * 2
    head = expanded_head(2, 2)
    assert (head.key_dim, head.value_dim) == (192, 128)
    assert head.cache_bytes_per_token == (192 + 128) * 2


def test_projections_count_the_published_parameters():
    """One layer's attention of DeepSeek-V3 has 187 M parameters; each costs 2 FLOP per token."""
    parameters = 7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 * 128 * 256 + 128 * 128 * 7168
    one = np.array([1])
    both = [projections(64 * one, 128 * one, "bfloat16", absorbed) for absorbed in (False, True)]
    for counted in both:
        assert counted.flops.sum() == 2 * 64 * parameters
    few = projections(one, 128 * one, "bfloat16", absorbed=False)
    assert few.flops.sum() == 2 * 64 * parameters  # one token pads to 64 rows
    assert few.memory_bytes.sum() == pytest.approx(2 * parameters, rel=0.01)


def test_a_module_is_its_attention_and_projections():
    one = np.array([1])
    around = projections(128 * one, 16 * one, "bfloat16", absorbed=False)
    free = module_seconds(np.array([1e-3]), around, MODULE, H200)[0]
    compute_s = around.flops[0] / (989.4e12 * 0.7)
    memory_s = around.memory_bytes[0] / (4.8e12 * 0.8)
    expected = 1e-3 + np.sqrt(compute_s**2 + memory_s**2).sum() + 128 * 2e-9
    assert free == pytest.approx(expected, rel=1e-6)
    busy = MODULE.model_copy(update={"host_s": 0.1})
    assert module_seconds(np.array([1e-3]), around, busy, H200)[0] == pytest.approx(0.1)


def test_heads_share_the_latent_in_the_absorbed_form_only():
    calls = calls_of(decode_rows())
    assert (with_kv_heads(calls, absorbed=True).kv_heads == 1).all()
    assert (with_kv_heads(calls, absorbed=False).kv_heads == calls.heads).all()


def test_decode_reads_the_cache_once_for_few_heads_and_grows_with_length():
    known = kernel(DECODE, absorbed=True)
    rows = decode_rows()
    found = mla_seconds(calls_of(rows), known).reshape(4, 6, len(HEADS))
    assert (np.diff(found, axis=0) >= 0).all()
    assert (np.diff(found, axis=1) >= 0).all()
    assert (np.diff(found, axis=2) >= -1e-12).all()
    moved = 256 * 65536 * 576 * 2 / H200.memory_bytes_per_s
    assert moved < found[-1, -1, 0] < 1.3 * moved
    assert found[-1, -1, 6] == pytest.approx(found[-1, -1, 0], rel=0.02)  # 64 heads: one block


@pytest.mark.parametrize("absorbed", [False, True])
def test_form_and_coefficients_of_prefill_are_found_again(absorbed):
    rows = grid(
        batch=np.array([1, 4, 16]),
        query_tokens=np.array([1, 64, 256, 1024, 2048, 4096]),
        past_tokens=np.array([0]),
        heads=HEADS,
    )
    known = kernel(PREFILL.model_copy(update={"shares_heads": absorbed}), absorbed=absorbed)
    errors, [fitted] = held_out(OPERATORS["context_mla"], mla_table("context_mla", rows, known))
    assert np.median(errors) < 0.03
    assert fitted.absorbed is absorbed
    assert fitted.module is None
    # Launch and blocks can stand in for one another, but times are known everywhere, without noise.
    calls = calls_of(rows | {"tp": np.ones_like(rows["batch"])})
    ratio = mla_seconds(calls, fitted) / mla_seconds(calls, known)
    assert np.abs(np.log(ratio)).max() < 0.1


def test_decode_coefficients_are_found_again():
    known = kernel(DECODE, absorbed=True)
    measured = mla_table("generation_mla", decode_rows(), known)
    errors, [fitted] = held_out(OPERATORS["generation_mla"], measured)
    assert np.median(errors) < 0.03
    assert fitted.attention.memory_efficiency == pytest.approx(0.9, rel=0.1)
    assert MlaKernel.parse(fitted.to_dict()) == fitted


def test_a_module_is_found_again_on_heads_that_were_not_seen():
    known = kernel(DECODE, absorbed=True, module=MODULE)
    rows = decode_rows()
    measured = mla_table("generation_mla_module", rows, known, gemm_dtype="bfloat16")
    errors, [fitted] = held_out(OPERATORS["generation_mla_module"], measured)
    assert np.median(errors) < 0.04
    assert fitted.module.projection_memory_efficiency == pytest.approx(0.8, rel=0.25)


def test_wide_expert_parallel_tables_give_the_cache_as_the_length():
    operator = OPERATORS["wideep_generation_mla"]
    rows = decode_rows()
    shifted = rows | {"query_tokens": rows["past_tokens"] + 1}
    shifted["past_tokens"] = np.zeros_like(rows["past_tokens"])
    frame = table("wideep_generation_mla", shifted, np.ones(len(rows["batch"]))).frame
    found = operator.calls(frame, np.arange(len(frame)))
    assert (found.past_tokens == rows["past_tokens"]).all()
    assert (found.query_tokens == 1).all()


def test_per_head_products_are_batched_multiplications():
    operator = OPERATORS["mla_bmm"]
    coefficients = GemmCoefficients(
        launch_s=2e-6,
        host_s=1e-6,
        tile_s=1e-6,
        compute_efficiency=0.5,
        core_bytes_per_s=80e9,
        memory_efficiency=0.8,
        split_s=1e-6,
        overlap_exponent=2.0,
        wave_quantisation=0.3,
    )
    rows = grid(stage=np.array([0, 1], np.int32), heads=HEADS, tokens=2 ** np.arange(13))
    before = rows["stage"] == 0
    known = GemmKernel(
        **{"system": "h200_sxm", "engine": "vllm", "version": "1.0", "kernel": "k"},
        dtype="bfloat16",
        processor=H200,
        tiling="whole",
        coefficients=coefficients,
    )
    # Queries of 128 to the latent of 512, and back to values of 128.
    n, k = np.where(before, 512, 128), np.where(before, 128, 512)
    true_s = gemm_seconds(rows["tokens"], n, k, known, batch=rows["heads"])
    measured = table("mla_bmm", rows, true_s, noise=0.02)
    frame = measured.frame
    labels = dict(frame.labels) | {"stage": ("mla_gen_pre", "mla_gen_post")}
    measured = type(measured)(type(frame)(frame.operator, frame.columns, labels), measured.report)
    errors, _ = held_out(operator, measured)
    assert np.median(errors) < 0.03
