"""MoETuner's second ILP: which device takes which cluster, layer by layer.

S. Go and D. Mahajan, "MoETuner", arXiv:2502.06643, §4: C[c1, c2, l] tokens go from cluster c1 of
layer l to cluster c2 of the next, B[g1, g2] is the bandwidth between two devices. Minimise
Σ_l max over pairs of devices of C/B, the tail of every all-to-all, so that every device takes one
cluster per layer and the same number of experts over all layers (E·L/G, its memory).

Small instances are solved as they stand (moetuner_joint.py), started from and otherwise left to a
heuristic that maps one layer after the other (moetuner_chain.py). Beyond a few hundred binaries
the joint ILP gets nowhere in minutes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from moesim.planners.moetuner_chain import (
    MappingProblem,
    map_along_chain,
    memory_pattern,
    tail_cost,
)
from moesim.planners.moetuner_joint import is_small, solve_joint, solve_memory
from moesim.planners.problem import SolveOutcome, SolverName
from moesim.planners.solver import relative_gap

__all__ = ["MappingAnswer", "map_clusters"]

TIME_MIN_S = 0.05
"""Less is not worth building a model for."""

PROVEN = 1e-6
"""Relative gap that counts as none: the solvers' own feasibility tolerance."""


@dataclass(frozen=True)
class MappingAnswer:
    """Which device takes which cluster.

    Attributes:
        device: [L, G] int64, device of every cluster.
        objective: Σ_l of the largest C/B, in seconds per byte that an assignment carries.
        bound: No mapping has less.
        outcome: What is known about it.
        method: How it was found.
    """

    device: np.ndarray
    objective: float
    bound: float
    outcome: SolveOutcome
    method: str


def map_clusters(
    problem: MappingProblem, *, solver: SolverName, time_limit_s: float, stop_gap: float
) -> MappingAnswer:
    """Map clusters to devices, jointly where a solver can, else along the chain.

    Memory comes first: the mapping deviates from equal memory as little as any mapping that
    could be found, then its tails are as short as possible.

    Args:
        problem: Flow, sizes and link times.
        solver: As for ``solve_milp``.
        time_limit_s: For all of it.
        stop_gap: Relative gap at which the search may stop (0.025 in the paper).
    """
    deadline_s = time.perf_counter() + time_limit_s
    small = is_small(problem)
    slots = memory_pattern(problem)
    if small and time_limit_s > TIME_MIN_S and _above_least(problem, slots):
        slots = solve_memory(problem, slots, solver, time_limit_s / 4)
    device = map_along_chain(problem, slots)
    objective, bound = tail_cost(problem, device), _tail_bound(problem)
    method = "layer by layer: bottleneck assignment given the layer before, then pair swaps"
    outcome = SolveOutcome.HEURISTIC
    left_s = deadline_s - time.perf_counter()
    if small and relative_gap(objective, bound) > stop_gap and left_s > TIME_MIN_S:
        method = "joint ILP over all layers"
        device, bound, outcome = solve_joint(
            problem, device, bound, solver=solver, time_limit_s=left_s, stop_gap=stop_gap
        )
        objective = tail_cost(problem, device)
    gap = relative_gap(objective, bound)
    if gap <= PROVEN:
        outcome = SolveOutcome.OPTIMAL
    elif gap <= stop_gap:
        outcome = SolveOutcome.WITHIN_GAP
    return MappingAnswer(device, objective, min(bound, objective), outcome, method)


def _tail_bound(problem: MappingProblem) -> float:
    """Lower bound on Σ_l without a solver.

    Of every row and column of C at most one entry stays on its device; the second largest has to
    travel, over the fastest link at best.
    """
    if problem.sizes.shape[1] < 2 or not len(problem.flow):
        return 0.0
    fastest = problem.seconds[~np.eye(len(problem.seconds), dtype=bool)].min()
    by_row = np.sort(problem.flow, axis=2)[:, :, -2].max(1)
    by_column = np.sort(problem.flow, axis=1)[:, -2, :].max(1)
    return float((np.maximum(by_row, by_column) * fastest).sum())


def _above_least(problem: MappingProblem, slots: np.ndarray) -> bool:
    devices = slots.shape[1]
    rest = int(slots.sum()) % devices
    least = 2 * rest * (devices - rest) / devices
    return bool(np.abs(slots.sum(0) - problem.fair_share).sum() > least + 1e-9)
