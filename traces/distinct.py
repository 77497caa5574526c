"""Tokens that name an expert twice, which a sound trace has none of, made to name it once."""

from __future__ import annotations

import numpy as np

from moesim.compiled import compiled

__all__ = ["distinct_ids"]


def distinct_ids(
    ids: np.ndarray, starts: np.ndarray, experts: int
) -> tuple[np.ndarray, np.ndarray]:
    """The distinct ids of every token, in the order in which it names them.

    Args:
        ids: [N] unsigned integers below E.
        starts: [T + 1] int64; token t names ``ids[starts[t]:starts[t + 1]]``.
        experts: E.

    Returns:
        The same arrays if no token names an expert twice, else new ones.
    """
    if not _repeats(ids, starts, experts):
        return ids, starts
    kept = np.empty(ids.size, bool)
    _mark(ids, starts, experts, kept)
    fewer = ids[kept]
    fewer.flags.writeable = False
    return fewer, np.concatenate([[0], np.cumsum(kept)])[starts]


@compiled
def _repeats(ids: np.ndarray, starts: np.ndarray, experts: int) -> bool:
    found = False
    token_of = np.full(experts, -1, np.int64)
    for token in range(starts.size - 1):
        for i in range(starts[token], starts[token + 1]):
            found |= token_of[ids[i]] == token
            token_of[ids[i]] = token
    return found


@compiled
def _mark(ids: np.ndarray, starts: np.ndarray, experts: int, kept: np.ndarray) -> None:
    token_of = np.full(experts, -1, np.int64)
    for token in range(starts.size - 1):
        for i in range(starts[token], starts[token + 1]):
            kept[i] = token_of[ids[i]] != token
            token_of[ids[i]] = token
