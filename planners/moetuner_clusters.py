"""MoETuner's first ILP: split the experts of a layer into evenly loaded clusters.

S. Go and D. Mahajan, "MoETuner", arXiv:2502.06643, §4: with x[e, c] = 1 if expert e is in cluster
c, T[c] the load of cluster c and T̄ their mean, minimise Σ_c |T[c] − T̄| so that no cluster is
empty. The paper leaves cluster sizes free; with ``size`` given they are all equal, as serving
engines need them. Experts with n copies count as n items of 1/n of the load that go to n clusters
(the paper knows no copies).

The deviations above the mean add up to those below, so Σ|T − T̄| = 2 Σ p with p[c] ≥ T[c] − T̄ and
p[c] ≥ 0: half of the usual linearisation. Clusters are interchangeable; they are told apart by
their hottest member, so expert r (by load) may only be in the first n_0 + … + n_r clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.planners.problem import SolveOutcome, SolverName
from moesim.planners.solver import (
    MilpStatus,
    raise_infeasible,
    relative_gap,
    solve_milp,
)

if TYPE_CHECKING:
    import pulp

__all__ = ["ClusterAnswer", "LayerItems", "balanced_clusters", "deviation", "deviation_bound"]

BINARIES_MAX = 1024
"""Above it the start is returned as it is: HiGHS and CBC improved no start beyond 64 experts × 8
devices in 12 s per layer, and at 288 slots × 32 devices they trail LPT with swaps by 4 % and 9 %
after 30 s."""

TIME_MIN_S = 0.05
"""Less is not worth building a model for."""

PROVEN = 1e-6
"""Relative gap that counts as none: the solvers' own feasibility tolerance."""


@dataclass(frozen=True)
class LayerItems:
    """What has to be clustered, hottest copy first.

    Attributes:
        load: [E] float64 tokens of one copy of every expert, hottest expert first.
        count: [E] int64 copies of every expert.
        clusters: G.
        size: Copies per cluster, None for free sizes.
    """

    load: np.ndarray
    count: np.ndarray
    clusters: int
    size: int | None

    @property
    def mean(self) -> float:
        """T̄, mean load of a cluster."""
        return float(self.load @ self.count) / self.clusters


@dataclass(frozen=True)
class ClusterAnswer:
    """Clusters of one layer.

    Attributes:
        member: [E, G] bool.
        objective: Σ_c |T[c] − T̄| in tokens.
        bound: No clustering has less.
        outcome: What is known about it.
    """

    member: np.ndarray
    objective: float
    bound: float
    outcome: SolveOutcome


def deviation(items: LayerItems, member: np.ndarray) -> float:
    """Σ_c |T[c] − T̄| of a clustering ([E, G] bool), in tokens."""
    total = float(np.abs(items.load @ member - items.mean).sum())
    # Below it, the sum is rounding of loads that are even.
    return total if total > 1e-12 * items.clusters * items.mean else 0.0


