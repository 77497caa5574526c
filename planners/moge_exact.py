"""Optimal groups of few experts, and a bound for many.

Few experts: every possible group is a column whose cost is the exact mass it loses, and an integer
program takes the cheapest set of columns that holds every expert once (set partitioning).

Many experts: the linear function of :func:`~moesim.planners.moge_mass.pair_weights` is bounded from
below over all equal partitions by its eigenvalues (Donath and Hoffman, IBM J. Res. Dev. 17, 1973).
"""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np

from moesim.planners.moge_mass import lost_mass
from moesim.planners.problem import SolverName
from moesim.planners.solver import MilpStatus, solve_milp

__all__ = ["MAX_COLUMNS", "partition_by_ilp", "spectral_bound"]

MAX_COLUMNS = 2000
"""Possible groups up to which the program is solved: 16 experts in groups of 4 have 1820."""

_STOP_GAP = 1e-9
_STEPS = 60


def columns(experts: int, groups: int) -> int:
    """How many groups of E / M experts there are."""
    return comb(experts, experts // groups)


def partition_by_ilp(
    expert: np.ndarray,
    weight: np.ndarray,
    experts: int,
    groups: int,
    per_group: int,
    *,
    solver: SolverName = "cbc",
    time_limit_s: float = 30.0,
) -> tuple[np.ndarray | None, float, bool]:
    """Groups of least lost mass.

    Args:
        expert: [T, K] by falling gate, −1 where an entry does not count.
        weight: [T, K].
        experts: E.
        groups: M.
        per_group: K'.
        solver: As for :func:`~moesim.planners.solver.solve_milp`.
        time_limit_s: Seconds.

    Returns:
        [E] group of every expert or None, a lower bound on the lost mass, whether it is proven
        optimal.
    """
    import pulp

    mass = float(weight.sum())
    sets = list(combinations(range(experts), experts // groups))
    model = pulp.LpProblem("groups", pulp.LpMinimize)
    chosen = []
    holding: list[list[object]] = [[] for _ in range(experts)]
    terms = []
    for index, members in enumerate(sets):
        group = np.full(experts, -1, np.int64)
        group[list(members)] = 0
        variable = model.add_variable(f"g{index}", cat="Binary")
        chosen.append(variable)
        terms.append(lost_mass(expert, weight, group, per_group) / mass * variable)
        for member in members:
            holding[member].append(variable)
    model += pulp.lpSum(terms)
    for member, variables in enumerate(holding):
        model.addConstraint(pulp.lpSum(variables) == 1, f"expert__{member}")
    result = solve_milp(model, solver=solver, time_limit_s=time_limit_s, stop_gap=_STOP_GAP)
    bound = max(0.0, result.bound) * mass
    if result.status not in (MilpStatus.SOLVED, MilpStatus.LIMIT):
        return None, bound, False
    taken = [sets[i] for i, v in enumerate(chosen) if result.values.get(v.name, 0.0) > 0.5]
    group = np.full(experts, -1, np.int64)
    for number, members in enumerate(sorted(taken)):
        group[list(members)] = number
    sizes = np.bincount(group + 1, minlength=groups + 1)
    if sizes[0] or not (sizes[1:] == experts // groups).all():
        return None, bound, False
    return group, bound, result.status is MilpStatus.SOLVED


def spectral_bound(pairs: np.ndarray, constant: float, groups: int) -> float:
    """Lost mass that no partition into equal groups goes below; at least 0.

    For the indicator X [E, M] of a partition, Σ_{pairs in one group} w = ½ tr Xᵀ(W + D)X for every
    diagonal D of trace 0. Its columns, scaled by √(M / E), are orthonormal and their sum is the
    all-ones vector, which gives one known term and M − 1 that are at least the smallest eigenvalues
    on its complement. D is improved by subgradient steps.

    Args:
        pairs: [E, E] symmetric weights w.
        constant: To take off.
        groups: M.
    """
    experts = len(pairs)
    size = experts // groups
    if groups == 1:
        return max(0.0, float(pairs.sum()) / 2 - constant)
    basis = np.linalg.qr(np.column_stack([np.ones(experts), np.eye(experts)[:, :-1]]))[0][:, 1:]
    # A first D that makes rows sum to the same: the complement then sees a Laplacian.
    shift = -(pairs.sum(1) - pairs.sum(1).mean())
    best, step = -np.inf, float(np.abs(pairs).max())
    for number in range(_STEPS):
        inner = basis.T @ (pairs + np.diag(shift)) @ basis
        values, vectors = np.linalg.eigh(inner)
        bound = 0.5 * (pairs.sum() / groups + size * values[: groups - 1].sum())
        best = max(best, float(bound))
        slope = ((basis @ vectors[:, : groups - 1]) ** 2).sum(1)
        slope -= slope.mean()
        length = float(np.linalg.norm(slope))
        if length < 1e-9:
            break
        shift = shift + step / (1 + number) * slope / length * np.sqrt(experts)
    return max(0.0, best - constant)
