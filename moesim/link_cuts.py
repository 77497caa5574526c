"""Bytes per second that can leave, or enter, a device or a node over the cluster's links."""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx
import numpy as np

from moesim.cluster import Cluster
from moesim.topology import Link

__all__ = ["device_cuts", "node_cuts"]


def device_cuts(cluster: Cluster, links: Sequence[Link]) -> np.ndarray:
    """[G] bytes/s that can leave (or enter, if more) each device over its own links."""
    capacity = np.zeros((2, cluster.devices))
    position = {name: index for index, name in enumerate(cluster.device_names)}
    for link in links:
        for direction, end in enumerate((link.source, link.target)):
            if end in position:
                capacity[direction, position[end]] += link.bandwidth_bytes_per_s
    cuts = capacity.max(axis=0)
    cuts[cuts == 0] = np.inf  # a device alone
    return cuts


def node_cuts(cluster: Cluster, links: Sequence[Link]) -> np.ndarray:
    """[nodes] bytes/s that can leave (or enter, if more) each node: a minimum cut."""
    node_of = cluster.domain_of_device
    nodes = int(node_of.max()) + 1
    if nodes == 1:
        return np.array([np.inf])
    return np.array([_minimum_cut(cluster, links, node_of == node) for node in range(nodes)])


def _minimum_cut(cluster: Cluster, links: Sequence[Link], inside: np.ndarray) -> float:
    forward: nx.DiGraph[str] = nx.DiGraph()
    backward: nx.DiGraph[str] = nx.DiGraph()
    for link in links:
        ends = (link.source, link.target)
        for graph, (source, target) in ((forward, ends), (backward, ends[::-1])):
            known = graph.get_edge_data(source, target, {"capacity": 0.0})["capacity"]
            graph.add_edge(source, target, capacity=known + link.bandwidth_bytes_per_s)
    flows = []
    for graph in (forward, backward):
        # Edges without a capacity are unbounded.
        for name, is_inside in zip(cluster.device_names, inside, strict=True):
            graph.add_edge(*(("source", name) if is_inside else (name, "sink")))
        flows.append(float(nx.maximum_flow_value(graph, "source", "sink")))
    return max(flows)
