"""What a routing trace shows of skew, affinity, domain shift and locality."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from moesim.traces.balance import imbalance, mutual_information

__all__ = [
    "adjacent_overlap",
    "domain_distance",
    "interlayer_mutual_information_bits",
    "load_measures",
]


def domain_distance(loads: np.ndarray) -> float:
    """Total variation distance between the loads of two domains.

    Args:
        loads: [L, D, E] token assignments.

    Returns:
        Mean over layers and pairs of domains, 0 … 1; 0 with fewer than two domains in use.
    """
    used = loads[:, loads.sum(axis=(0, 2)) > 0]
    domains = used.shape[1]
    if domains < 2:
        return 0.0
    share = used / used.sum(axis=2, keepdims=True)
    first, second = np.triu_indices(domains, 1)
    return float(np.abs(share[:, first] - share[:, second]).sum(axis=2).mean() / 2)


def load_measures(loads: np.ndarray) -> dict[str, float]:
    """Imbalance of loads [L, D, E] summed over domains: means over the layers."""
    total = loads.sum(axis=1)
    uneven = imbalance(total)
    return {
        "gini": float(uneven.gini.mean()),
        "max_over_mean": float(uneven.max_over_mean.mean()),
        "load_cv": float((total.std(axis=1) / total.mean(axis=1)).mean()),
        "domain_distance": domain_distance(loads),
    }


def adjacent_overlap(routing: np.ndarray, first: np.ndarray, experts: int) -> float:
    """Share of a token's experts that the token before it used as well, in the same layer.

    Args:
        routing: [L, T, K] expert ids.
        first: [T] bool, the token is the first of its request and has none before it.
        experts: E.

    Returns:
        Mean over layers and tokens, 0 … 1; 0 if no token has one before it.
    """
    follows = ~first[1:]
    if not follows.any():
        return 0.0
    layers, tokens, top_k = routing.shape
    shared = 0
    pairs = layers * int(np.count_nonzero(follows)) * top_k
    for layer in range(layers):
        used = np.zeros((tokens, experts), dtype=bool)
        np.put_along_axis(used, routing[layer].astype(np.int64), True, axis=1)
        shared += int(np.count_nonzero((used[1:] & used[:-1])[follows]))
    return float(shared / pairs)


def interlayer_mutual_information_bits(
    routing: np.ndarray, experts: int, rng: np.random.Generator
) -> float:
    """Mutual information between a choice in one layer and a choice in the next, in bits.

    Taken over all K · K pairs of a token's choices; the same figure with the next layer's tokens in
    random order is subtracted, which removes the bias of a finite sample.

    Args:
        routing: [L, T, K] expert ids.
        experts: E.
        rng: Orders the tokens for the baseline.

    Returns:
        Mean over the L − 1 pairs of layers; 0 for one layer.
    """
    layers, tokens, _ = routing.shape
    if layers < 2:
        return 0.0
    order = rng.permutation(tokens)
    return float(
        np.mean(
            [
                _mutual_information_bits(a, b, experts)
                - _mutual_information_bits(a, b[order], experts)
                for a, b in pairwise(routing)
            ]
        )
    )


def _mutual_information_bits(before: np.ndarray, after: np.ndarray, experts: int) -> float:
    pairs = before.astype(np.int64)[:, :, None] * experts + after[:, None, :]
    joint = np.bincount(pairs.ravel(), minlength=experts * experts).reshape(experts, experts)
    return float(mutual_information(joint))
