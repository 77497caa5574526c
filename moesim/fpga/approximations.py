"""The cheap functions of Edge-MoE, as numbers: how far they are from the exact ones.

They save logic, not time: the simulator runs them at one value per cycle either way.
"""

from __future__ import annotations

from functools import cache
from math import erf, sqrt

import numpy as np

__all__ = ["gelu", "gelu_by_table", "single_pass_softmax"]

STEP = 2.0**-5
"""Between entries of the table (Edge-MoE, src/gelu.cpp)."""

FRACTION_BITS = 22
"""Of a 32-bit activation with 10 bits before the point."""


def gelu(x: np.ndarray) -> np.ndarray:
    """[...] x · Φ(x), exactly."""
    flat = [value / 2 * (1 + erf(value / sqrt(2))) for value in np.ravel(x).tolist()]
    return np.array(flat).reshape(np.shape(x))


@cache
def _table() -> np.ndarray:
    """ReLU − GELU at multiples of the step, until it rounds to zero; even in x."""
    x = np.arange(0, 8, STEP)
    delta = np.round((x - gelu(x)) * 2**FRACTION_BITS) / 2**FRACTION_BITS
    last = int(np.flatnonzero(delta)[-1]) + 2
    return delta[:last]


def gelu_by_table(x: np.ndarray) -> np.ndarray:
    """[...] ReLU less a symmetric difference, interpolated between entries of a small table."""
    table = _table()
    exact = np.abs(x) / STEP
    index = np.minimum(exact.astype(np.int64), len(table) - 2)
    part = exact - index
    delta = table[index] + part * (table[index + 1] - table[index])
    return np.maximum(x, 0) - np.where(exact < len(table) - 1, delta, 0.0)


def single_pass_softmax(scores: np.ndarray) -> np.ndarray:
    """[..., N] softmax whose largest score and sum are kept up to date while scores stream by.

    A larger score scales the sum down; a smaller one adds to it. Either way one exponential per
    score, and no pass of its own for the maximum.
    """
    largest = np.full(scores.shape[:-1], -np.inf)
    total = np.zeros(scores.shape[:-1])
    for score in np.moveaxis(scores, -1, 0):
        is_new = score > largest
        factor = np.exp(-np.abs(largest - score))
        total = np.where(is_new, total * factor + 1, total + factor)
        largest = np.maximum(largest, score)
    return np.exp(scores - largest[..., None]) / total[..., None]
