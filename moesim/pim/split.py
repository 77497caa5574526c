"""Which experts of a device run on which of its two processors, so that both finish early.

Axes: W draws, s experts of a device. Both processors work at once, but not in one memory space
(a set of banks) at the same time. With loads x_i and p_i of space i on either processor that is an
open shop of two machines, whose shortest schedule takes exactly
``max(Σ x_i, Σ p_i, max_i (x_i + p_i))`` (Gonzalez and Sahni, J. ACM 23, 1976).
"""

from __future__ import annotations

import numpy as np

__all__ = ["EXACT_EXPERTS", "SPACES", "makespan", "split_experts"]

SPACES = 4
"""Memory spaces of a Logic-PIM device: bank bundles of a pseudo-channel (Duplex, section V)."""

EXACT_EXPERTS = 8
"""Up to so many experts per device all their subsets are tried."""


def makespan(
    main_s: np.ndarray, near_s: np.ndarray, on_near: np.ndarray, spaces: int = SPACES
) -> np.ndarray:
    """Seconds until both processors are done.

    Args:
        main_s: [..., s] of every expert on the main processor.
        near_s: [..., s] on the one near the memory.
        on_near: [..., s] bool, which experts run there.
        spaces: Experts lie in them in turn.

    Returns:
        [...] seconds.
    """
    main, near = np.where(on_near, 0.0, main_s), np.where(on_near, near_s, 0.0)
    either = main + near
    longest = np.maximum(main.sum(-1), near.sum(-1))
    for space in range(min(spaces, either.shape[-1])):
        longest = np.maximum(longest, either[..., space::spaces].sum(-1))
    return longest


def split_experts(main_s: np.ndarray, near_s: np.ndarray, spaces: int = SPACES) -> np.ndarray:
    """The split with the shortest makespan.

    Up to :data:`EXACT_EXPERTS` experts it is the best of all; beyond, the best threshold: experts
    that lose least by moving (those with few tokens) go to the near processor first, as in Duplex.

    Args:
        main_s: [W, s] seconds of every expert on the main processor.
        near_s: [W, s] on the one near the memory.
        spaces: Memory spaces.

    Returns:
        [W, s] bool: which experts run near the memory.
    """
    experts = main_s.shape[-1]
    if experts <= EXACT_EXPERTS:
        numbers = np.arange(2**experts)[:, None]
        choices = np.broadcast_to(
            (numbers >> np.arange(experts) & 1).astype(bool), (len(main_s), 2**experts, experts)
        )
    else:
        # Order by what a second of the main processor saves costs on the near one.
        ratio = near_s / np.maximum(main_s, 1e-30)
        rank = np.argsort(np.argsort(ratio, axis=-1, kind="stable"), axis=-1)
        choices = rank[:, None, :] < np.arange(experts + 1)[None, :, None]
    lengths = makespan(main_s[:, None], near_s[:, None], choices, spaces)
    best = lengths.argmin(axis=-1)[:, None, None]
    return np.take_along_axis(choices, best, axis=1)[:, 0]
