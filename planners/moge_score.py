"""Imbalance of experts over devices, as Pangu Pro MoE scores it (arXiv 2505.21411, section 2).

    IS(X) = (max_g T_g − min_g T_g) / |X|

T_g counts the (token, expert) pairs that batch X sends to the experts of device g. With Mixture of
Grouped Experts every token takes equally many experts of every group, so with one group (or equally
many groups) per device T_g is the same for all and the score is 0 whatever the router says.

Axes: W batches, T tokens of a batch, K experts per token, E experts, G devices with E / G
consecutive experts each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.errors import UsageError

__all__ = ["ImbalanceDraws", "draw_imbalance", "imbalance_score", "load_ratio"]

DRAW_BUDGET = 4_000_000
"""Scores drawn at once: 32 MB."""

MAX_EXPERTS = 65_536
MAX_SCORES = 10**11
"""Numbers that all draws together may take: some minutes."""


@dataclass(frozen=True)
class ImbalanceDraws:
    """Imbalance of random batches.

    Attributes:
        score: [W] IS(X).
        ratio: [W] tokens of the busiest device over the mean.
    """

    score: np.ndarray
    ratio: np.ndarray

    @property
    def positive(self) -> float:
        """Share of the batches whose score is above 0."""
        return float((self.score > 0).mean())

    def quantile(self, share: float) -> float:
        """A quantile of the score."""
        return float(np.quantile(self.score, share))


def imbalance_score(device_tokens: np.ndarray, tokens: np.ndarray | int) -> np.ndarray:
    """IS(X) of batches.

    Args:
        device_tokens: [..., G] (token, expert) pairs of every device.
        tokens: [...] |X|, tokens of every batch, at least 1.

    Returns:
        [...] float64.
    """
    counts = np.asarray(device_tokens, np.float64)
    return np.asarray((counts.max(-1) - counts.min(-1)) / tokens)


def load_ratio(device_tokens: np.ndarray) -> np.ndarray:
    """[...] pairs of the busiest device over the mean of all, from [..., G]."""
    counts = np.asarray(device_tokens, np.float64)
    return np.asarray(counts.max(-1) / counts.mean(-1))


def draw_imbalance(
    *,
    experts: int,
    top_k: int,
    devices: int,
    tokens: int,
    groups: int = 1,
    draws: int = 2000,
    seed: int = 0,
    popularity: np.ndarray | None = None,
) -> ImbalanceDraws:
    """Monte Carlo of the score, as in figure 2 of the paper: tokens choose independently.

    A token chooses ``top_k / groups`` distinct experts of every group; one group is plain top-k.
    With equal popularity all sets of experts are equally likely; otherwise experts are drawn one
    after the other in proportion to their popularity (by Gumbel's trick).

    Args:
        experts: E.
        top_k: K.
        devices: G, divides E.
        tokens: |X|.
        groups: M, divides E and K; consecutive experts form a group.
        draws: W.
        seed: Same seed, same batches.
        popularity: [E] positive; equal if left out.

    Raises:
        UsageError: If the sizes do not divide.
    """
    _check(experts, top_k, devices, tokens, groups, draws)
    rng = np.random.default_rng(seed)
    log_weight = np.zeros(experts) if popularity is None else np.log(popularity)
    counts = np.zeros((draws, devices), np.int64)
    per_group, size = top_k // groups, experts // groups
    at_once = max(1, DRAW_BUDGET // experts)
    flat = counts.reshape(-1)
    for first in range(0, draws * tokens, at_once):
        batch = np.arange(first, min(first + at_once, draws * tokens)) // tokens
        keys = rng.random((len(batch), experts))
        if popularity is not None:
            keys = log_weight - np.log(-np.log(keys))
        grouped = keys.reshape(len(batch), groups, size)
        if per_group < size:
            chosen = np.argpartition(-grouped, per_group - 1, axis=-1)[..., :per_group]
        else:
            chosen = np.broadcast_to(np.arange(size), grouped.shape)
        expert = chosen + size * np.arange(groups)[:, None]
        device = expert.reshape(len(batch), -1) // (experts // devices)
        flat += np.bincount((batch[:, None] * devices + device).ravel(), minlength=flat.size)
    return ImbalanceDraws(imbalance_score(counts, tokens), load_ratio(counts))


def _check(experts: int, top_k: int, devices: int, tokens: int, groups: int, draws: int) -> None:
    for option, value, most in (
        ("--experts", experts, MAX_EXPERTS),
        ("--top-k", top_k, experts),
        ("--devices", devices, experts),
        ("--tokens", tokens, 2**24),
        ("--groups", groups, experts),
        ("--draws", draws, 10**6),
    ):
        if not 1 <= value <= most:
            raise UsageError(
                f"{option} must be 1 … {most}; found {value}\nfix: pass another {option}"
            )
    for option, value, what, whole in (
        ("--devices", devices, "experts", experts),
        ("--groups", groups, "experts", experts),
        ("--groups", groups, "experts of a token (--top-k)", top_k),
    ):
        if whole % value:
            raise UsageError(
                f"{option} {value} does not divide the {whole} {what}\n"
                f"fix: pass a divisor of {whole}"
            )
    if tokens * draws * experts > MAX_SCORES:
        raise UsageError(
            f"{draws} draws of {tokens} tokens with {experts} experts would take too long\n"
            "fix: pass fewer --draws or --tokens"
        )
