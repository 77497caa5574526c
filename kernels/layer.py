"""A Mixture-of-Experts layer forward: route, permute, two grouped GEMMs, combine.

The token rows are gathered in the first GEMM's load, SwiGLU is applied in its epilogue, the
router's weight in that of the second. Nothing is read back to the host, so that the layer can be
captured in a CUDA graph, and nothing depends on the order in which programs run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from moesim.errors import InputError
from moesim.kernels.combine import combine, combine_reference, combine_work
from moesim.kernels.experts import ExpertWeights, expert_ffn, expert_ffn_reference, expert_ffn_work
from moesim.kernels.permute import permute, permute_reference, permute_work
from moesim.kernels.routing import Router, route, route_reference, route_work
from moesim.kernels.work import Work

__all__ = ["moe_forward", "moe_forward_reference", "moe_forward_work"]


def moe_forward(
    hidden: torch.Tensor,
    router_logits: torch.Tensor,
    weights: ExpertWeights,
    router: Router,
    *,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run a layer.

    Args:
        hidden: [T, H] tokens, bfloat16 or float16.
        router_logits: [T, E].
        weights: Of the layer's experts, in the type of ``hidden`` or in fp8 with scales.
        router: How experts are chosen and weighed.
        bias: [E] float32 added to scores for the choice alone.

    Returns:
        [T, H] in the type of ``hidden``.

    Raises:
        InputError: If shapes or types do not fit together.
    """
    _check(hidden, router_logits, weights)
    ids, router_weights = route(router_logits, router, bias)
    places = permute(ids, router_weights, weights.w13.shape[0])
    y = expert_ffn(hidden, weights, places.counts, gather=places.token, row_scale=places.weight)
    return combine(y, places.row)


def moe_forward_reference(
    hidden: torch.Tensor,
    router_logits: torch.Tensor,
    weights: ExpertWeights,
    router: Router,
    *,
    bias: torch.Tensor | None = None,
    precision: torch.dtype = torch.float64,
) -> torch.Tensor:
    """:func:`moe_forward` in plain torch, computed and returned in ``precision``."""
    _check(hidden, router_logits, weights)
    ids, router_weights = route_reference(router_logits, router, bias, precision)
    places = permute_reference(ids, router_weights.float(), weights.w13.shape[0])
    y = expert_ffn_reference(
        hidden,
        weights,
        places.counts,
        gather=places.token,
        row_scale=places.weight,
        precision=precision,
    )
    return combine_reference(y, places.row, precision)


def moe_forward_work(
    histogram: Sequence[int] | np.ndarray,
    tokens: int,
    hidden: int,
    inter: int,
    router: Router,
    *,
    dtype: torch.dtype = torch.bfloat16,
) -> Work:
    """Least work of :func:`moe_forward`, op by op.

    Args:
        histogram: [E] rows of each expert, Σ = T·K.
        tokens: T.
        hidden: Width of the model, H.
        inter: Width of an expert, F.
        router: How experts are chosen.
        dtype: Type of the weights.
    """
    experts = len(histogram)
    return (
        route_work(tokens, experts, router)
        + permute_work(tokens, router.top_k, experts)
        + expert_ffn_work(histogram, hidden, inter, dtype=dtype, source_rows=tokens)
        + combine_work(tokens, router.top_k, hidden)
    )


def _check(hidden: torch.Tensor, router_logits: torch.Tensor, weights: ExpertWeights) -> None:
    experts = weights.w13.shape[0]
    if hidden.dim() != 2 or router_logits.shape != (hidden.shape[0], experts):
        raise InputError(
            "one logit per token and expert is needed",
            field="router_logits",
            found=f"hidden {tuple(hidden.shape)}, router_logits {tuple(router_logits.shape)}",
            allowed=f"hidden [tokens, H], router_logits [tokens, {experts}]",
        )
