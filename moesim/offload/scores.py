"""Scores by which experts stay in their slots, for every event at once.

These are the policies whose score does not depend on the number of slots: one table serves every
size. ``moesim.cache`` replays more policies, without clocks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["SCORES", "belady", "lfu", "lru", "mrs", "popularity"]

MRS_DECAY = 0.5
"""α of HybriMoE's cache (arXiv 2504.05897, section 4.4; 0.5 in the released code)."""


def lru(tokens: np.ndarray) -> np.ndarray:
    """Last use; within an event the later id counts as used later.

    Args:
        tokens: [S, L, E] tokens of every expert at every event.

    Returns:
        [S + 1, L, E] scores, as :class:`moesim.offload.replay.Plan` takes them.
    """
    steps, _, experts = tokens.shape
    used = np.arange(1, steps + 1)[:, None, None] + np.arange(experts) / experts
    return _from_nothing(np.maximum.accumulate(np.where(tokens > 0, used, 0.0), axis=0))


def lfu(tokens: np.ndarray) -> np.ndarray:
    """Events of use since the start, then recency."""
    last = lru(tokens)
    count = _from_nothing(np.cumsum(tokens > 0, axis=0, dtype=float))
    return count + last / (len(tokens) + 2)


def belady(tokens: np.ndarray) -> np.ndarray:
    """Minus the step of the next use: what is needed last goes first (needs the future)."""
    steps = len(tokens)
    at = np.where(tokens > 0, np.arange(steps)[:, None, None], 2.0 * steps)
    following = np.minimum.accumulate(at[::-1], axis=0)[::-1]
    never = np.full((1, *tokens.shape[1:]), 2.0 * steps)
    # Row s + 1 is after step s: the next use is at step s + 1 or later.
    return -np.concatenate([following, never])


def popularity(tokens: np.ndarray) -> np.ndarray:
    """Tokens over the whole of it, the same at every event: a static choice."""
    total = tokens.sum(axis=0, dtype=float)
    return np.broadcast_to(total, (len(tokens) + 1, *total.shape))


def mrs(router: np.ndarray, kept: int, decay: float = MRS_DECAY) -> np.ndarray:
    """HybriMoE's Minus Recent Score: ``S ← α · s · [s among the highest] + (1 − α) · S``.

    Args:
        router: [S, L, E] router scores of each step, summed over its tokens. Where only those of
            the chosen experts are known, the others are 0.
        kept: How many of the highest scores count: 2 × top-k in the paper.
        decay: α.
    """
    steps, layers, experts = router.shape
    scores = np.zeros((steps + 1, layers, experts))
    for step in range(steps):
        new = router[step]
        if kept < experts:
            least = np.partition(new, experts - kept, axis=1)[:, experts - kept, None]
            new = np.where(new >= least, new, 0.0)
        scores[step + 1] = decay * new + (1 - decay) * scores[step]
    return scores


def _from_nothing(after: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros((1, *after.shape[1:])), after])


SCORES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "lru": lru,
    "lfu": lfu,
    "belady": belady,
    "static": popularity,
}
"""By name, those that need the routing alone."""
