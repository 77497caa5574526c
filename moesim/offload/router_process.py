"""Router scores of a made-up model, as local as a published cache hit rate says.

Papers on offloading publish hit rates and no routing. Here logits are a popularity, a slow process
and noise, ``a · P[l, e] + b · z[t, l, e] + ε[t, l, e]``, all normal and ``z`` an AR(1) process of
unit variance; experts are the top-k and scores the softmax. One strength ``b`` is found so that LRU
hits as often as published; every other figure then is a prediction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.errors import InfeasibleError
from moesim.offload.scores import lru

__all__ = ["RouterProcess", "fit_to_lru", "hit_rate", "router_scores", "top_k_of"]

PERSISTENCE = 0.9
"""Of the slow process from token to token: topics last about ten tokens; assumed."""

POPULARITY = 0.3
"""Strength of an expert's popularity; assumed small, since these models were balanced in training
(SD of the loads, arXiv 2505.16056, table 1)."""

FIT_LAYERS, FIT_TOKENS = 2, 1_500
MOST_STRENGTH = 12.0


@dataclass(frozen=True)
class RouterProcess:
    """A made-up router.

    Attributes:
        layers: L.
        experts: E.
        top_k: K.
        strength: b.
        persistence: Of the slow process.
        popularity: a.
    """

    layers: int
    experts: int
    top_k: int
    strength: float
    persistence: float = PERSISTENCE
    popularity: float = POPULARITY


def router_scores(process: RouterProcess, tokens: int, seed: int, request: int = 0) -> np.ndarray:
    """Softmax scores of consecutive tokens, [T, L, E] float32.

    Requests of the same seed share what is popular and nothing else.
    """
    shape = (process.layers, process.experts)
    popular = process.popularity * np.random.default_rng(seed).standard_normal(shape)
    rng = np.random.default_rng([seed, 1 + request])
    slow = rng.standard_normal(shape)
    step = np.sqrt(1 - process.persistence**2)
    scores = np.empty((tokens, *shape), np.float32)
    for token in range(tokens):
        slow = process.persistence * slow + step * rng.standard_normal(shape)
        logits = popular + process.strength * slow + rng.standard_normal(shape)
        scores[token] = np.exp(logits - logits.max(axis=1, keepdims=True))
    return scores / scores.sum(axis=2, keepdims=True)


def top_k_of(scores: np.ndarray, top_k: int) -> np.ndarray:
    """[T, L, E] bool, the experts that each token takes."""
    chosen = np.zeros(scores.shape, bool)
    best = np.argpartition(-scores, min(top_k, scores.shape[2] - 1), axis=2)[..., :top_k]
    np.put_along_axis(chosen, best, values=True, axis=2)
    return chosen


def hit_rate(chosen: np.ndarray, scores: np.ndarray, slots: int) -> float:
    """Hits of a cache per layer that keeps the highest scores; every miss is admitted.

    Args:
        chosen: [T, L, E] experts of every token.
        scores: [T + 1, L, E] as :class:`moesim.offload.replay.Plan` takes them.
        slots: Per layer.
    """
    from moesim.offload.replay import Plan, Timing, replay

    tokens = chosen.astype(np.int64)
    layers = chosen.shape[1]
    nothing = np.zeros(2)
    timing = Timing(nothing, nothing, 0.0, 0.0, 0.0, 0.0, np.zeros(len(chosen)))
    plan = Plan(
        "serial", scores, np.full(layers, slots), np.zeros(chosen.shape[1:], bool), admit=True
    )
    return replay(tokens, plan, timing).hit_rate()


def fit_to_lru(
    layers: int,
    experts: int,
    top_k: int,
    slots: int,
    published: float,
    *,
    batch: int = 1,
    seed: int = 0,
) -> RouterProcess:
    """The process whose LRU hit rate with so many slots is the published one.

    Args:
        layers: L of the process that is returned.
        experts: E.
        top_k: K.
        slots: Per layer.
        published: The hit rate.
        batch: Requests in flight; the hit rate is on the union of their experts.
        seed: Of the draws.

    Raises:
        InfeasibleError: If no strength gives it.
    """
    low, high = 0.0, MOST_STRENGTH

    def reached(strength: float) -> float:
        process = RouterProcess(FIT_LAYERS, experts, top_k, strength)
        chosen = np.zeros((FIT_TOKENS, FIT_LAYERS, experts), bool)
        for request in range(batch):
            chosen |= top_k_of(router_scores(process, FIT_TOKENS, seed, request), top_k)
        return hit_rate(chosen, lru(chosen), slots)

    if not reached(low) <= published <= reached(high):
        raise InfeasibleError(
            f"no strength gives LRU a hit rate of {published:.1%} with {slots} of {experts} slots;"
            f" from {reached(low):.1%} to {reached(high):.1%} is possible"
        )
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) < published else (low, middle)
    return RouterProcess(layers, experts, top_k, (low + high) / 2)
