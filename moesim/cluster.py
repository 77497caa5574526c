"""Clusters: devices of one type, how fast each of them is, and the network between them.

A cluster is named in short (``2x8xh100_sxm``: two nodes of eight), by a bundled name
(``gb200_nvl72``), or by a YAML document (schema ``moesim.cluster/1``) that either says
``nodes``, ``devices_per_node`` and what differs from the device's profile, or draws the whole
network with ``devices``, ``switches`` and ``links``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moesim.cluster_files import MAX_DEVICES, GraphCluster, RegularCluster, parse_cluster
from moesim.errors import InputError, UsageError
from moesim.hardware import (
    Device,
    device_names,
    load_device,
    looks_like_file,
    near_names,
    profiles_folder,
)
from moesim.regular_network import Network
from moesim.safe_io import read_json, read_yaml
from moesim.schema import Evidence, weakest
from moesim.topology import Link, Routes, link_graph

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["Cluster", "Link", "cluster_names", "load_cluster"]


@dataclass(frozen=True, eq=False)
class Cluster:
    """Devices and the network between them. G devices, N nodes.

    Attributes:
        name: Short name, or the name in the file.
        title: What it is, if the file says so.
        device: The profile that all devices share.
        network: Names, links and nodes.
        speed_factors: [G] float64, compute speed of each device relative to its profile.
        memory_factors: [G] float64, the same for memory; None if all have that of the profile.
    """

    name: str
    title: str | None
    device: Device
    network: Network
    speed_factors: np.ndarray
    memory_factors: np.ndarray | None = None

    @property
    def memory_bytes(self) -> np.ndarray:
        """[G] float64 memory of every device."""
        factors = np.ones(self.devices) if self.memory_factors is None else self.memory_factors
        return np.asarray(self.device.memory_bytes * factors, np.float64)

    @property
    def devices(self) -> int:
        """G."""
        return len(self.network.devices)

    @property
    def device_names(self) -> tuple[str, ...]:
        """[G] vertex of each device in the graph: ``gpu0``, ``npu3`` …."""
        return self.network.devices

    @property
    def nodes(self) -> int:
        """N."""
        return int(self.network.node_of_device.max()) + 1

    @property
    def node_of_device(self) -> np.ndarray:
        """[G] int32."""
        return self.network.node_of_device

    @property
    def domain_of_device(self) -> np.ndarray:
        """[G] int32, devices that reach each other over scale-up links alone.

        In an NVL72 rack one domain holds many nodes.
        """
        return self.network.domain_of_device

    @property
    def evidence(self) -> Evidence:
        """The weakest evidence of the bandwidths that tokens cross."""
        device = self.device
        parts = [device.scale_up, device.nic if self.nodes > 1 else None]
        return weakest(Evidence.MEASURED, *(part.bandwidth.evidence for part in parts if part))

    @property
    def links(self) -> tuple[Link, ...]:
        """Directed links; their index is what routes speak of."""
        return self.network.links

    @cached_property
    def graph(self) -> nx.DiGraph[str]:
        """Devices, switches and cards; edges carry the link's numbers and its index."""
        return link_graph(self.network.vertices, self.network.links)

    @cached_property
    def _routes(self) -> Routes:
        return self.network.routes()

    @property
    def route_offsets(self) -> np.ndarray:
        """[G * G + 1] int64; pair ``p = g * G + h`` uses entries ``offsets[p]:offsets[p + 1]``."""
        return self._routes.offsets

    @property
    def route_links(self) -> np.ndarray:
        """int32 link indices along the routes of all ordered pairs; none for g == h."""
        return self._routes.links

    @cached_property
    def pair_bandwidth_bytes_per_s(self) -> np.ndarray:
        """[G, G] float64, slowest link of the route; inf on the diagonal."""
        bandwidth = np.array([link.bandwidth_bytes_per_s for link in self.links])
        return _frozen(self._routes.pair_minimum(bandwidth, np.inf))

    @cached_property
    def pair_latency_s(self) -> np.ndarray:
        """[G, G] float64, sum over the links of the route; 0 on the diagonal."""
        latency = np.array([link.latency_s for link in self.links])
        return _frozen(self._routes.pair_sum(latency))


