"""Gate mass that group-limited top-k keeps of a trace.

With experts in M equal groups and K' experts per token and group, a token keeps, of the experts it
chose freely, the K' with the largest gates in every group; the rest is lost. What takes their place
is not in a trace, which holds the chosen experts alone.

Axes: L MoE layers, T tokens, K experts per token by falling gate, E experts, M groups.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import comb

import numpy as np

from moesim.compiled import compiled
from moesim.errors import InputError
from moesim.traces.bundle import Trace
from moesim.workload import split_trace

__all__ = ["Choices", "lost_mass", "lost_sets_bits", "pair_weights", "read_choices"]

MAX_TOKENS = 65_536
"""Of a longer trace an evenly spread sample is used: shares of mass are then known to 0.2 %."""


@dataclass(frozen=True)
class Choices:
    """What tokens chose.

    Attributes:
        expert: [L, T, K] int32, −1 where an entry does not count.
        weight: [L, T, K] float64 gates, or 1 each where only the choice is known.
        experts: E.
    """

    expert: np.ndarray
    weight: np.ndarray
    experts: int

    @property
    def mass(self) -> np.ndarray:
        """[L] gates of all choices."""
        return np.asarray(self.weight.sum((1, 2)))


def read_choices(trace: Trace, holdout: float) -> tuple[Choices, Choices | None]:
    """The choices to group by, and those kept back.

    Raises:
        InputError: If an expert or gate cannot be one.
        UsageError: If the share to keep back leaves nothing.
    """
    # The split drops gates; so it is numbers of tokens that are split.
    numbers = np.arange(trace.manifest.tokens).reshape(1, -1, 1)
    numbered = replace(trace, routing=numbers, gates=None, valid_k=None)
    parts = split_trace(numbered, holdout, MAX_TOKENS)
    found = [None if part is None else _take(trace, part.routing[0, :, 0]) for part in parts]
    if found[0] is None:
        raise AssertionError
    return found[0], found[1]


def _take(trace: Trace, tokens: np.ndarray) -> Choices:
    expert = trace.routing[:, tokens].astype(np.int32)
    experts = trace.manifest.experts
    if int(expert.max()) >= experts:
        raise InputError(
            "expert id out of range", file=trace.path, field="routing.npy",
            found=int(expert.max()), allowed=f"0 … {experts - 1}",
            fix="run: moesim trace validate",
        )  # fmt: skip
    if trace.gates is None:
        weight = np.ones(expert.shape)
    else:
        weight = trace.gates[:, tokens].astype(np.float64)
        bad = ~(np.isfinite(weight) & (weight >= 0))
        if bad.any():
            raise InputError(
                "a gate must be a finite number of at least 0", file=trace.path,
                field="gates.npy", found=float(weight[bad][0]),
                fix="record the trace again, or remove gates.npy to count choices alone",
            )  # fmt: skip
    if trace.valid_k is not None:
        unused = trace.valid_k[:, tokens][..., None] <= np.arange(expert.shape[2])
        expert[unused], weight[unused] = -1, 0.0
    order = np.argsort(np.where(expert < 0, np.inf, -weight), axis=-1, kind="stable")
    choices = Choices(
        np.take_along_axis(expert, order, -1), np.take_along_axis(weight, order, -1), experts
    )
    if not (choices.mass > 0).all():
        raise InputError(
            "a layer has no gate above 0", file=trace.path, field="gates.npy",
            found=f"layer {trace.manifest.moe_layers[int(choices.mass.argmin())]}",
            fix="record the trace again, or remove gates.npy to count choices alone",
        )  # fmt: skip
    return choices


@compiled
def lost_mass(expert: np.ndarray, weight: np.ndarray, group: np.ndarray, per_group: int) -> float:
    """Gates of one layer that group-limited top-k does not keep.

    Args:
        expert: [T, K] by falling gate, −1 where an entry does not count.
        weight: [T, K].
        group: [E] group of every expert; experts of a negative group are left out of account.
        per_group: K'.
    """
    total = 0.0
    for token in range(expert.shape[0]):
        for place in range(expert.shape[1]):
            if expert[token, place] < 0:
                continue
            own = group[expert[token, place]]
            if own < 0:
                continue
            before = 0
            for other in range(place):
                if expert[token, other] >= 0 and group[expert[token, other]] == own:
                    before += 1
            if before >= per_group:
                total += weight[token, place]
    return total


@compiled
def pair_weights(
    expert: np.ndarray, weight: np.ndarray, experts: int, per_group: int
) -> tuple[np.ndarray, float]:
    """A linear function of which pairs share a group that never exceeds the lost mass.

    The j-th choice (from 1) is lost if p ≥ K' of those before it share its group. As p ≤ j − 1,
    [p ≥ K'] ≥ (p − K' + 1) / (j − K'), which is linear in pairs.

    Returns:
        [E, E] symmetric weights w and a constant c: lost ≥ Σ_{pairs in one group} w − c.
    """
    pairs = np.zeros((experts, experts))
    constant = 0.0
    for token in range(expert.shape[0]):
        for place in range(per_group, expert.shape[1]):
            one = expert[token, place]
            if one < 0:
                continue
            share = weight[token, place] / (place + 1 - per_group)
            constant += share * (per_group - 1)
            for other in range(place):
                two = expert[token, other]
                if two >= 0 and two != one:
                    pairs[one, two] += share
                    pairs[two, one] += share
    return pairs, constant


def lost_sets_bits(experts: int, groups: int, per_group: int) -> tuple[float, float]:
    """log2 of the sets of experts that a token can have, free and grouped.

    Args:
        experts: E.
        groups: M.
        per_group: K'; free top-k takes M · K'.
    """
    free = comb(experts, groups * per_group)
    return float(np.log2(float(free))), groups * float(np.log2(comb(experts // groups, per_group)))
