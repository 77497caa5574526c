"""Mapping clusters to devices layer by layer.

Given the mapping of the layer before, the mapping of a layer with the shortest tail is a
bottleneck assignment and found exactly. Afterwards pairs of clusters of a layer are swapped while
the two tails around it shrink. The whole is a heuristic: the chain is walked only forwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.planners.assignment import bottleneck_assignment

__all__ = [
    "MappingProblem",
    "map_along_chain",
    "memory_deviation",
    "memory_pattern",
    "tail_cost",
]

SWEEPS_MAX = 20
"""Rounds of swaps over all layers (three or four are usual)."""


@dataclass(frozen=True)
class MappingProblem:
    """What has to be mapped.

    Attributes:
        flow: [L-1, G, G] float64, assignments from cluster to cluster of the next layer.
        sizes: [L, G] int64, experts in every cluster.
        seconds: [G, G] float64 seconds per byte from device to device, 0 on the diagonal.
    """

    flow: np.ndarray
    sizes: np.ndarray
    seconds: np.ndarray

    @property
    def fair_share(self) -> float:
        """Experts that every device should hold over all layers, E·L/G."""
        return float(self.sizes.sum()) / int(self.sizes.shape[1])


def tail_cost(problem: MappingProblem, device: np.ndarray) -> float:
    """Σ_l max C/B of a mapping ([L, G] device of every cluster)."""
    total = 0.0
    for flow, here, there in zip(problem.flow, device[:-1], device[1:], strict=True):
        total += float((flow * problem.seconds[np.ix_(here, there)]).max())
    return total


def memory_deviation(problem: MappingProblem, device: np.ndarray) -> float:
    """Σ_g |experts held over all layers − E·L/G| of a mapping."""
    held = np.zeros(problem.sizes.shape[1])
    np.add.at(held, device, problem.sizes)
    return float(np.abs(held - problem.fair_share).sum())


def memory_pattern(problem: MappingProblem) -> np.ndarray:
    """[L, G] cluster size that every device takes in every layer, devices evenly filled.

    Largest cluster to the emptiest device, layer after layer; then pairs of devices swap their
    clusters of a layer while that evens them out.
    """
    layers, devices = problem.sizes.shape
    slots = np.empty((layers, devices), np.int64)
    held = np.zeros(devices, np.int64)
    for layer in range(layers):
        emptiest = np.argsort(held, kind="stable")
        slots[layer, emptiest] = np.sort(problem.sizes[layer])[::-1]
        held += slots[layer]
    improved = True
    while improved:
        improved = False
        for layer in range(layers):
            for one in range(devices):
                for other in range(one):
                    moved = slots[layer, one] - slots[layer, other]
                    # Moving d experts from a to b evens them out if 0 < d < a − b.
                    if moved * (held[one] - held[other] - moved) > 0:
                        slots[layer, [one, other]] = slots[layer, [other, one]]
                        held[one] -= moved
                        held[other] += moved
                        improved = True
    return slots


def map_along_chain(problem: MappingProblem, slots: np.ndarray) -> np.ndarray:
    """[L, G] device of every cluster; sizes as ``slots`` says."""
    layers, devices = problem.sizes.shape
    fits = problem.sizes[:, :, None] == slots[:, None, :]
    device = np.empty((layers, devices), np.int64)
    device[0] = bottleneck_assignment(np.where(fits[0], 0.0, np.inf))
    for layer in range(1, layers):
        cost = _cost_in(problem, device, layer)
        device[layer] = bottleneck_assignment(np.where(fits[layer], cost, np.inf))
    for _ in range(SWEEPS_MAX):
        before = device.copy()
        for layer in range(layers):
            _swap_in_layer(problem, device, layer)
        if np.array_equal(before, device):
            break
    return device


def _cost_in(problem: MappingProblem, device: np.ndarray, layer: int) -> np.ndarray:
    """[G, G] longest C/B into a cluster (row) from the layer before, by its device (column)."""
    times = problem.seconds[device[layer - 1]]
    flow = problem.flow[layer - 1]
    return np.stack([(flow[:, [c]] * times).max(0) for c in range(flow.shape[1])])


def _cost_out(problem: MappingProblem, device: np.ndarray, layer: int) -> np.ndarray:
    """[G, G] longest C/B out of a cluster (row) to the next layer, by its device (column)."""
    times = problem.seconds[:, device[layer + 1]]
    return np.stack([(row * times).max(1) for row in problem.flow[layer]])


def _swap_in_layer(problem: MappingProblem, device: np.ndarray, layer: int) -> None:
    """Swap the devices of two equally large clusters while the two tails around them shrink."""
    layers, devices = device.shape
    costs = []
    if layer > 0:
        costs.append(_cost_in(problem, device, layer))
    if layer + 1 < layers:
        costs.append(_cost_out(problem, device, layer))
    if not costs:
        return
    one, other = np.triu_indices(devices, 1)
    equal = problem.sizes[layer, one] == problem.sizes[layer, other]
    one, other = one[equal], other[equal]
    every = np.arange(devices)
    while len(one):
        here = device[layer]
        now = sum(float(cost[every, here].max()) for cost in costs)
        after = np.zeros(len(one))
        for cost in costs:
            paid = cost[every, here]
            rest = _largest_without(paid, one, other)
            swapped = np.maximum(cost[one, here[other]], cost[other, here[one]])
            after += np.maximum(rest, swapped)
        best = int(after.argmin())
        if after[best] >= now * (1 - 1e-12):
            return
        device[layer, [one[best], other[best]]] = here[[other[best], one[best]]]


def _largest_without(paid: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Largest entry once the two are left out; 0 if none is left."""
    result = np.zeros(len(one))
    undecided = np.ones(len(one), bool)
    for index in np.argsort(-paid)[:3]:
        counts = undecided & (one != index) & (other != index)
        result[counts] = paid[index]
        undecided &= ~counts
    return result
