"""Rows per expert that benchmarks run: even, Zipf, and from the bundled routing trace.

All functions give ``[experts] int64`` that sum to ``rows``, the same for the same arguments.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

__all__ = ["LOADS", "even_rows", "rows_per_expert", "trace_rows", "zipf_rows"]

LOADS = ("even", "zipf", "trace")
"""Names of the histograms: every expert alike; share of rank r ∝ 1/r; a real router's."""

SAMPLE = Path(__file__).parent.parent / "traces" / "samples" / "small-moe" / "routing.npy"
"""Routing of the bundled sample, [L, T, K]: 8 layers, 32 experts, top-4."""
SAMPLE_EXPERTS = 32

ZIPF_EXPONENT = 1.0


def even_rows(experts: int, rows: int) -> np.ndarray:
    """Rows dealt out evenly; the first experts take what is left over."""
    return rows // experts + (np.arange(experts) < rows % experts).astype(np.int64)


def zipf_rows(experts: int, rows: int, seed: int, exponent: float = ZIPF_EXPONENT) -> np.ndarray:
    """Rows in proportion to 1 / rank^exponent, ranks in a random order; some may have none."""
    share = np.arange(1, experts + 1) ** -exponent
    order = np.random.default_rng((seed, experts)).permutation(experts)
    return _apportion(share, rows)[order]


def trace_rows(experts: int, rows: int, seed: int, routing: np.ndarray | None = None) -> np.ndarray:
    """Rows in proportion to a real router's counts over a run of consecutive tokens.

    The sample has 32 experts. Fewer are made by adding neighbours, more by setting layers side by
    side, so skew and its randomness stay a router's own; token counts are scaled to ``rows``.

    Args:
        experts: A power of two or a multiple of 32.
        rows: In all.
        seed: Of the run of tokens.
        routing: [L, T, K]; the sample's if not given.
    """
    if routing is None:
        routing = np.load(SAMPLE, mmap_mode="r", allow_pickle=False)
    layers, tokens, top_k = routing.shape
    rng = np.random.default_rng((seed, experts, 1))
    pieces = max(1, -(-experts // SAMPLE_EXPERTS))
    wanted = max(64, rows // (top_k * pieces))
    counts = []
    for layer in rng.permutation(layers)[np.arange(pieces) % layers]:
        start = int(rng.integers(0, max(1, tokens - wanted)))
        part = routing[layer, start : start + wanted]
        counts.append(np.bincount(part.ravel(), minlength=SAMPLE_EXPERTS))
    whole = np.concatenate(counts)
    joined = whole.reshape(experts, -1).sum(1) if experts < SAMPLE_EXPERTS else whole[:experts]
    return _apportion(joined.astype(np.float64), rows)


def rows_per_expert(load: str, experts: int, rows: int, seed: int) -> np.ndarray:
    """One of :data:`LOADS` by name."""
    if load == "even":
        return even_rows(experts, rows)
    return (zipf_rows if load == "zipf" else trace_rows)(experts, rows, seed)


def _apportion(share: np.ndarray, rows: int) -> np.ndarray:
    """Whole numbers nearest to the shares that add up to ``rows`` (largest remainders)."""
    exact = share / share.sum() * rows
    whole = np.floor(exact).astype(np.int64)
    left = rows - int(whole.sum())
    whole[np.argsort(whole - exact, kind="stable")[:left]] += 1
    return whole
