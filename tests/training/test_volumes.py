"""Bytes on the way: closed forms, calls and a count of every element agree."""

import numpy as np
import pytest

from moesim.training.calls import backward
from moesim.training.layer import forward_calls
from moesim.training.volumes import (
    attention_sp_bytes,
    attention_tp_bytes,
    expert_parallel_bytes,
    expert_tensor_bytes,
    overlap_ratio,
    prefers_alltoall,
)

from .models import balanced, layout, small_model


def sent(calls, block):
    """Bytes of a layer that one device sends."""
    return sum(c.op.work.bytes for c in calls if c.communicates and c.block == block)


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_calls_send_what_the_closed_forms_say(ranks, top_k):
    model = small_model(num_experts_per_tok=top_k, num_key_value_heads=8)
    tokens, hidden = 2048, model.hidden_size
    parallel = balanced(model, layout(group=ranks, ep=ranks))
    calls = forward_calls(parallel)
    assert sent(calls, "attention") == pytest.approx(attention_sp_bytes(tokens, hidden, ranks, 2))
    tensor = forward_calls(
        balanced(model, layout(attention="tp", group=ranks, ep=1, expert_tp=ranks))
    )
    assert sent(tensor, "attention") == pytest.approx(attention_tp_bytes(tokens, hidden, ranks))
    assert sent(tensor, "moe") == pytest.approx(expert_tensor_bytes(tokens, hidden, ranks))
    if prefers_alltoall(ranks, top_k):
        expected = expert_parallel_bytes(tokens, hidden, ranks, top_k)
        assert parallel.alltoall
    else:
        expected = expert_tensor_bytes(tokens, hidden, ranks)
        assert not parallel.alltoall
    assert sent(calls, "moe") == pytest.approx(expected)


def count_head_exchange(tokens, heads, dim, ranks):
    """Elements that each device sends when tokens' heads go to the devices that own the heads."""
    holder, owner = np.arange(tokens) * ranks // tokens, np.arange(heads) * ranks // heads
    away = holder[:, None] != owner[None]
    return np.array([away[holder == rank].sum() * dim for rank in range(ranks)])


def test_head_exchange_against_a_count_of_every_element():
    model = small_model(num_key_value_heads=8)
    calls = forward_calls(balanced(model, layout(group=4, ep=4, micro_batch=1, sequence=256)))
    mixer = model.mixers[0]
    elements = sum(
        count_head_exchange(256, heads, mixer.head_dim, 4)
        for heads in (mixer.heads, mixer.kv_heads, mixer.kv_heads, mixer.heads)
    )
    assert np.all(elements == elements[0])
    assert sent(calls, "attention") == pytest.approx(2 * elements[0])


def test_dispatch_against_a_count_of_every_copy():
    """Tokens that go round the experts in order; copies for experts elsewhere are sent."""
    model, ranks, tokens = small_model(), 8, 2048
    calls = forward_calls(balanced(model, layout()))
    home = np.arange(tokens) * ranks // tokens
    chosen = (np.arange(tokens * 2) % model.experts).reshape(tokens, 2)
    away = chosen * ranks // model.experts != home[:, None]
    copies = np.array([away[home == rank].sum() for rank in range(ranks)])
    assert np.all(copies == copies[0])
    assert sent(calls, "moe") == pytest.approx(2 * copies[0] * model.hidden_size * 2)


@pytest.mark.parametrize("attention", ["tp", "sp"])
def test_gradients_travel_as_far_as_activations(attention):
    experts = {"ep": 8} if attention == "sp" else {"ep": 1, "expert_tp": 8}
    forward = forward_calls(balanced(small_model(), layout(attention=attention, **experts)))
    for block in ("attention", "moe"):
        there = sent(forward, block)
        assert sent(backward(forward, "none"), block) == pytest.approx(there)
        assert sent(backward(forward, "full"), block) == pytest.approx(2 * there)
        again = sent(backward(forward, "selective"), block)
        assert there <= again <= 2 * there


def test_the_published_volumes_of_one_layer():
    """352B, eight devices, 8,192 tokens (arXiv 2505.11432, section 3.1)."""
    assert attention_tp_bytes(8192, 4096, 8) == pytest.approx(117.4e6, rel=1e-3)
    assert expert_parallel_bytes(8192, 4096, 8, 3) == pytest.approx(44.0e6, rel=1e-3)
    assert overlap_ratio(14336, 200e9, 989e12, 8) == pytest.approx(4.97, rel=0.01)
