"""Memory of a group, divided between tokens and states."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from moesim.errors import InfeasibleError
from moesim.serving.cache_sizes import STATE_SHARE, UNBOUNDED, cache_sizes
from moesim.serving.engines import find_engine


def tables(weights, per_token, per_sequence, memory=100e9):
    return SimpleNamespace(
        memory=SimpleNamespace(total=weights),
        memory_bytes=memory,
        cache_bytes_per_token=per_token,
        state_bytes_per_sequence=per_sequence,
        cache_bytes=lambda share: memory * share - weights,
    )


def test_tokens_take_what_weights_leave():
    policy = find_engine("vllm", memory_share=0.8)
    assert cache_sizes(tables(60e9, 1e5, 0), policy, 64, "x") == (200_000, 1024)


def test_states_are_set_aside_for_the_sequences_that_come():
    policy = find_engine("vllm", memory_share=0.8)
    tokens, most = cache_sizes(tables(60e9, 1e5, 1e7), policy, 64, "x")
    assert (tokens, most) == (int((20e9 - 64e7) / 1e5), int(20e9 * STATE_SHARE / 1e7))
    # … and large ones bound how many are at work.
    assert cache_sizes(tables(60e9, 1e5, 1e9), policy, 64, "x") == (110_000, 9)


def test_states_alone():
    assert cache_sizes(tables(60e9, 0, 1e7), find_engine("vllm"), 64, "x")[0] == UNBOUNDED


def test_a_model_that_does_not_fit():
    with pytest.raises(InfeasibleError, match=r"x does not fit: .* 95 GB, .* 90 GB"):
        cache_sizes(tables(95e9, 1e5, 0), find_engine("vllm"), 64, "x")
