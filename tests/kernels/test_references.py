"""The plain references against a plainer one: a loop over tokens and choices, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moesim.errors import InputError
from moesim.kernels.experts import ExpertWeights, expert_ffn, expert_ffn_work
from moesim.kernels.grouped_gemm import (
    grouped_gemm,
    grouped_gemm_reference,
    grouped_gemm_work,
    interleave_gate_up,
)
from moesim.kernels.layer import moe_forward, moe_forward_reference, moe_forward_work
from moesim.kernels.quantise import (
    dequantise_rows,
    dequantise_weights,
    quantise_rows,
    quantise_weights,
)
from moesim.kernels.routing import Router, route_reference

T, H, F, E = 9, 12, 10, 5


def layer() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, ExpertWeights]:
    torch.manual_seed(0)
    gate, up = torch.randn(2, E, F, H, dtype=torch.float64)
    w2 = torch.randn(E, H, F, dtype=torch.float64)
    return (
        torch.randn(T, H, dtype=torch.float64),
        torch.randn(T, E, dtype=torch.float64),
        gate,
        up,
        ExpertWeights(interleave_gate_up(gate, up), w2),
    )


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_a_layer_is_the_sum_over_the_choices_of_each_token(score, renormalise):
    x, logits, gate, up, weights = layer()
    router = Router(2, score, renormalise, scale=1.5)
    expected = torch.zeros(T, H, dtype=torch.float64)
    scores = logits.softmax(-1) if score == "softmax" else logits.sigmoid()
    for t in range(T):
        top = scores[t].topk(2)
        total = top.values.sum() if renormalise else 1.0
        for value, expert in zip(top.values, top.indices, strict=True):
            g, u = gate[expert] @ x[t], up[expert] @ x[t]
            y = weights.w2[expert] @ (g * torch.sigmoid(g) * u)
            expected[t] += 1.5 * value / total * y
    got = moe_forward_reference(x, logits, weights, router)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    on_cpu = moe_forward(x.float(), logits.float(), to(weights, torch.float32), router)
    torch.testing.assert_close(on_cpu.double(), expected, rtol=1e-3, atol=1e-3)


def to(weights: ExpertWeights, dtype: torch.dtype) -> ExpertWeights:
    return ExpertWeights(weights.w13.to(dtype), weights.w2.to(dtype))


def test_bias_changes_the_choice_but_not_the_weight():
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    ids, weights = route_reference(
        logits, Router(1, "sigmoid", renormalise=False), torch.tensor([5.0, 0.0, 0.0])
    )
    assert ids.tolist() == [[0]]
    assert weights.item() == pytest.approx(0.5)


def test_of_equal_scores_the_lower_expert_wins():
    ids, _ = route_reference(torch.zeros(3, 64), Router(4))
    assert ids.tolist() == [[0, 1, 2, 3]] * 3


def test_rows_past_the_last_group_are_zero_in_the_reference():
    x, w = torch.randn(4, 8), torch.randn(2, 6, 8)
    out = grouped_gemm_reference(x, w, torch.tensor([1, 2], dtype=torch.int32))
    assert torch.equal(out[3], torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(out[1:3].float(), x[1:3] @ w[1].T)


def test_fp8_blocks_come_back_within_half_a_step():
    """e4m3 has three bits of mantissa: half a step is 1/16 of a value, in its block's scale."""
    torch.manual_seed(0)
    x = torch.randn(3, 200) * 10
    x[1, :128] = 0
    back = dequantise_rows(*quantise_rows(x), torch.float32)
    largest = x.abs().max()
    assert ((back - x).abs() <= x.abs() / 16 + largest / 448 / 512).all()
    w = torch.randn(2, 130, 200)
    back = dequantise_weights(*quantise_weights(w), torch.float32)
    assert ((back - w).abs() <= w.abs() / 16 + w.abs().max() / 448 / 512).all()


def test_work_counts_active_experts_and_useful_products():
    work = grouped_gemm_work([3, 0, 5], 64, 32)
    assert work.flops == 2 * 8 * 64 * 32
    assert work.bytes == 2 * (2 * 64 * 32 + 8 * 32 + 8 * 64)
    gated = grouped_gemm_work([3, 0, 5], 64, 32, gated=True)
    assert gated.bytes == work.bytes - 2 * 8 * 32
    both = expert_ffn_work([3, 0, 5], 32, 32)
    assert both.flops == 6 * 8 * 32 * 32
    whole = moe_forward_work([3, 0, 5], 4, 32, 32, Router(2))
    assert whole.flops > both.flops
    assert whole.bytes > both.bytes
    assert both.least_s(1e12, 1e9) == both.bytes / 1e9


def test_fp8_weighs_half():
    bf16 = grouped_gemm_work([1], 1024, 1024)
    fp8 = grouped_gemm_work([1], 1024, 1024, dtype=torch.float8_e4m3fn)
    assert fp8.bytes == pytest.approx(bf16.bytes / 2, rel=0.01)


BAD = {
    "w": lambda a: a | {"w": a["w"].half()},
    "x": lambda a: a | {"x": a["x"][:, :7]},
    "counts": lambda a: a | {"counts": a["counts"].long()},
    "gather": lambda a: a | {"gather": torch.zeros(3)},
    "row_scale": lambda a: a | {"row_scale": torch.zeros(3)},
    "scales": lambda a: a | {"x": a["x"].to(FP8), "w": a["w"].to(FP8)},
}
FP8 = torch.float8_e4m3fn


@pytest.mark.parametrize("field", BAD)
def test_what_does_not_fit_is_named(field):
    arguments = {
        "x": torch.randn(4, 8),
        "w": torch.randn(2, 6, 8),
        "counts": torch.tensor([1, 2], dtype=torch.int32),
    }
    assert grouped_gemm(**arguments).shape == (4, 6)
    with pytest.raises(InputError) as caught:
        grouped_gemm(**BAD[field](arguments))
    assert caught.value.field == field


def test_expert_ffn_on_the_cpu_takes_fp8_weights():
    torch.manual_seed(0)
    weights = ExpertWeights(torch.randn(2, 64, 128) / 12, torch.randn(2, 128, 32) / 6)
    x, counts = torch.randn(6, 128), torch.tensor([4, 2], dtype=torch.int32)
    exact = expert_ffn(x, weights, counts)
    rough = expert_ffn(x, weights.quantised(), counts)
    assert 0 < (rough - exact).norm() / exact.norm() < 0.1
    assert np.isfinite(rough.numpy()).all()
