"""Where a search over sampled tokens starts from, and what it knows of their experts.

Swaps of pairs cannot bring a routing group or a topic's experts into one node: every single swap
on the way there costs balance and gains no vector. So besides the even placement (LPT with swaps)
there are starts that have them together: whole routing groups on nodes, where node-limited routing
(DeepSeek-V3, arXiv:2412.19437, section 2.1.2) makes that pay; groups that tokens use together on
one node; and experts that are used together, whatever their group.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moesim.planners.affinity import pair_counts
from moesim.planners.affinity_groups import equal_clusters, grace
from moesim.planners.eplb import keeps_groups
from moesim.planners.greedy import lpt_swap
from moesim.planners.node_groups import lpt_swap_hierarchical
from moesim.planners.problem import PlacementProblem
from moesim.planners.search_cost import SearchCost
from moesim.planners.token_search import link_seconds

__all__ = ["busiest_link_s", "groups_together", "other_starts", "rank_of_copy", "token_uses"]


def other_starts(problem: PlacementProblem) -> list[np.ndarray]:
    """Tables [L, S] int64 that keep together what tokens use together."""
    tables: list[np.ndarray] = []
    if problem.distinct_copies and problem.slots > problem.experts:
        return tables  # they may put two copies on one device
    if problem.nodes > 1 and problem.routing_groups > 1 and keeps_groups(problem):
        tables.append(lpt_swap_hierarchical(problem))
        if problem.coactivation is not None and problem.routing_groups > problem.nodes:
            tables.append(groups_together(problem))
    if problem.coactivation is not None and problem.devices > 1:
        tables.append(grace(problem))
    return [table.astype(np.int64) for table in tables]


def groups_together(problem: PlacementProblem) -> np.ndarray:
    """Routing groups that tokens use together on one node, LPT with swaps inside it.

    Returns:
        [L, S] int32 physical_to_logical.
    """
    groups, nodes = problem.routing_groups, problem.nodes
    size, per_node = problem.experts // groups, problem.slots // nodes
    in_node = problem.devices // nodes
    table = np.empty((problem.layers, problem.slots), np.int32)
    held = np.empty((problem.layers, nodes, problem.experts // nodes), np.int64)
    for layer in range(problem.layers):
        pairs = pair_counts(problem, layer).reshape(groups, size, groups, size).sum(axis=(1, 3))
        node = _swapped(pairs, equal_clusters(pairs, nodes))
        for number in range(nodes):
            inside = np.flatnonzero(node == number)
            held[layer, number] = (inside[:, None] * size + np.arange(size)).ravel()
    for number in range(nodes):
        devices = slice(number * in_node, (number + 1) * in_node)
        part = replace(
            problem,
            loads=np.take_along_axis(problem.loads, held[:, number], 1),
            devices=in_node,
            nodes=1,
            routing_groups=1,
            slots=per_node,
            speed_factors=problem.speed_factors[devices],
            pair_bandwidth_bytes_per_s=problem.pair_bandwidth_bytes_per_s[devices, devices],
            memory_factors=None,
            transitions=None,
            coactivation=None,
            cost=None,
        )
        slots = slice(number * per_node, (number + 1) * per_node)
        table[:, slots] = np.take_along_axis(held[:, number], lpt_swap(part), 1)
    return table


def _swapped(pairs: np.ndarray, part: np.ndarray) -> np.ndarray:
    """[n] parts after swapping items while that keeps more pairs within parts."""
    pairs = pairs * ~np.eye(len(pairs), dtype=bool)
    while True:
        to_part = pairs @ (part[:, None] == np.arange(part.max() + 1))
        leave = to_part[:, part] - to_part[np.arange(len(part)), part][:, None]
        gain = leave + leave.T - 2 * pairs
        gain[part[:, None] == part] = 0
        i, j = np.unravel_index(gain.argmax(), gain.shape)
        if gain[i, j] <= 1e-9 * pairs.sum():
            return part
        part = part.copy()
        part[i], part[j] = part[j], part[i]


def rank_of_copy(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[L, S] which copy of its expert a slot holds, and of how many."""
    layers, slots = table.shape
    rank = np.empty((layers, slots), np.int64)
    count = np.zeros((layers, int(table.max()) + 1), np.int64)
    every = np.arange(layers)
    for slot in range(slots):
        rank[:, slot] = count[every, table[:, slot]]
        count[every, table[:, slot]] += 1
    return rank, np.take_along_axis(count, table, 1)


def token_uses(
    cost: SearchCost, layer: int, table: np.ndarray, rank: np.ndarray, count: np.ndarray
) -> np.ndarray:
    """[S, T/64] uint64 sampled tokens that use each copy of a layer; [S, 0] if none are sampled.

    Args:
        cost: Holds the sampled tokens.
        layer: Row of ``table``.
        table: [L, S] logical expert of every copy.
        rank: [L, S] of :func:`rank_of_copy`.
        count: [L, S] of the same.
    """
    slots = table.shape[1]
    if cost.routing is None:
        return np.zeros((slots, 0), np.uint64)
    routing = cost.routing[layer]  # [T, K]
    slot_of = np.full((int(table[layer].max()) + 1, int(count[layer].max())), -1)
    slot_of[table[layer], rank[layer]] = np.arange(slots)
    copies = np.zeros(len(slot_of), np.int64)
    copies[table[layer]] = count[layer]
    token = np.broadcast_to(np.arange(len(routing))[:, None], routing.shape)
    used = routing >= 0
    expert, token = routing[used], token[used]
    by_token = np.zeros((slots, len(routing)), bool)
    by_token[slot_of[expert, token % copies[expert]], token] = True
    return np.packbits(by_token, axis=1).view(np.uint64)


def busiest_link_s(
    uses: np.ndarray, device_of: np.ndarray, node_of: np.ndarray, nic_s: float, port_s: float
) -> float:
    """Seconds of the busiest link of a layer's placement; see :func:`link_seconds`."""

    def hits(place_of: np.ndarray, places: int) -> np.ndarray:
        touched = [np.bitwise_or.reduce(uses[place_of == at], axis=0) for at in range(places)]
        return np.array([np.bitwise_count(words).sum() for words in touched], np.int64)

    if not uses.shape[1]:
        return 0.0
    node_hits = hits(node_of[device_of], int(node_of.max()) + 1)
    return float(link_seconds(node_hits, hits(device_of, len(node_of)), node_of, nic_s, port_s))
