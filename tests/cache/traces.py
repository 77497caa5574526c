"""Small traces for the tests of caches."""

from __future__ import annotations

import numpy as np

from moesim.traces.bundle import Trace, TraceManifest, routing_dtype


def in_memory(routing, experts, *, valid_k=None, gates=None) -> Trace:
    """A trace that is nowhere on disk."""
    layers, tokens, top_k = routing.shape
    manifest = TraceManifest(
        model="test",
        layers=layers,
        moe_layers=tuple(range(layers)),
        experts=experts,
        top_k=top_k,
        tokens=tokens,
        dtype=routing_dtype(experts).name,
    )
    return Trace(manifest, routing.astype(routing_dtype(experts)), gates, valid_k)


def local_routing(rng, *, layers=1, tokens=40, experts=8, top_k=2, skew=1.0, drift=0.9):
    """[L, T, K] distinct experts whose popularity wanders, so that every policy has work to do."""
    level = rng.normal(0, skew, (layers, experts))
    routing = np.empty((layers, tokens, top_k), np.int64)
    for token in range(tokens):
        level = drift * level + np.sqrt(1 - drift**2) * rng.normal(0, skew, level.shape)
        noisy = level + rng.gumbel(size=level.shape)
        routing[:, token] = np.argsort(-noisy, axis=1)[:, :top_k]
    return routing


def random_trace(seed, **shape) -> Trace:
    """A trace of random shape, small enough for the plain replay; ``shape`` fixes parts of it."""
    rng = np.random.default_rng(seed)
    experts = shape.pop("experts", int(rng.integers(2, 13)))
    given = {
        "layers": 1,
        "tokens": int(rng.integers(1, 40)),
        "top_k": int(rng.integers(1, min(experts, 4) + 1)),
        "skew": float(rng.choice([0.0, 1.0, 2.0])),
        "drift": float(rng.choice([0.0, 0.8, 0.97])),
    }
    return in_memory(local_routing(rng, experts=experts, **(given | shape)), experts)
