"""Links between devices and the routes over them.

A network is a list of directed links between named vertices: devices, switches, network cards.
Every ordered pair of devices has one route; routes are stored as one array of link indices with
offsets (compressed rows), pair ``g * G + h`` at row ``g * G + h``. G is the number of devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    import networkx as nx

__all__ = [
    "ROUTING_MESSAGE_BYTES",
    "Chains",
    "Link",
    "Routes",
    "Tier",
    "chained_routes",
    "link_graph",
    "shortest_routes",
]

Tier = Literal["scale-up", "scale-out"]

ROUTING_MESSAGE_BYTES = 2**20
"""Size of the message whose time makes a route short: long enough for bandwidth to count, short
enough for latency to count. A choice of ours; routes of the bundled clusters do not depend on it.
"""


@dataclass(frozen=True)
class Link:
    """One direction of a link."""

    source: str
    target: str
    bandwidth_bytes_per_s: float
    latency_s: float
    tier: Tier


@dataclass(frozen=True)
class Routes:
    """The route of every ordered pair of devices.

    Attributes:
        offsets: [G * G + 1] int64; pair ``g * G + h`` uses ``links[offsets[p]:offsets[p + 1]]``.
        links: int32 indices of links, in the order they are travelled; none for g == h.
    """

    offsets: np.ndarray
    links: np.ndarray

    def __post_init__(self) -> None:
        self.offsets.setflags(write=False)
        self.links.setflags(write=False)

    def pair_minimum(self, values: np.ndarray, empty: float) -> np.ndarray:
        """[G, G] smallest of ``values: [links]`` along each route; ``empty`` where g == h."""
        return self._reduce(np.minimum, values, empty)

    def pair_sum(self, values: np.ndarray) -> np.ndarray:
        """[G, G] sum of ``values: [links]`` along each route."""
        return self._reduce(np.add, values, 0.0)

    def _reduce(self, operation: np.ufunc, values: np.ndarray, empty: float) -> np.ndarray:
        starts = self.offsets[:-1]
        used = np.diff(self.offsets) > 0
        result = np.full(len(starts), empty)
        if used.any():
            result[used] = operation.reduceat(values[self.links], starts[used])
        devices = round(len(starts) ** 0.5)
        return result.reshape(devices, devices)


def link_graph(vertices: Sequence[str], links: Sequence[Link]) -> nx.DiGraph[str]:
    """The network as a graph; edges carry bandwidth_bytes_per_s, latency_s, tier and index."""
    import networkx as nx

    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(vertices)
    for index, link in enumerate(links):
        graph.add_edge(
            link.source,
            link.target,
            index=index,
            bandwidth_bytes_per_s=link.bandwidth_bytes_per_s,
            latency_s=link.latency_s,
            tier=link.tier,
        )
    return graph


@dataclass(frozen=True)
class Chains:
    """Routes that climb from a device to the top of its tree and down to another device.

    Attributes:
        group: [G] devices with the same number reach each other this way.
        up: [G, a] links from each device to the top of its tree.
        down: [G, b] links from the top to each device.
    """

    group: np.ndarray
    up: np.ndarray
    down: np.ndarray


def chained_routes(
    devices: int, levels: Sequence[Chains], direct: np.ndarray | None = None
) -> Routes:
    """Routes of a tree-shaped network, each pair over the first level that joins it.

    Args:
        devices: G.
        levels: From the fastest tier to the slowest; together they must join all devices.
        direct: [G, G] link from g to h, −1 if there is none; used before any level.
    """
    width = max((level.up.shape[1] + level.down.shape[1] for level in levels), default=1)
    rows, lengths = [], np.zeros((devices, devices), np.int64)
    for g in range(devices):
        # Row by row: all pairs at once would take devices² × width entries of scratch memory.
        table = np.full((devices, width), -1, np.int32)
        open_pairs = np.arange(devices) != g
        if direct is not None:
            joined = open_pairs & (direct[g] >= 0)
            table[joined, 0] = direct[g, joined]
            open_pairs &= ~joined
        for level in levels:
            joined = open_pairs & (level.group == level.group[g])
            climb = level.up.shape[1]
            table[joined, :climb] = level.up[g]
            table[joined, climb : climb + level.down.shape[1]] = level.down[joined]
            open_pairs &= ~joined
        held = table >= 0
        lengths[g] = held.sum(axis=1)
        rows.append(table[held])
    return Routes(_offsets(lengths.ravel()), np.concatenate(rows).astype(np.int32))


def shortest_routes(
    devices: Sequence[str], vertices: Sequence[str], links: Sequence[Link]
) -> Routes:
    """Routes of any connected network whose links all have a twin in the other direction.

    The shortest route is the one that takes a message of ``ROUTING_MESSAGE_BYTES`` the least time
    when every vertex receives it whole before passing it on. Among equals the one with the widest
    bottleneck is taken, then the first in the order of ``vertices``. The route back is the same
    one in reverse. Devices may pass messages on, as in a ring or torus.
    """
    import networkx as nx

    graph = link_graph(vertices, links)
    for _, _, edge in graph.edges(data=True):
        # Whole picoseconds: sums are exact, so equal routes are found to be equal.
        cost_s = edge["latency_s"] + ROUTING_MESSAGE_BYTES / edge["bandwidth_bytes_per_s"]
        edge["cost_ps"] = max(1, round(cost_s * 1e12))
    rank = {vertex: position for position, vertex in enumerate(vertices)}
    twin = [graph.edges[link.target, link.source]["index"] for link in links]
    count = len(devices)
    routes: list[list[int]] = [[] for _ in range(count * count)]
    for g, source in enumerate(devices):
        before, distance = nx.dijkstra_predecessor_and_distance(graph, source, weight="cost_ps")
        came_from = _widest(graph, source, before, distance, rank)
        for h in range(g + 1, count):
            route: list[int] = []
            vertex = devices[h]
            while vertex != source:
                route.append(graph.edges[came_from[vertex], vertex]["index"])
                vertex = came_from[vertex]
            routes[h * count + g] = [twin[link] for link in route]
            routes[g * count + h] = route[::-1]
    lengths = np.array([len(route) for route in routes], np.int64)
    flat = [link for route in routes for link in route]
    return Routes(_offsets(lengths), np.array(flat, np.int32))


def _widest(
    graph: nx.DiGraph[str],
    source: str,
    before: dict[str, list[str]],
    distance: dict[str, float],
    rank: dict[str, int],
) -> dict[str, str]:
    """The predecessor of every vertex on its widest shortest route from ``source``."""
    width = {source: np.inf}
    came_from: dict[str, str] = {}
    for vertex in sorted(distance, key=lambda v: distance[v]):
        if vertex == source:
            continue
        options = []
        for previous in before[vertex]:
            bandwidth = graph.edges[previous, vertex]["bandwidth_bytes_per_s"]
            options.append((-min(width[previous], bandwidth), rank[previous], previous))
        narrowest, _, came_from[vertex] = min(options)
        width[vertex] = -narrowest
    return came_from


def _offsets(lengths: np.ndarray) -> np.ndarray:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
