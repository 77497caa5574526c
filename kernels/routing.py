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
from moesim.kernels.work import Work

__all__ = ["Router", "route", "route_reference", "route_work"]

MOST_EXPERTS = 1024


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
    return _by_torch(logits, router, bias, torch.float32)


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
    ranked = scores if bias is None else scores + bias.to(dtype)
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
