"""Cluster documents: the YAML or JSON that describes a cluster (schema ``moesim.cluster/1``)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    model_validator,
)

from moesim.errors import InputError
from moesim.hardware import Device
from moesim.regular_network import Network, Rates, frozen_int32, regular_network
from moesim.schema import Document
from moesim.topology import Link, Tier
from moesim.units import Dimension, parse_quantity

__all__ = [
    "MAX_DEVICES",
    "MAX_DRAWN_DEVICES",
    "GraphCluster",
    "RegularCluster",
    "cluster_json_schema",
    "parse_cluster",
]

MAX_DEVICES = 4096
"""Routes take about 40 bytes per pair of devices: 0.7 GB for this many."""
MAX_DRAWN_DEVICES = 1024
"""Networks that are drawn link by link take one search from each device."""


def _written(dimension: Dimension, *, zero: bool) -> BeforeValidator:
    """A quantity that is kept as it was written."""

    def check(value: object) -> object:
        if parse_quantity(value, dimension) == 0 and not zero:
            raise InputError("a quantity must be positive", found=value, allowed="> 0")
        return value

    return BeforeValidator(check)


Bandwidth = Annotated[str, _written("bytes_per_s", zero=False)]
Latency = Annotated[str, _written("s", zero=True)]
Positive = Annotated[int, Field(strict=True, ge=1)]
Factor = Annotated[float, Field(gt=0)]
ClusterName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]*$", max_length=64)]
Vertex = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_.-]*$", max_length=64)]
Text = Annotated[str, StringConstraints(min_length=1)]


def _shape(value: object) -> str | None:
    if isinstance(value, dict):
        return "mapping"
    return "list" if isinstance(value, list | tuple) else None


Factors = Annotated[
    Annotated[tuple[Factor, ...], Tag("list")]
    | Annotated[dict[Annotated[int, Field(ge=0)], Factor], Tag("mapping")],
    Discriminator(
        _shape,
        custom_error_type="factors",
        custom_error_message="a list or a mapping {device index: factor} is needed",
    ),
]


class LinkOverride(Document):
    """Replaces what the device's profile says of one kind of link."""

    bandwidth: Bandwidth | None = None
    latency: Latency | None = None

    def rates(self) -> Rates:
        """In SI units."""
        return Rates(
            None if self.bandwidth is None else parse_quantity(self.bandwidth, "bytes_per_s"),
            None if self.latency is None else parse_quantity(self.latency, "s"),
        )


class RegularCluster(Document):
    """Equal nodes of equal devices, joined as the device's profile says."""

    schema_id: ClassVar[str] = "moesim.cluster/1"

    name: ClusterName
    title: Text | None = None
    device: Text
    """Name of a bundled device, or a file (relative to this one)."""
    nodes: Positive
    devices_per_node: Positive
    speed_factors: Factors | None = None
    """One per device, or device index → factor where it is not 1."""
    memory_factors: Factors | None = None
    """The same for the memory of the devices."""
    scale_up: LinkOverride = LinkOverride()
    nic: LinkOverride = LinkOverride()
    nics_per_node: Positive | None = None
    oversubscription: Annotated[float, Field(ge=1)] = 1.0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        count = self.nodes * self.devices_per_node
        if count > MAX_DEVICES:
            raise InputError("too many devices", found=count, allowed=f"at most {MAX_DEVICES}")
        _check_factors("speed_factors", self.speed_factors, count)
        _check_factors("memory_factors", self.memory_factors, count)
        if self.nics_per_node and self.devices_per_node % self.nics_per_node:
            raise InputError(
                "the devices of a node do not divide by its network cards",
                field="nics_per_node",
                found=self.nics_per_node,
                allowed=f"a divisor of {self.devices_per_node}",
            )
        return self

    def network(self, device: Device) -> Network:
        """The network of that device's cluster."""
        return regular_network(
            device,
            self.nodes,
            self.devices_per_node,
            scale_up=self.scale_up.rates(),
            nic=self.nic.rates(),
            nics_per_node=self.nics_per_node,
            oversubscription=self.oversubscription,
        )

    def speeds(self) -> np.ndarray:
        """[G] float64 compute speed of each device, relative to its profile."""
        return _factor_of_device(self.speed_factors, self.nodes * self.devices_per_node)

    def memories(self) -> np.ndarray:
        """[G] float64 memory of each device, relative to its profile."""
        return _factor_of_device(self.memory_factors, self.nodes * self.devices_per_node)


def _check_factors(
    field: str, factors: tuple[float, ...] | dict[int, float] | None, devices: int
) -> None:
    if isinstance(factors, tuple) and len(factors) != devices:
        raise InputError(
            f"one {field.removesuffix('s').replace('_', ' ')} per device is needed",
            field=field,
            found=f"{len(factors)} factors",
            allowed=str(devices),
            fix="list all, or write a mapping {device index: factor}",
        )
    if isinstance(factors, dict) and max(factors, default=0) >= devices:
        raise InputError(
            "no such device", field=field, found=max(factors), allowed=f"0 … {devices - 1}"
        )


def _factor_of_device(
    factors: tuple[float, ...] | dict[int, float] | None, devices: int
) -> np.ndarray:
    if isinstance(factors, tuple):
        return np.array(factors, np.float64)
    result = np.ones(devices)
    for index, factor in (factors or {}).items():
        result[index] = factor
    return result


