"""Random numbers inside compiled loops: SplitMix64 (Steele, Lea and Flood 2014)."""

from __future__ import annotations

from typing import Any

import numpy as np

from moesim.compiled import compiled

__all__ = ["draw", "draw_below"]


@compiled
def draw(state: np.ndarray) -> float:
    """A number in [0, 1).

    Args:
        state: [1] uint64, the seed before the first draw; changed in place.
    """
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    bits = state[0]
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    return np.float64(bits >> np.uint64(11)) * 2.0**-53


@compiled
def draw_below(state: np.ndarray, end: int) -> Any:
    """A whole number in 0 … end − 1, all equally probable (to 2⁻⁵³)."""
    return np.int64(draw(state) * end)
