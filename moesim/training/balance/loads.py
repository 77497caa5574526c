"""Tokens per expert, iteration by iteration: from a stated skew, or out of a trace."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np

from moesim.errors import InputError, UsageError
from moesim.traces.bundle import open_trace

__all__ = ["drifting_loads", "loads_of_trace"]


def drifting_loads(
    iterations: int,
    layers: int,
    experts: int,
    copies: int,
    exponent: float,
    correlation: float,
    seed: int,
) -> np.ndarray:
    """[I, L, E] token copies whose popularity follows Zipf's law and drifts.

    Every expert has a score that goes on from iteration to iteration as a stationary autoregressive
    process of order 1; the expert of rank r by score gets copies with probability ∝ r^-exponent.

    Args:
        iterations: I.
        layers: L.
        experts: E.
        copies: Of a layer and iteration, over all devices.
        exponent: 0 is even.
        correlation: Of scores of one iteration and the next; 1 never changes.
        seed: Same seed, same loads.

    Raises:
        UsageError: If the correlation is not within 0 … 1.
    """
    if not 0 <= correlation <= 1:
        raise UsageError(f"a correlation must be 0 … 1; found {correlation}\nfix: pass 0.99")
    rng = np.random.default_rng(seed)
    popularity = np.arange(1, experts + 1) ** -float(exponent)
    popularity /= popularity.sum()
    score = rng.standard_normal((layers, experts))
    fresh = np.sqrt(1 - correlation**2)
    result = np.empty((iterations, layers, experts))
    for iteration in range(iterations):
        rank = np.argsort(np.argsort(-score, axis=1), axis=1)
        for layer in range(layers):
            result[iteration, layer] = rng.multinomial(copies, popularity[rank[layer]])
        score = correlation * score + fresh * rng.standard_normal((layers, experts))
    return result


def loads_of_trace(
    folder: Path, layers: int, experts: int, copies: int, iterations: int
) -> np.ndarray:
    """[I, L, E] copies of consecutive windows of a trace, scaled to an iteration's copies.

    Layers beyond the trace's take its layers again.

    Args:
        folder: Trace bundle.
        layers: L.
        experts: E; the trace must have as many.
        copies: Of a layer and iteration.
        iterations: I; fewer if the trace has fewer tokens than that.

    Raises:
        InputError: If the trace has other experts or is too short.
    """
    trace = open_trace(folder)
    if trace.manifest.experts != experts:
        raise InputError(
            "the trace is not of the model",
            file=folder / "manifest.json",
            field="experts",
            found=trace.manifest.experts,
            allowed=str(experts),
            fix="pass the --model that the trace is of",
        )
    tokens = trace.routing.shape[1]
    if tokens < iterations:
        raise InputError(
            "too few tokens for a window per iteration",
            file=folder / "manifest.json",
            field="tokens",
            found=tokens,
            allowed=f"at least {iterations}",
            fix="record a longer trace",
        )
    edges = np.linspace(0, tokens, iterations + 1).astype(int)
    result = np.empty((iterations, layers, experts))
    for iteration, (start, end) in enumerate(pairwise(edges)):
        for layer in range(layers):
            ids = np.asarray(trace.routing[layer % trace.manifest.layers, start:end]).ravel()
            counts = np.bincount(ids, minlength=experts)[:experts]
            result[iteration, layer] = counts * (copies / counts.sum())
    return result
