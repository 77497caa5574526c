"""Regrouping an existing model into equal groups of experts, one group per device.

Group-limited top-k then sends every device exactly T · K' token copies: balance is exact, whatever
the router says. What it costs is the gate mass of choices beyond K' in one group.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from moesim.errors import UsageError
from moesim.planners.moge_exact import MAX_COLUMNS, columns, partition_by_ilp, spectral_bound
from moesim.planners.moge_mass import Choices, lost_mass, pair_weights
from moesim.planners.moge_search import swap_exact, swap_pairwise

__all__ = ["Grouping", "LayerGroups", "check_groups", "regroup", "search_groups"]

RANDOM_PARTITIONS = 20
"""Whose mean stands for random groups."""

STARTS = 6
START_EXPERTS = 400
"""Random partitions that the search starts from, beside consecutive experts: so many at least, and
this number over the experts where these are few."""


@dataclass(frozen=True)
class LayerGroups:
    """Groups of one layer; masses are shares of its gates.

    Attributes:
        group: [E] of every expert.
        method: ``ilp`` or ``search``.
        lost: By these groups.
        lower_bound: That no groups go below.
        contiguous: Lost by consecutive experts.
        random: Lost by random groups, mean.
    """

    group: np.ndarray
    method: str
    lost: float
    lower_bound: float
    contiguous: float
    random: float

    @property
    def gap(self) -> float:
        """Loss above the bound, as a share of the loss."""
        return (self.lost - self.lower_bound) / self.lost if self.lost > 0 else 0.0


@dataclass(frozen=True)
class Grouping:
    """Groups of all layers.

    Attributes:
        layers: L of them.
        groups: M.
        per_group: K'.
        mass: [L] gates of every layer.
        solve_s: Seconds.
        cut_short: Layers whose search the time limit cut short.
    """

    layers: tuple[LayerGroups, ...]
    groups: int
    per_group: int
    mass: np.ndarray
    solve_s: float
    cut_short: int

    def mean(self, name: str) -> float:
        """A share of the layers, weighted by their gates."""
        shares = [getattr(layer, name) for layer in self.layers]
        return float(np.average(shares, weights=self.mass))

    @property
    def order(self) -> np.ndarray:
        """[L, E] int64 experts group by group: slot s belongs to group s // (E / M)."""
        return np.stack([np.argsort(layer.group, kind="stable") for layer in self.layers])

    def lost(self, choices: Choices) -> float:
        """Share that these groups lose of other choices."""
        return self.lost_by(choices, [layer.group for layer in self.layers])

    def lost_by(self, choices: Choices, groups: Sequence[np.ndarray]) -> float:
        """Share that [E] groups of every layer lose of choices."""
        lost = sum(
            lost_mass(choices.expert[i], choices.weight[i], group, self.per_group)
            for i, group in enumerate(groups)
        )
        return float(lost / choices.mass.sum())


def check_groups(experts: int, top_k: int, groups: int, per_group: int | None) -> int:
    """K', the experts of a token in every group.

    Raises:
        UsageError: If groups cannot be equal, or hold fewer experts than a token takes.
    """
    if groups < 1 or experts % groups:
        raise UsageError(
            f"--groups {groups} does not divide the {experts} experts\n"
            f"fix: pass a divisor of {experts}"
        )
    if per_group is None:
        if top_k % groups:
            raise UsageError(
                f"--groups {groups} does not divide the {top_k} experts of a token\n"
                f"fix: pass a divisor of {top_k}, or --per-group with more experts per token"
            )
        per_group = top_k // groups
    if not 1 <= per_group <= experts // groups:
        raise UsageError(
            f"--per-group {per_group} of groups of {experts // groups} experts\n"
            f"fix: pass 1 … {experts // groups}"
        )
    return per_group


def regroup(
    choices: Choices,
    groups: int,
    per_group: int,
    *,
    seed: int = 0,
    time_limit_s: float = 60.0,
    say: Callable[[str], object] = lambda _: None,
) -> Grouping:
    """Groups of least lost mass for every layer.

    Args:
        choices: Of tokens.
        groups: M, divides E.
        per_group: K'.
        seed: Of random partitions.
        time_limit_s: For all layers; every layer gets at least swaps by pairs.
        say: Told of progress.
    """
    began = time.monotonic()
    layers, cut_short = [], 0
    count = len(choices.expert)
    for index in range(count):
        say(f"grouping layer {index + 1} of {count}")
        left = time_limit_s - (time.monotonic() - began)
        layer, whole = _layer(
            choices, index, groups, per_group, seed, max(0.0, left) / (count - index)
        )
        cut_short += not whole
        layers.append(layer)
    return Grouping(
        tuple(layers), groups, per_group, choices.mass, time.monotonic() - began, cut_short
    )


def search_groups(
    choices: Choices, index: int, groups: int, per_group: int, seed: int, budget_s: float
) -> tuple[np.ndarray, bool]:
    """Groups of one layer by swaps from several starts, and whether time allowed for all.

    Returns:
        [E] group of every expert.
    """
    expert, weight = choices.expert[index], choices.weight[index]
    pairs, _ = pair_weights(expert, weight, choices.experts, per_group)
    rng = np.random.default_rng((seed, index))
    even: np.ndarray = np.arange(choices.experts) * groups // choices.experts
    deadline = time.monotonic() + budget_s
    best: np.ndarray = even
    least = np.inf
    for start in range(1 + max(STARTS, START_EXPERTS // choices.experts)):
        if start and time.monotonic() > deadline:
            return best, False
        group = even if start == 0 else rng.permutation(even)
        if start % 2 == 0:
            group = swap_pairwise(pairs, group, groups)
        group = swap_exact(expert, weight, group, groups, per_group, deadline)
        if (lost := lost_mass(expert, weight, group, per_group)) < least:
            best, least = group, lost
    return best, True


def _layer(
    choices: Choices, index: int, groups: int, per_group: int, seed: int, budget_s: float
) -> tuple[LayerGroups, bool]:
    expert, weight = choices.expert[index], choices.weight[index]
    experts, mass = choices.experts, float(weight.sum())
    even = np.arange(experts) * groups // experts
    rng = np.random.default_rng((seed, index, 1))
    random = [
        lost_mass(expert, weight, rng.permutation(even), per_group)
        for _ in range(RANDOM_PARTITIONS)
    ]
    pairs, constant = pair_weights(expert, weight, experts, per_group)
    bound = spectral_bound(pairs, constant, groups)
    group, method, whole = None, "ilp", True
    if columns(experts, groups) <= MAX_COLUMNS:
        group, proven, _ = partition_by_ilp(
            expert, weight, experts, groups, per_group, time_limit_s=max(1.0, budget_s)
        )
        bound = max(bound, proven)
    if group is None:
        method = "search"
        group, whole = search_groups(choices, index, groups, per_group, seed, budget_s)
    lost = lost_mass(expert, weight, group, per_group)
    found = LayerGroups(
        group=_in_order(group),
        method=method,
        lost=lost / mass,
        lower_bound=min(bound, lost) / mass,
        contiguous=lost_mass(expert, weight, even, per_group) / mass,
        random=float(np.mean(random)) / mass,
    )
    return found, whole


def _in_order(group: np.ndarray) -> np.ndarray:
    """Groups numbered by their first expert."""
    _, first, inverse = np.unique(group, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]
