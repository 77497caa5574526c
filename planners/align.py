"""Naming the devices of a new placement so that most experts stay where they are.

Planners number devices as they please. Devices of a node are alike, and so are nodes, so the same
placement under other names costs the same; only what must be moved differs. Names are exchanged
between devices of equal speed and memory of a node, and between whole nodes.
"""

from __future__ import annotations

import numpy as np

from moesim.cluster import Cluster
from moesim.placement import Placement
from moesim.planners.moves import holdings
from moesim.planners.transport import transport

__all__ = ["align"]


def align(current: Placement, target: Placement, cluster: Cluster, *, by_layer: bool) -> Placement:
    """The target with devices renamed, so that the fewest copies of experts move.

    Per pair of nodes and then over nodes an assignment problem, each solved exactly: no renaming
    of nodes and of devices within them moves less. Where nodes or their links differ, names stay.

    Args:
        current: The placement in use.
        target: The placement wanted.
        cluster: Says which devices are alike.
        by_layer: Whether every layer may have names of its own, as where tokens return to their
            rank after each; otherwise all layers are renamed alike, and neighbours stay neighbours.
    """
    nodes = _nodes(cluster)
    if nodes is None:
        return target
    kept = np.stack([_kept(current, target, layer) for layer in range(target.layers)])
    rows = target.physical_to_logical.reshape(target.layers, target.devices, -1)
    table = np.empty_like(rows)
    common = None if by_layer else _names(kept.sum(0), nodes, cluster)
    for layer in range(target.layers):
        old_of_new = _names(kept[layer], nodes, cluster) if common is None else common
        table[layer, old_of_new] = rows[layer]
    flat = table.reshape(target.layers, -1)
    return Placement(flat, target.devices, target.experts, target.moe_layers)


def _nodes(cluster: Cluster) -> np.ndarray | None:
    """[N, G / N] devices of every node; None if nodes differ in size, devices or links."""
    domain = cluster.domain_of_device
    members = [np.flatnonzero(domain == node) for node in np.unique(domain)]
    if len({len(devices) for devices in members}) != 1:
        return None
    kinds = {tuple(sorted(_kind(cluster, device) for device in devices)) for devices in members}
    same = domain[:, None] == domain
    inside = same & ~np.eye(cluster.devices, dtype=bool)
    bandwidth = cluster.pair_bandwidth_bytes_per_s
    alike = all(len(np.unique(bandwidth[pairs])) <= 1 for pairs in (inside, ~same))
    return np.array(members) if len(kinds) == 1 and alike else None


def _kind(cluster: Cluster, device: int) -> tuple[float, float]:
    memory = 1.0 if cluster.memory_factors is None else float(cluster.memory_factors[device])
    return float(cluster.speed_factors[device]), memory


def _kept(current: Placement, target: Placement, layer: int) -> np.ndarray:
    """[G, G] int64, copies that stay if device h of the target becomes device g."""
    before, after = holdings(current, layer), holdings(target, layer)
    return np.minimum(before[:, None], after[None]).sum(-1)


def _names(kept: np.ndarray, nodes: np.ndarray, cluster: Cluster) -> np.ndarray:
    """[G] the device that each device of the target becomes."""
    kinds = [_kind(cluster, device) for device in range(cluster.devices)]
    differ = np.array([[one != other for other in kinds] for one in kinds])
    most = kept.max()
    # Dearer than any sum of the others: devices that differ are never exchanged.
    cost = np.where(differ, (most + 1) * (cluster.devices + 1), most - kept).astype(np.float64)
    count = len(nodes)
    within = np.zeros((count, count, nodes.shape[1]), np.int64)
    value = np.zeros((count, count))
    for new in range(count):
        for old in range(count):
            part = cost[np.ix_(nodes[old], nodes[new])].T
            chosen = transport(part, np.ones(len(part), np.int64))
            within[new, old] = nodes[old][chosen]
            value[new, old] = part[np.arange(len(part)), chosen].sum()
    node_of = transport(value, np.ones(count, np.int64))
    result = np.empty(cluster.devices, np.int64)
    for new, old in enumerate(node_of):
        result[nodes[new]] = within[new, old]
    return result