def deviation_bound(items: LayerItems) -> float:
    """Lower bound on Σ_c |T[c] − T̄| without a solver.

    The k hottest copies sit on some m ≤ k clusters. Those clusters have at least the load of these
    copies and of the lightest that fill them up; what exceeds m · T̄ counts twice, as the other
    clusters lack as much. Without copies, whole numbers of tokens also leave a remainder.

    Returns:
        Tokens.
    """
    mean, clusters = items.mean, items.clusters
    hot_first = np.repeat(items.load, items.count)
    light = np.concatenate(([0.0], np.cumsum(hot_first[::-1])))
    best = 0.0
    hot = min(clusters, int((hot_first > mean).sum()))
    for k in range(1, hot + 1):
        fewest = -(-k // items.size) if items.size else 1
        m = np.arange(fewest, k + 1)
        beside = light[m * items.size - k] if items.size else 0.0
        best = max(best, float((hot_first[:k].sum() + beside - m * mean).min()))
    whole = items.count.max() == 1 and np.array_equal(items.load, np.rint(items.load))
    rest = int(items.load.sum()) % clusters if whole and items.load.sum() < 2**53 else 0
    return 2 * max(best, rest * (clusters - rest) / clusters)


def balanced_clusters(
    items: LayerItems,
    start: np.ndarray,
    *,
    solver: SolverName,
    time_limit_s: float,
    stop_gap: float,
) -> ClusterAnswer:
    """Solve the ILP from a heuristic start.

    Args:
        items: What to cluster.
        start: [E, G] bool, a feasible clustering.
        solver: As for ``solve_milp``.
        time_limit_s: For this layer.
        stop_gap: Relative gap at which the search may stop (0.025 in the paper).

    Returns:
        The better of the solver's answer and the start.

    Raises:
        InfeasibleError: If no clustering exists.
    """
    start = _sorted_clusters(start)
    objective, bound = deviation(items, start), deviation_bound(items)
    if relative_gap(objective, bound) <= stop_gap:
        return _answer(start, objective, bound, SolveOutcome.WITHIN_GAP)
    if start.size > BINARIES_MAX or time_limit_s < TIME_MIN_S:
        return _answer(start, objective, bound, SolveOutcome.HEURISTIC)
    model, x = _model(items)
    first = {
        variable.name: float(start[expert, cluster]) for (expert, cluster), variable in x.items()
    }
    above = np.maximum(items.load @ start / items.mean - 1, 0)
    first |= {f"p_{cluster}": float(above[cluster]) for cluster in range(items.clusters)}
    result = solve_milp(
        model, solver=solver, time_limit_s=time_limit_s, stop_gap=stop_gap, start=first
    )
    if result.status is MilpStatus.INFEASIBLE:
        raise_infeasible(model, solver=solver, what="clusters of evenly loaded experts")
    bound = max(bound, 2 * items.mean * result.bound)
    member = start
    if result.values:
        found = np.zeros(start.shape, bool)
        for place, variable in x.items():
            found[place] = result.values[variable.name] > 0.5
        if _is_clustering(items, found) and deviation(items, found) < objective:
            member, objective = found, deviation(items, found)
    solved = result.status is MilpStatus.SOLVED
    outcome = SolveOutcome.WITHIN_GAP if solved else SolveOutcome.FEASIBLE
    return _answer(member, objective, bound, outcome)


def _model(items: LayerItems) -> tuple[pulp.LpProblem, dict[tuple[int, int], Any]]:
    import pulp

    model = pulp.LpProblem("clusters", pulp.LpMinimize)
    clusters = range(items.clusters)
    reach = np.minimum(np.cumsum(items.count), items.clusters)
    x = {
        (expert, cluster): model.add_variable(f"x_{expert}_{cluster}", cat=pulp.LpBinary)
        for expert, last in enumerate(reach)
        for cluster in range(last)
    }
    above = [model.add_variable(f"p_{cluster}", 0) for cluster in clusters]
    model += pulp.lpSum(above)
    for expert, copies in enumerate(items.count):
        places = [x[expert, cluster] for cluster in range(reach[expert])]
        model += (pulp.lpSum(places) == int(copies), f"every_copy_placed__{expert}")
    share = items.load / items.mean
    for cluster in clusters:
        here = [(expert, x[expert, cluster]) for expert, last in enumerate(reach) if cluster < last]
        held = pulp.lpSum(variable for _, variable in here)
        if items.size is None:
            model += (held >= 1, f"no_empty_cluster__{cluster}")
        else:
            model += (held == items.size, f"equal_cluster_sizes__{cluster}")
        load = pulp.lpSum(float(share[expert]) * variable for expert, variable in here)
        model += (above[cluster] >= load - 1, f"load_above_mean__{cluster}")
    return model, x


def _sorted_clusters(member: np.ndarray) -> np.ndarray:
    """Clusters in the order of their hottest member."""
    return member[:, np.argsort(member.argmax(0), kind="stable")]


def _is_clustering(items: LayerItems, member: np.ndarray) -> bool:
    sizes = member.sum(0)
    fits = (sizes >= 1).all() if items.size is None else (sizes == items.size).all()
    return bool(fits and np.array_equal(member.sum(1), items.count))


def _answer(
    member: np.ndarray, objective: float, bound: float, outcome: SolveOutcome
) -> ClusterAnswer:
    bound = min(bound, objective)
    if relative_gap(objective, bound) <= PROVEN:
        outcome = SolveOutcome.OPTIMAL
    return ClusterAnswer(member, objective, bound, outcome)
