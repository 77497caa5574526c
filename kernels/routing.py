"""Top-k routing: router logits → the experts of every token and their weights.

    softmax   p = softmax(logits); the K largest, renormalised or not   (Mixtral, Qwen3, gpt-oss)
    sigmoid   s = σ(logits); the K largest of s + bias, weights s       (DeepSeek-V3 without groups)

Of equal scores the expert with the lower number wins. Weights are float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from moesim.errors import InputError
from moesim.kernels.language import constexpr, jit, runs_triton, tl, triton
from moesim.kernels.work import Work

__all__ = ["Router", "route", "route_reference", "route_work"]

MOST_EXPERTS = 1024
ELEMENTS_PER_PROGRAM = 4096
LOWEST: tl.constexpr = constexpr(-3.0e38)
"""Rank of what is no number; just above the −∞ of experts that do not exist."""


@dataclass(frozen=True)
class Router:
    """How experts are chosen and weighed.

    Attributes:
        top_k: Experts per token.
        score: What is made of the logits.
        renormalise: Whether the weights of a token are divided by their sum.
        scale: Factor of all weights (DeepSeek-V3: 2.5).
    """

    top_k: int
    score: Literal["softmax", "sigmoid"] = "softmax"
    renormalise: bool = True
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.score not in ("softmax", "sigmoid"):
            raise InputError(
                "unknown score", field="score", found=self.score, allowed="softmax, sigmoid"
            )


@jit("tokens")
def route_kernel(
    logits,
    bias,
    ids,
    weights,
    tokens,
    experts,
    scale,
    stride_t,
    stride_e,
    TOP_K: tl.constexpr,
    TOP_K_PADDED: tl.constexpr,
    EXPERTS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    SIGMOID: tl.constexpr,
    BIAS: tl.constexpr,
    RENORMALISE: tl.constexpr,
):
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    expert = tl.arange(0, EXPERTS)
    exists = (expert < experts)[None, :]
    at = logits + token.to(tl.int64)[:, None] * stride_t + expert[None, :] * stride_e
    x = tl.load(at, mask=(token < tokens)[:, None] & exists, other=0.0).to(tl.float32)
    x = tl.where(exists, x, float("-inf"))
    if SIGMOID:
        scores = tl.sigmoid(x)
    else:
        e = tl.exp(x - tl.max(x, 1)[:, None])
        scores = e / tl.sum(e, 1)[:, None]
    # Logits rank as their scores do, but do not saturate.
    ranked = x
    if BIAS:
        ranked = scores + tl.load(bias + expert, mask=expert < experts, other=0.0)[None, :]
    # NaN and −∞ rank last among the experts there are, and these before the padding.
    ranked = tl.where(ranked > LOWEST, ranked, LOWEST)
    ranked = tl.where(exists, ranked, float("-inf"))
    choice = tl.arange(0, TOP_K_PADDED)[None, :]
    chosen = tl.zeros((BLOCK_T, TOP_K_PADDED), dtype=tl.int32)
    gates = tl.zeros((BLOCK_T, TOP_K_PADDED), dtype=tl.float32)
    for place in tl.static_range(TOP_K):
        best = tl.argmax(ranked, 1, tie_break_left=True)
        hit = expert[None, :] == best[:, None]
        gate = tl.sum(tl.where(hit, scores, 0.0), 1)
        ranked = tl.where(hit, float("-inf"), ranked)
        chosen = tl.where(choice == place, best[:, None], chosen)
        gates = tl.where(choice == place, gate[:, None], gates)
    if RENORMALISE:
        gates = gates / tl.sum(gates, 1)[:, None]
    to = token.to(tl.int64)[:, None] * TOP_K + choice
    mask = (token < tokens)[:, None] & (choice < TOP_K)
    tl.store(ids + to, chosen, mask=mask)
    tl.store(weights + to, gates * scale, mask=mask)


def route(
    logits: torch.Tensor, router: Router, bias: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose the experts of every token.

    Args:
        logits: [T, E] router logits.
        router: How.
        bias: [E] float32 added to scores for the choice alone, not to weights.

    Returns:
        Expert ids [T, K] int32, from the largest score down, and weights [T, K] float32.

    Raises:
        InputError: If K is not between 1 and E, or shapes do not fit.
    """
    _check(logits, router, bias)
    if not runs_triton(logits, bias):
        return _by_torch(logits, router, bias, torch.float32)
    tokens, experts = logits.shape
    ids = torch.empty(tokens, router.top_k, dtype=torch.int32, device=logits.device)
    weights = torch.empty(tokens, router.top_k, dtype=torch.float32, device=logits.device)
    padded = triton.next_power_of_2(experts)
    block = max(1, ELEMENTS_PER_PROGRAM // padded)
    if tokens:
        with torch.cuda.device_of(logits):
            route_kernel[(triton.cdiv(tokens, block),)](
                logits,
                None if bias is None else bias.float().contiguous(),
                ids,
                weights,
                tokens,
                experts,
                router.scale,
                *logits.stride(),
                TOP_K=router.top_k,
                TOP_K_PADDED=triton.next_power_of_2(router.top_k),
                EXPERTS=padded,
                BLOCK_T=block,
                SIGMOID=router.score == "sigmoid",
                BIAS=bias is not None,
                RENORMALISE=router.renormalise,
                num_warps=4,
            )
    return ids, weights


def route_reference(
    logits: torch.Tensor,
    router: Router,
    bias: torch.Tensor | None = None,
    precision: torch.dtype = torch.float64,
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`route` in plain torch; weights computed and returned in ``precision``."""
    _check(logits, router, bias)
    return _by_torch(logits, router, bias, precision)


def route_work(tokens: int, experts: int, router: Router, logit_bytes: int = 2) -> Work:
    """Least work of :func:`route`: about four operations per logit, and one compare per choice."""
    flops = tokens * experts * (4.0 + router.top_k)
    return Work(flops, tokens * (experts * logit_bytes + router.top_k * 8))


def _by_torch(
    logits: torch.Tensor, router: Router, bias: torch.Tensor | None, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    values = logits.to(dtype)
    scores = values.softmax(dim=-1) if router.score == "softmax" else values.sigmoid()
    # Logits rank as their scores do, but do not saturate.
    ranked = values if bias is None else scores + bias.to(dtype)
    # A stable sort, because topk may return either of two equal scores.
    ids = ranked.sort(dim=-1, descending=True, stable=True).indices[:, : router.top_k]
    weights = scores.gather(1, ids)
    if router.renormalise:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return ids.to(torch.int32), weights * router.scale


def _check(logits: torch.Tensor, router: Router, bias: torch.Tensor | None) -> None:
    if logits.dim() != 2 or not 1 <= logits.shape[1] <= MOST_EXPERTS:
        raise InputError(
            "logits are needed per token and expert",
            field="logits",
            found=tuple(logits.shape),
            allowed=f"[tokens, experts], at most {MOST_EXPERTS} experts",
        )
    if not 1 <= router.top_k <= logits.shape[1]:
        raise InputError(
            "no such number of experts per token",
            field="top_k",
            found=router.top_k,
            allowed=f"1 to {logits.shape[1]}",
        )
    if bias is not None and bias.shape != (logits.shape[1],):
        raise InputError(
            "one bias per expert is needed",
            field="bias",
            found=tuple(bias.shape),
            allowed=f"({logits.shape[1]},)",
        )
