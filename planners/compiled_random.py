"""Random numbers within compiled loops: Marsaglia's xorshift64 (J. Stat. Software 8(14), 2003).

numba's own generator is one per thread; a search that must give the same answer for the same seed,
whatever thread runs it, carries its state along.
"""

from __future__ import annotations

import numpy as np

from moesim.compiled import compiled

__all__ = ["below", "random_state", "uniform"]


def random_state(seed: int) -> np.ndarray:
    """[1] uint64 state, never 0."""
    mixed = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    return np.maximum(mixed, np.uint64(1))


@compiled
def _next(state: np.ndarray) -> np.uint64:
    word = state[0]
    word ^= word << np.uint64(13)
    word ^= word >> np.uint64(7)
    word ^= word << np.uint64(17)
    state[0] = word
    return word


@compiled
def below(state: np.ndarray, limit: int) -> int:
    """A whole number in [0, limit), limit < 2³²."""
    return np.int64(((_next(state) >> np.uint64(32)) * np.uint64(limit)) >> np.uint64(32))  # type: ignore[return-value]


@compiled
def uniform(state: np.ndarray) -> float:
    """A number in (0, 1)."""
    return (np.float64(_next(state) >> np.uint64(12)) + 0.5) / 4503599627370496.0