def _frozen(values: np.ndarray) -> np.ndarray:
    values.setflags(write=False)
    return values


def cluster_names() -> list[str]:
    """Names of the bundled clusters, sorted."""
    return sorted(path.stem for path in (profiles_folder() / "clusters").glob("*.yaml"))


def load_cluster(name_or_file: str | Path) -> Cluster:
    """A cluster by short name (``2x8xh100_sxm``, ``8xmine.yaml``), bundled name, or file.

    Raises:
        UsageError: If the name is neither bundled nor a short name of a bundled device.
        InputError: If the file is not a cluster, or its parts do not fit together.
    """
    name = str(name_or_file)
    short = _SHORT.fullmatch(name)
    if short and looks_like_file(short.group(3)) and not Path(name).exists():
        return _counted(short, name, load_device(short.group(3)))
    if looks_like_file(name_or_file):
        return _from_file(Path(name_or_file))
    if name in cluster_names():
        return _from_file(profiles_folder() / "clusters" / f"{name}.yaml")
    return _from_short_name(name)


_SHORT = re.compile(r"(?:([0-9]{1,9})x)?([0-9]{1,9})x([^0-9].*)")
"""Nodes, devices of each, device."""


@lru_cache(maxsize=64)
def _from_short_name(name: str) -> Cluster:
    shown = _shortened(name)
    match = _SHORT.fullmatch(name)
    if match is None:
        if name in device_names():
            raise UsageError(f"{name} is a device, not a cluster\nfix: write 8x{name} or the like")
        raise UsageError(
            f"unknown cluster {shown!r}{near_names(name, cluster_names())}\n"
            "fix: write NODESxDEVICESxDEVICE or DEVICESxDEVICE, such as 2x8xh100_sxm, "
            "or name a file; moesim hw list shows all"
        )
    return _counted(match, name)


def _shortened(name: str) -> str:
    return name if len(name) <= 60 else name[:59] + "…"


def _counted(match: re.Match[str], name: str, device: Device | None = None) -> Cluster:
    """So many nodes of so many devices."""
    shown = _shortened(name)
    nodes, per_node = int(match.group(1) or 1), int(match.group(2))
    if not 1 <= nodes * per_node <= MAX_DEVICES:
        raise UsageError(
            f"cluster {shown!r} has {nodes * per_node} devices; allowed: 1 … {MAX_DEVICES}\n"
            "fix: write NODESxDEVICESxDEVICE, such as 2x8xh100_sxm"
        )
    if device is None:
        device = load_device(match.group(3))
    document = RegularCluster(name=name, device=device.name, nodes=nodes, devices_per_node=per_node)
    try:
        return _built(document, device)
    except InputError as error:
        raise UsageError(f"cluster {shown!r}: {error}") from error


def _from_file(path: Path) -> Cluster:
    data = read_json(path) if path.suffix == ".json" else read_yaml(path)
    document = parse_cluster(data, file=path)
    named = document.device
    try:
        device = load_device(path.parent / named if looks_like_file(named) else named)
    except UsageError as error:
        raise InputError(str(error), file=path, field="device") from error
    try:
        return _built(document, device)
    except InputError as error:
        raise InputError(
            error.problem,
            file=path,
            field=error.field,
            found=error.found,
            allowed=error.allowed,
            fix=error.fix,
        ) from error


def _built(document: RegularCluster | GraphCluster, device: Device) -> Cluster:
    memories = document.memories()
    return Cluster(
        name=document.name,
        title=document.title,
        device=device,
        network=document.network(device),
        speed_factors=_frozen(document.speeds()),
        memory_factors=None if (memories == 1).all() else _frozen(memories),
    )
