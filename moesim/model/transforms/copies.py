"""How many routed experts a token goes to, where that is not always top-k."""

from __future__ import annotations

from math import comb

import numpy as np

from moesim.errors import InputError

__all__ = ["copies_of_gates", "copies_with_mean", "copies_with_null_experts", "needed_mean"]


def copies_with_null_experts(experts: int, null: int, top_k: int) -> list[float]:
    """[k + 1] probability of 0 … k true experts among k choices out of all, evenly drawn.

    The hypergeometric distribution; its mean is ``top_k · experts / (experts + null)``.
    """
    whole = comb(experts + null, top_k)
    return [comb(experts, k) * comb(null, top_k - k) / whole for k in range(top_k + 1)]


def copies_with_mean(mean: float, least: int, most: int) -> list[float]:
    """[most + 1] the least presuming distribution over ``least`` … ``most`` with this mean.

    Of all distributions with a given mean the one of largest entropy is geometric; its ratio is
    found by bisection.

    Raises:
        InputError: If the mean is outside.
    """
    if not least <= mean <= most:
        raise InputError(
            "the mean is out of reach", field="mean", found=mean, allowed=f"{least} … {most}"
        )
    k = np.arange(least, most + 1)

    def weights(slope: float) -> np.ndarray:
        power = slope * k
        found = np.exp(power - power.max())
        return np.asarray(found / found.sum())

    low, high = -50.0, 50.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if weights(middle) @ k < mean else (low, middle)
    return [0.0] * least + weights((low + high) / 2).tolist()


def copies_of_gates(gates: np.ndarray, share: float) -> np.ndarray:
    """[...] experts that each token takes under top-p routing.

    The smallest set of experts whose router probabilities sum to at least ``share`` (Harder Tasks
    Need More Experts, arXiv 2403.07652).

    Args:
        gates: [..., E] router probabilities.
        share: p.
    """
    ordered = np.sort(np.asarray(gates, dtype=float), axis=-1)[..., ::-1]
    before = np.cumsum(ordered, axis=-1) - ordered
    return np.asarray(np.maximum((before < share - 1e-12).sum(axis=-1), 1))


def needed_mean(saved: float, total_flops: float, flops_per_expert: float, before: float) -> float:
    """True experts per token that leave out a share of a model's FLOPs.

    Args:
        saved: Share of all FLOPs.
        total_flops: Of a token, before.
        flops_per_expert: Of a token's pass through one expert in every MoE layer.
        before: Experts per token before.
    """
    return before - saved * total_flops / flops_per_expert
