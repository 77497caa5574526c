"""Tokens per expert on the rank that a measured MoE row timed.

A row's key says how many tokens an expert-parallel group of ``moe_ep`` ranks works on; the
benchmark ran rank 0 alone, with ``experts / moe_ep`` consecutive experts. Which tokens it got
follows from the row's ``distribution``, as aiconfigurator's collector builds it (collector/helper
of ai-dynamo/aiconfigurator 0.12):

- ``balanced``: with ``stride = ceil(experts / top_k)``, token t chooses experts
  ``(t + i * stride) mod experts``, i < top_k; below ``stride`` tokens they are spread out,
  ``(floor(t * stride / tokens) + i * stride) mod experts``. With few tokens or many ranks some
  ranks get none.
- ``power_law_A``: each expert draws a weight from x^-A on [1, 0.8 tokens] (on [0.01, 2] where
  there are no more token copies than experts); weights scale to ``tokens * top_k``, are rounded,
  and capped at ``tokens``; what the cap and the rounding leave goes round the ranks, each time to
  (or from) the rank's least (most) loaded expert. The rank with the most tokens becomes rank 0,
  so the row times the straggler.

The collector's own draw is not recorded, so power-law loads are some seeded draws of the same
process; a cost averaged over them is the expectation of what was measured.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moesim.calibrate.frame import Frame
from moesim.errors import InputError

__all__ = ["MoeLoads", "balanced_loads", "moe_loads", "power_law_loads"]

DRAWS = 8
"""Draws per key: the mean of a straggler's load then errs by about a third of its own spread."""