class DrawnDevice(Document):
    """One device of a drawn network."""

    name: Vertex
    node: Annotated[int, Field(strict=True, ge=0)]
    speed_factor: Factor = 1.0
    memory_factor: Factor = 1.0


class DrawnLink(Document):
    """One full-duplex link of a drawn network."""

    between: tuple[Vertex, Vertex]
    bandwidth: Bandwidth
    """Per direction."""
    latency: Latency
    tier: Tier


class GraphCluster(Document):
    """Any connected network, drawn link by link; links are full duplex."""

    schema_id: ClassVar[str] = "moesim.cluster/1"

    name: ClusterName
    title: Text | None = None
    device: Text
    """Name of a bundled device, or a file (relative to this one)."""
    devices: tuple[DrawnDevice, ...] = Field(min_length=1, max_length=MAX_DRAWN_DEVICES)
    switches: tuple[Vertex, ...] = ()
    links: tuple[DrawnLink, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        vertices = [device.name for device in self.devices] + list(self.switches)
        if repeated := _repeated(vertices):
            raise InputError("a name is used twice", field="devices, switches", found=repeated)
        nodes = {device.node for device in self.devices}
        if nodes != set(range(len(nodes))):
            raise InputError(
                "nodes must be numbered 0, 1, 2 … without a gap",
                field="devices",
                found=", ".join(map(str, sorted(nodes)[:8])),
            )
        known = set(vertices)
        for position, link in enumerate(self.links):
            for end in link.between:
                if end not in known:
                    raise InputError(
                        "a link to something that is neither a device nor a switch",
                        field=f"links[{position}].between",
                        found=end,
                        allowed=", ".join(vertices[:8]) + ("…" if len(vertices) > 8 else ""),
                    )
            if link.between[0] == link.between[1]:
                raise InputError(
                    "a link to itself", field=f"links[{position}].between", found=link.between[0]
                )
        if repeated := _repeated(tuple(sorted(link.between)) for link in self.links):
            raise InputError(
                "two links between the same pair",
                field="links",
                found=" – ".join(repeated),
                fix="add up their bandwidth in one link",
            )
        joined = _components(vertices, [link.between for link in self.links])
        if stray := [d.name for d in self.devices if joined[d.name] != joined[vertices[0]]]:
            raise InputError(
                "the network is not connected",
                field="links",
                found=f"no route from {vertices[0]} to {stray[0]}",
                fix="add a link between the parts",
            )
        return self

    def network(self, device: Device) -> Network:
        """The network as drawn."""
        names = tuple(drawn.name for drawn in self.devices)
        links = []
        for drawn in self.links:
            bandwidth = parse_quantity(drawn.bandwidth, "bytes_per_s")
            latency, tier = parse_quantity(drawn.latency, "s"), drawn.tier
            for source, target in (drawn.between, drawn.between[::-1]):
                links.append(Link(source, target, bandwidth, latency, tier))
        vertices = (*names, *self.switches)
        near = [link.between for link in self.links if link.tier == "scale-up"]
        part = _components(vertices, near)
        numbers: dict[int, int] = {}
        domain = [numbers.setdefault(part[name], len(numbers)) for name in names]
        return Network(
            devices=names,
            vertices=vertices,
            links=tuple(links),
            node_of_device=frozen_int32([drawn.node for drawn in self.devices]),
            domain_of_device=frozen_int32(domain),
        )

    def speeds(self) -> np.ndarray:
        """[G] float64 compute speed of each device, relative to its profile."""
        return np.array([drawn.speed_factor for drawn in self.devices], np.float64)

    def memories(self) -> np.ndarray:
        """[G] float64 memory of each device, relative to its profile."""
        return np.array([drawn.memory_factor for drawn in self.devices], np.float64)


def _repeated(items: Iterable[Any]) -> Any:
    """The first item that occurs a second time, if any."""
    seen = set()
    for item in items:
        if item in seen:
            return item
        seen.add(item)
    return None


def _components(vertices: Iterable[str], pairs: Iterable[tuple[str, str]]) -> dict[str, int]:
    """The connected part that each vertex belongs to, by number."""
    import networkx as nx

    graph: nx.Graph[str] = nx.Graph()
    graph.add_nodes_from(vertices)
    graph.add_edges_from(pairs)
    parts = enumerate(nx.connected_components(graph))
    return {vertex: number for number, part in parts for vertex in part}


def parse_cluster(data: object, *, file: str | Path | None = None) -> RegularCluster | GraphCluster:
    """Either kind of cluster document: one that names devices or links is drawn.

    Raises:
        InputError: Naming file and field of the first thing that is wrong.
    """
    if isinstance(data, dict) and {"devices", "switches", "links"} & data.keys():
        return GraphCluster.parse(data, file=file)
    return RegularCluster.parse(data, file=file)


def cluster_json_schema() -> dict[str, Any]:
    """JSON Schema of cluster files: one of the two kinds."""
    kinds = [RegularCluster.json_schema(), GraphCluster.json_schema()]
    parts = {name: part for kind in kinds for name, part in kind.pop("$defs", {}).items()}
    return {"title": "Cluster", "oneOf": kinds, "$defs": parts}
