"""Which experts are used together, and copies of them, for planners that go by affinity alone."""

from __future__ import annotations

import numpy as np

from moesim.planners.problem import PlacementProblem
from moesim.planners.replicate import replicate

__all__ = ["copies_by_load", "pair_counts", "to_table"]


def copies_by_load(problem: PlacementProblem) -> tuple[np.ndarray, np.ndarray]:
    """Spare slots go to the experts whose copies are loaded most.

    Returns:
        expert: [L, S] int64 logical expert of every copy.
        count: [L, S] int64 how many copies that expert has.
    """
    expert, count = replicate(problem.loads, problem.slots, largest_count=problem.devices)
    return expert, np.take_along_axis(count, expert, 1)


def pair_counts(problem: PlacementProblem, layer: int) -> np.ndarray:
    """[E, E] float64 tokens that use experts i and j ≠ i in a layer; the diagonal is 0.

    Where only loads are known, the experts of a token are taken to be independent.
    """
    if problem.coactivation is None:
        loads = problem.loads[layer]
        pairs = np.outer(loads, loads) / max(float(loads.sum()), 1e-300)
    else:
        pairs = problem.coactivation[layer].copy()
    np.fill_diagonal(pairs, 0.0)
    return pairs


def to_table(expert: np.ndarray, device_of: np.ndarray) -> np.ndarray:
    """[L, S] int32 physical_to_logical, experts of a device in ascending order.

    Args:
        expert: [L, S] logical expert of every copy.
        device_of: [L, S] its device, S / G copies on each.
    """
    order = np.lexsort((expert, device_of), axis=1)
    return np.take_along_axis(expert, order, 1).astype(np.int32)