@dataclass(frozen=True)
class MoeLoads:
    """Loads of the timed rank, once per distinct key.

    Attributes:
        key: Which key each row has, ``[rows] int64``.
        values: Tokens per expert, all keys and draws one after the other, ``[total] int64``.
        offsets: Where each (key, draw) starts in ``values``, ``[keys * draws + 1] int64``; the
            balanced pattern has its one value in every draw's place.
        draws: Draws per key.
    """

    key: np.ndarray
    values: np.ndarray
    offsets: np.ndarray
    draws: int

    def of(self, row: int) -> np.ndarray:
        """Loads of one row, ``[draws, local experts] int64``."""
        first = int(self.key[row]) * self.draws
        start, end = self.offsets[first], self.offsets[first + self.draws]
        return self.values[start:end].reshape(self.draws, -1)

    def mean(self, cost: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Sum over the experts of a per-expert quantity, averaged over the draws, ``[rows]``.

        Args:
            cost: Quantity of each load, ``[total] -> [total]``, such as ``lambda n: n > 0`` for
                active experts or a padded token count.
        """
        return self._over_draws(np.add.reduceat(cost(self.values).astype(float), self._starts))

    def mean_of_max(self) -> np.ndarray:
        """Tokens of the busiest local expert, averaged over the draws, ``[rows]``."""
        return self._over_draws(np.maximum.reduceat(self.values, self._starts).astype(float))

    @property
    def _starts(self) -> np.ndarray:
        return self.offsets[:-1]

    def _over_draws(self, per_draw: np.ndarray) -> np.ndarray:
        return per_draw.reshape(-1, self.draws).mean(axis=1)[self.key]


def moe_loads(frame: Frame, *, draws: int = DRAWS, seed: int = 0) -> MoeLoads:
    """Loads of every row of a ``moe`` frame.

    Rows that differ only in sizes, types or tensor parallelism share a key and its draws. A key's
    draws depend on the seed and the key alone, not on what else is in the frame.

    Args:
        frame: Rows with ``tokens, top_k, experts, moe_ep, distribution``.
        draws: Draws per key of the power law.
        seed: Their seed.

    Raises:
        InputError: If a distribution is unknown, or the experts do not divide over the ranks.
    """
    names = ("tokens", "top_k", "experts", "moe_ep", "distribution")
    key = frame.groups(names)
    keys = int(key.max()) + 1 if len(frame) else 0
    row = np.zeros(keys, np.int64)
    row[key] = np.arange(len(frame))
    alphas = [_exponent(label) for label in frame.labels["distribution"]]
    numbers = np.column_stack([frame[name][row] for name in names]).tolist()
    parts: list[np.ndarray] = []
    whole: dict[tuple[int, int, int], np.ndarray] = {}
    for tokens, top_k, experts, ranks, label in numbers:
        _check(tokens, top_k, experts, ranks)
        alpha = alphas[label]
        if alpha is None:
            pattern = (tokens, top_k, experts)
            if pattern not in whole:
                whole[pattern] = balanced_loads(*pattern)
            local = np.tile(whole[pattern][: experts // ranks], (draws, 1))
        else:
            source = np.random.default_rng(
                (seed, tokens, top_k, experts, ranks, round(alpha * 1e6))
            )
            local = power_law_loads(tokens, top_k, experts, ranks, alpha, draws, source)[:, 0]
        parts.append(local)
    sizes = np.repeat([part.shape[1] for part in parts], draws)
    values = np.concatenate([part.ravel() for part in parts]) if parts else np.zeros(0, np.int64)
    return MoeLoads(key, values, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64), draws)


def balanced_loads(tokens: int, top_k: int, experts: int) -> np.ndarray:
    """Tokens per expert of the balanced pattern over all ranks, ``[experts] int64``."""
    stride = math.ceil(experts / top_k)
    first = np.arange(tokens)
    if tokens < stride:
        first = first * stride // tokens
    starts = np.bincount(first % experts, minlength=experts)
    return np.sum([np.roll(starts, i * stride) for i in range(top_k)], axis=0)


def power_law_loads(
    tokens: int,
    top_k: int,
    experts: int,
    ranks: int,
    alpha: float,
    draws: int,
    source: np.random.Generator,
) -> np.ndarray:
    """Draws of the power law, ``[draws, ranks, experts / ranks] int64``, the fullest rank first.

    Each draw sums to ``tokens * top_k``, and no expert has more than ``tokens``.
    """
    copies = tokens * top_k
    low, high = (1.0, 0.8 * tokens) if copies > experts else (0.01, 2.0)
    uniform = source.random((draws, experts))
    if abs(1 - alpha) < 1e-9:
        weights = low * (high / low) ** uniform
    else:
        power = 1 - alpha
        weights = ((high**power - low**power) * uniform + low**power) ** (1 / power)
    exact = weights / weights.sum(axis=1, keepdims=True) * copies
    loads = np.minimum(np.rint(exact).astype(np.int64), tokens).reshape(draws, ranks, -1)
    loads = _settle(loads, copies, tokens)
    fullest = loads.sum(axis=2).argmax(axis=1)
    every = np.arange(draws)
    swapped = loads[every, fullest].copy()
    loads[every, fullest] = loads[:, 0]
    loads[:, 0] = swapped
    return loads


def _settle(loads: np.ndarray, copies: int, tokens: int) -> np.ndarray:
    """Give out (or take back) what rounding and the cap left.

    Round the ranks, one at a time, to the rank's least loaded expert (or from its most loaded),
    while that one is below the cap (above 0). In bulk: every rank gets its share, filled from
    below like water; what a full rank cannot take goes round again.

    Args:
        loads: ``[draws, ranks, local experts]``.
        copies: What each draw must sum to.
        tokens: The cap of each expert.

    Returns:
        The loads, ascending within each rank.
    """
    missing = copies - loads.sum(axis=(1, 2))
    sign = np.where(missing < 0, -1, 1)[:, None, None]
    free = np.where(sign > 0, tokens - loads, loads).sum(axis=2)
    each, extra = np.divmod(np.abs(missing), loads.shape[1])
    shares = each[:, None] + (np.arange(loads.shape[1]) < extra[:, None])
    for draw in np.flatnonzero((shares > free).any(axis=1)):
        shares[draw] = _round_robin(int(abs(missing[draw])), free[draw])
    return np.sort(sign * _filled(sign * loads, shares), axis=2)


def _round_robin(amount: int, free: np.ndarray) -> np.ndarray:
    """What each rank gets of an amount handed out one by one, none more than it has room for."""
    low, high = 0, int(free.max())  # whole rounds: all that fit into the amount
    while low < high:
        rounds = (low + high + 1) // 2
        if int(np.minimum(free, rounds).sum()) <= amount:
            low = rounds
        else:
            high = rounds - 1
    shares = np.minimum(free, low)
    rest = amount - int(shares.sum())
    shares[np.flatnonzero(free > low)[:rest]] += 1
    return shares


def _filled(loads: np.ndarray, amounts: np.ndarray) -> np.ndarray:
    """Raise the lowest values by an amount in all, as adding one to the minimum each time does.

    Args:
        loads: ``[..., experts]``.
        amounts: ``[...]``.

    Returns:
        The raised values, in another order.
    """
    ordered = np.sort(loads, axis=-1)
    sums = np.cumsum(ordered, axis=-1)
    counts = np.arange(1, loads.shape[-1] + 1)
    # Lifting the lowest n to the value after them costs n times that value, less their sum.
    costs = counts[:-1] * ordered[..., 1:] - sums[..., :-1]
    lifted = 1 + (costs < amounts[..., None]).sum(axis=-1, keepdims=True)
    total = np.take_along_axis(sums, lifted - 1, axis=-1) + amounts[..., None]
    level, extra = np.divmod(total, lifted)
    raised = level + (counts <= extra)
    return np.where((counts <= lifted) & (amounts[..., None] > 0), raised, ordered)


def _exponent(distribution: str) -> float | None:
    """The exponent of ``power_law_A``, ``None`` for the balanced pattern."""
    if distribution == "balanced":
        return None
    match = re.fullmatch(r"power_law_(\d+(?:\.\d+)?)", distribution)
    if match is None:
        raise InputError(
            "a distribution whose loads are unknown",
            field="distribution",
            found=distribution,
            allowed="balanced, power_law_<exponent>",
        )
    return float(match[1])


def _check(tokens: int, top_k: int, experts: int, ranks: int) -> None:
    if tokens < 1 or not 1 <= top_k <= experts or ranks < 1 or experts % ranks:
        raise InputError(
            "no such expert-parallel group",
            field="tokens, top_k, experts, moe_ep",
            found=f"{tokens}, {top_k}, {experts}, {ranks}",
            allowed="1 ≤ top_k ≤ experts, experts a multiple of moe_ep",
        )
