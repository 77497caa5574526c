"""Streaming kernels: work by hand, monotonicity, and coefficients found again."""

import numpy as np
import pytest

from moesim.calibrate.fit_streaming import STREAMING
from moesim.operators.fitted import nearest
from moesim.operators.streaming import (
    StreamCoefficients,
    StreamKernel,
    convolution_work,
    delta_rule_work,
    hyper_connection_work,
    quantise_work,
    role_of,
    stream_seconds,
)
from tests.calibrate.synthetic_operators import H200, grid, held_out, table

TRUE = StreamCoefficients(
    chunk_tokens=64,
    launch_s=4e-6,
    memory_efficiency=0.6,
    item_s=3e-6,
    step_s=1e-6,
    compute_efficiency=0.2,
    overlap_exponent=2.0,
)
SIZES = {"key_heads": 16, "key_dim": 128, "value_heads": 32, "value_dim": 128}
TOKENS = np.array([1, 2, 8, 64, 65, 256, 1024, 8192])


def kernel(**changes):
    values = {"system": "h200_sxm", "engine": "vllm", "version": "1.0", "kernel": "k"}
    return StreamKernel(**(values | {"processor": H200, "coefficients": TRUE} | changes))


def test_quantising_reads_two_bytes_and_writes_one():
    assert quantise_work(8, 128, writes=True).moved_bytes == 8 * 128 * 3
    assert quantise_work(8, 128, writes=False).moved_bytes == 8 * 128 * 2


def test_a_convolution_reads_and_writes_every_token_and_its_state():
    work = convolution_work(2, 100, 512, 4)
    assert work.moved_bytes == 2 * 512 * (200 + 6) * 2
    assert work.flops == 2 * 2 * 100 * 512 * 4
    assert work.lanes == 2 * 512


def test_decoding_moves_the_state_and_not_the_past():
    """Qwen3-Next's heads: 32 states of 128 × 128 in float32, read and written."""
    work = delta_rule_work(1, 1, **SIZES)
    state = 32 * 128 * 128 * 4 * 2
    assert work.moved_bytes == state + (2 * 16 * 128 + 2 * 32 * 128) * 2
    assert delta_rule_work(4, 1, **SIZES).moved_bytes == 4 * work.moved_bytes


def test_a_hyper_connection_moves_all_streams():
    assert hyper_connection_work(10, 64, 4).moved_bytes == 10 * 64 * 9 * 2


@pytest.mark.parametrize("more", ["batch", "query_tokens"])
def test_more_work_is_never_faster(more):
    calls = {"batch": np.full(8, 4), "query_tokens": np.full(8, 300)} | {more: TOKENS}
    assert (np.diff(stream_seconds(delta_rule_work(**calls, **SIZES), TRUE, H200)) >= 0).all()


def test_nothing_beats_the_memory():
    work = delta_rule_work(np.array([1, 64, 1024]), 1, **SIZES)
    assert (stream_seconds(work, TRUE, H200) > work.moved_bytes / H200.memory_bytes_per_s).all()


def test_the_fit_finds_what_made_the_data():
    operator = next(one for one in STREAMING if one.name == "gdn")
    rows = grid(
        batch=np.array([1, 4, 32, 256]),
        query_tokens=TOKENS,
        num_k_heads=np.array([4, 16]),
        num_v_heads=np.array([8, 16, 32]),
    )
    for name, value in {"head_k_dim": 128, "head_v_dim": 128, "d_model": 4096, "d_conv": 4}.items():
        rows[name] = np.full(len(rows["batch"]), value)
    work = delta_rule_work(
        rows["batch"], rows["query_tokens"], rows["num_k_heads"], 128, rows["num_v_heads"], 128
    )
    rows["model"] = rows["num_v_heads"]
    seconds = stream_seconds(work, TRUE, H200)
    errors, (fitted,) = held_out(operator, table("gdn", rows, seconds, noise=0.02, phase="context"))
    assert np.median(errors) < 0.03
    assert fitted.coefficients.chunk_tokens == 64
    assert fitted.coefficients.memory_efficiency == pytest.approx(0.6, rel=0.1)


def test_a_convolution_never_stands_in_for_a_recurrence():
    fits = [kernel(kernel="causal_conv1d_fn"), kernel(kernel="chunk_kda", system="h100_sxm")]
    found = nearest(fits, {"role": "recurrence", "system": "h200_sxm"})
    assert role_of(found.kernel) == "recurrence"
