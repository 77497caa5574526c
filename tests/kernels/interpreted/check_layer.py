"""A whole layer, and its experts alone, against float64."""

from __future__ import annotations

import pytest
import torch

from moesim.kernels.combine import combine_reference
from moesim.kernels.experts import ExpertWeights, expert_ffn, expert_ffn_reference
from moesim.kernels.grouped_gemm import interleave_gate_up
from moesim.kernels.language import INTERPRETED
from moesim.kernels.layer import moe_forward, moe_forward_reference
from moesim.kernels.permute import permute
from moesim.kernels.routing import Router

assert INTERPRETED, "run with TRITON_INTERPRET=1"

TOKENS, HIDDEN, INTER, EXPERTS = 19, 128, 96, 6
ERROR = {torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
FP8_ERROR = 3e-2
"""Rows between the GEMMs that round to another neighbour in e4m3, 1/16 away, are few."""


def layer(dtype, seed=0):
    torch.manual_seed(seed)
    gate, up = torch.randn(2, EXPERTS, INTER, HIDDEN) / HIDDEN**0.5
    down = torch.randn(EXPERTS, HIDDEN, INTER) / INTER**0.5
    weights = ExpertWeights(interleave_gate_up(gate, up).to(dtype), down.to(dtype))
    return torch.randn(TOKENS, HIDDEN).to(dtype), torch.randn(TOKENS, EXPERTS), weights


def error(got, expected):
    assert torch.isfinite(got).all()
    return ((got.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("dtype", ERROR)
@pytest.mark.parametrize("router", [Router(2), Router(3, "sigmoid", scale=2.5)], ids=str)
def test_layer(router, dtype):
    hidden, logits, weights = layer(dtype)
    bias = torch.rand(EXPERTS) if router.score == "sigmoid" else None
    got = moe_forward(hidden, logits, weights, router, bias=bias)
    assert got.dtype == dtype
    expected = moe_forward_reference(hidden, logits, weights, router, bias=bias)
    assert error(got, expected) < ERROR[dtype]


def test_layer_in_fp8():
    hidden, logits, weights = layer(torch.bfloat16)
    quantised = weights.quantised()
    got = moe_forward(hidden, logits, quantised, Router(2))
    assert got.dtype == torch.bfloat16
    assert error(got, moe_forward_reference(hidden, logits, quantised, Router(2))) < FP8_ERROR
    exact = moe_forward_reference(hidden, logits, weights, Router(2))
    assert FP8_ERROR < error(got, exact) < 0.1


def test_all_tokens_to_one_expert_and_nobody_elsewhere():
    hidden, logits, weights = layer(torch.float16)
    logits[:, 3] = 50.0
    got = moe_forward(hidden, logits, weights, Router(1))
    assert error(got, moe_forward_reference(hidden, logits, weights, Router(1))) < 2e-3


def test_no_tokens():
    hidden, logits, weights = layer(torch.float16)
    assert moe_forward(hidden[:0], logits[:0], weights, Router(2)).shape == (0, HIDDEN)


def test_two_devices_add_up_to_the_layer():
    """Each runs its half of the experts; ids of the other half name no row."""
    hidden, logits, weights = layer(torch.float16)
    whole = moe_forward_reference(hidden, logits, weights, Router(2))
    ids = logits.topk(2).indices.int()
    gates = logits.softmax(-1).gather(1, ids.long())
    gates = gates / gates.sum(-1, keepdim=True)
    total = torch.zeros(TOKENS, HIDDEN, dtype=torch.float64)
    half = EXPERTS // 2
    for first in (0, half):
        own = ExpertWeights(weights.w13[first : first + half], weights.w2[first : first + half])
        places = permute(ids - first, gates, half)
        y = expert_ffn(hidden, own, places.counts, gather=places.token, row_scale=places.weight)
        total += combine_reference(y, places.row)
    assert error(total, whole) < 2e-3


def test_experts_alone():
    hidden, _, weights = layer(torch.float16)
    counts = torch.tensor([4, 0, 9, 1, 0, 5], dtype=torch.int32)
    got = expert_ffn(hidden, weights, counts)
    assert error(got, expert_ffn_reference(hidden, weights, counts)) < 2e-3
