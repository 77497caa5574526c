"""Balance where every routing group stays on one node: which groups share a node, then the rest.

A router that picks few groups per token (DeepSeek-V3 §2.1.2: at most 4 nodes) keeps its promise
only if the experts of a group, with all their copies, lie on one node. A node then carries the
load of its groups however well it is spread inside, so which groups share a node decides:

1. pair groups with nodes so that the least load that the fullest node can reach, by
   ``load_bound.py`` on its own devices and slots, is as small as possible;
2. inside every node LPT with swaps (greedy.py), spare slots included.

Pairing is exact (dynamic programming over sets of groups) while it takes at most
``EXACT_STEPS`` steps, as it does for DeepSeek-V3's 8 groups on 2, 4 or 8 nodes; beyond that the
groups are packed by load with LPT and swaps.

Axes: L MoE layers, E logical experts, S physical slots, G devices, N nodes, R routing groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from math import comb

import numpy as np

from moesim.errors import InfeasibleError
from moesim.planners.eplb import eplb_hierarchical, keeps_groups
from moesim.planners.greedy import lpt_swap
from moesim.planners.load_bound import finish_load_bound
from moesim.planners.problem import PlacementProblem, device_finish_load

__all__ = ["grouped_load_bound", "lpt_swap_hierarchical", "pair_groups"]

EXACT_STEPS = 5000
"""Of the dynamic programme, each over all layers at once: about 0.1 s."""


def lpt_swap_hierarchical(problem: PlacementProblem) -> np.ndarray:
    """The best pairing of groups with nodes, then LPT with swaps inside every node.

    Returns:
        [L, S] int32 physical_to_logical, in no layer less even than hierarchical EPLB, unless
        copies must be distinct.

    Raises:
        InfeasibleError: If the groups do not divide by the nodes, or the experts by the groups.
    """
    node_groups = pair_groups(problem)
    size = problem.experts // problem.routing_groups
    experts = (node_groups[..., None] * size + np.arange(size)).reshape(
        problem.layers, problem.nodes, -1
    )
    rows = np.arange(problem.layers)[:, None]
    table = np.empty((problem.layers, problem.nodes, problem.slots // problem.nodes), np.int32)
    for nodes in _alike(problem):
        held = experts[:, nodes]  # [L, n, E/N]
        loads = problem.loads[rows[..., None], held]
        inside = lpt_swap(_node_problem(problem, int(nodes[0]), loads.reshape(-1, held.shape[2])))
        inside = inside.reshape(problem.layers, len(nodes), -1)
        table[:, nodes] = np.take_along_axis(held, inside, 2)
    found = table.reshape(problem.layers, problem.slots)
    if problem.distinct_copies:
        return found
    published = eplb_hierarchical(problem)
    finish, rival = (device_finish_load(one, problem).max(1) for one in (found, published))
    worse = rival < finish * (1 - 1e-9)
    found[worse] = published[worse]
    return found


def grouped_load_bound(problem: PlacementProblem) -> np.ndarray:
    """Lower bound per layer on the largest load over speed, routing groups whole on nodes.

    The best pairing of groups with nodes, every node at its own bound; at least the bound without
    groups. Where the pairing would take too many steps the latter is returned.

    Returns:
        [L] float64 token assignments of a device of nominal speed.

    Raises:
        InfeasibleError: If the groups do not divide by the nodes, or the experts by the groups.
    """
    _check(problem)
    bound = finish_load_bound(problem)
    if _steps(problem) <= EXACT_STEPS:
        bound = np.maximum(bound, _best_pairing(problem)[0])
    return bound


def pair_groups(problem: PlacementProblem) -> np.ndarray:
    """Which groups every node holds.

    Returns:
        [L, N, R/N] int64.

    Raises:
        InfeasibleError: If the groups do not divide by the nodes, or the experts by the groups.
    """
    _check(problem)
    if _steps(problem) <= EXACT_STEPS:
        return _best_pairing(problem)[1]
    groups, nodes = problem.routing_groups, problem.nodes
    packed = lpt_swap(
        PlacementProblem(
            loads=problem.loads.reshape(problem.layers, groups, -1).sum(2),
            devices=nodes,
            slots=groups,
            speed_factors=problem.speed_factors.reshape(nodes, -1).sum(1),
            pair_bandwidth_bytes_per_s=np.ones((nodes, nodes)),
        )
    )
    return packed.reshape(problem.layers, nodes, -1).astype(np.int64)


def _check(problem: PlacementProblem) -> None:
    if not keeps_groups(problem):
        raise InfeasibleError(
            f"routing groups cannot stay on one node: {problem.experts} experts in "
            f"{problem.routing_groups} groups cannot be split evenly over {problem.nodes} nodes\n"
            "fix: use --planner lpt-swap"
        )


def _alike(problem: PlacementProblem) -> list[np.ndarray]:
    """Nodes with the same speeds, device by device; all layers of these are packed in one go."""
    speeds = problem.speed_factors.reshape(problem.nodes, -1)
    _, kind = np.unique(speeds, axis=0, return_inverse=True)
    return [np.flatnonzero(kind.ravel() == one) for one in range(int(kind.max()) + 1)]


def _node_problem(problem: PlacementProblem, node: int, loads: np.ndarray) -> PlacementProblem:
    """One node by itself, with [X, E/N] loads."""
    per_node = problem.devices // problem.nodes
    here = slice(node * per_node, (node + 1) * per_node)
    return replace(
        problem,
        loads=loads,
        devices=per_node,
        slots=problem.slots // problem.nodes,
        nodes=1,
        routing_groups=1,
        speed_factors=problem.speed_factors[here],
        pair_bandwidth_bytes_per_s=problem.pair_bandwidth_bytes_per_s[here, here],
        transitions=None,
        coactivation=None,
        cost=None,
    )


def _steps(problem: PlacementProblem) -> int:
    """How many (set of groups, groups of the next node) the dynamic programme goes through."""
    groups, nodes = problem.routing_groups, problem.nodes
    share = groups // nodes
    return sum(
        comb(groups, node * share) * comb(groups - node * share, share) for node in range(nodes)
    )


def _best_pairing(problem: PlacementProblem) -> tuple[np.ndarray, np.ndarray]:
    """[L] the least bound of the fullest node, and [L, N, R/N] the groups that reach it."""
    groups, nodes, layers = problem.routing_groups, problem.nodes, problem.layers
    share = groups // nodes
    choices = list(combinations(range(groups), share))
    bits = [sum(1 << group for group in choice) for choice in choices]
    bound = _bound_of_choices(problem, choices)  # [N, choices, L]
    best = {0: np.zeros(layers)}
    came_by: list[dict[int, np.ndarray]] = []
    for node in range(nodes):
        further: dict[int, np.ndarray] = {}
        by: dict[int, np.ndarray] = {}
        for used, value in best.items():
            for number, taken in _free_choices(bits, used):
                reached = np.maximum(value, bound[node, number])
                state = used | taken
                if state not in further:
                    further[state], by[state] = reached, np.full(layers, number)
                    continue
                better = reached < further[state]
                further[state] = np.where(better, reached, further[state])
                by[state] = np.where(better, number, by[state])
        best = further
        came_by.append(by)
    every = (1 << groups) - 1
    chosen = np.empty((layers, nodes, share), np.int64)
    for layer in range(layers):
        state = every
        for node in reversed(range(nodes)):
            number = int(came_by[node][state][layer])
            chosen[layer, node] = choices[number]
            state ^= bits[number]
    return best[every], chosen


def _free_choices(bits: list[int], used: int) -> Iterator[tuple[int, int]]:
    return ((number, taken) for number, taken in enumerate(bits) if not taken & used)


def _bound_of_choices(problem: PlacementProblem, choices: list[tuple[int, ...]]) -> np.ndarray:
    """[N, choices, L] bound of a node that holds these groups."""
    by_group = problem.loads.reshape(problem.layers, problem.routing_groups, -1)
    loads = by_group[:, np.array(choices)].transpose(1, 0, 2, 3)  # [choices, L, R/N, size]
    loads = loads.reshape(len(choices) * problem.layers, -1)
    bound = np.empty((problem.nodes, len(choices), problem.layers))
    for nodes in _alike(problem):
        found = finish_load_bound(_node_problem(problem, int(nodes[0]), loads))
        bound[nodes] = found.reshape(len(choices), problem.layers)
    return bound
