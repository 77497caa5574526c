"""The network of a cluster of equal nodes, built from one device's profile.

    scale-up, switched     gpu0 ── nvswitch0 ── gpu1
    scale-up, full mesh    npu0 ── npu1
    no scale-up            gpu0 ── pcie0 ── host0 ── pcie1 ── gpu1
    scale-out              gpu0 ── nic0 ── spine0 ── nic8 ── gpu8
      oversubscribed       gpu0 ── nic0 ── leaf0 ── spine0 ── leaf1 ── nic8 ── gpu8

A network card hangs on the device's own PCIe port, so that PCIe and network are separate links and
the slower one shows. Published latencies are from device to device; they are put, in halves, on
the two links at the switch that only this kind of route uses, and the PCIe links add nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from moesim.errors import InputError
from moesim.hardware import Device, ScaleUp
from moesim.topology import Chains, Link, Routes, Tier, chained_routes, shortest_routes

__all__ = ["Network", "Rates", "frozen_int32", "regular_network"]


@dataclass(frozen=True)
class Rates:
    """What replaces the profile's numbers for one kind of link."""

    bandwidth_bytes_per_s: float | None = None
    latency_s: float | None = None


@dataclass(frozen=True, eq=False)
class Network:
    """Devices, switches, cards and the links between them.

    Attributes:
        devices: Names of the devices, in order.
        vertices: Devices, then switches and cards.
        links: Directed; the link back follows each link.
        node_of_device: [G] int32.
        domain_of_device: [G] int32, devices that reach each other over scale-up links alone.
        levels: How to build the routes fast, for a regular network; None for any other.
        direct: [G, G] int32 link between two devices of a full mesh, −1 if none.
    """

    devices: tuple[str, ...]
    vertices: tuple[str, ...]
    links: tuple[Link, ...]
    node_of_device: np.ndarray
    domain_of_device: np.ndarray
    levels: tuple[Chains, ...] | None = None
    direct: np.ndarray | None = None

    def routes(self) -> Routes:
        """The route of every ordered pair of devices."""
        if self.levels is None:
            return shortest_routes(self.devices, self.vertices, self.links)
        return chained_routes(len(self.devices), self.levels, self.direct)


@dataclass
class _Wiring:
    """Collects links; devices first, so that their names keep their order."""

    vertices: dict[str, None]
    links: list[Link] = field(default_factory=list)

    def join(self, a: str, b: str, bandwidth_bytes_per_s: float, latency_s: float, t: Tier) -> int:
        """Add a ↔ b; returns the index of a → b, and b → a is the next."""
        self.vertices |= {a: None, b: None}
        self.links.append(Link(a, b, bandwidth_bytes_per_s, latency_s, t))
        self.links.append(Link(b, a, bandwidth_bytes_per_s, latency_s, t))
        return len(self.links) - 2


def regular_network(
    device: Device,
    nodes: int,
    devices_per_node: int,
    *,
    scale_up: Rates = Rates(),
    nic: Rates = Rates(),
    nics_per_node: int | None = None,
    oversubscription: float = 1.0,
) -> Network:
    """Nodes of equal devices, joined by the networks that the device's profile names.

    Args:
        device: The profile.
        nodes: N.
        devices_per_node: G / N.
        scale_up: Replaces the profile's scale-up numbers.
        nic: Replaces the profile's numbers of the network card.
        nics_per_node: Cards per node, shared evenly by neighbours; one per device if not given.
        oversubscription: Bandwidth of a node's cards over that of its uplink to the spine.

    Raises:
        InputError: If the profile lacks a link that this cluster needs, or a node holds more
            devices than one scale-up network can join.
    """
    count = nodes * devices_per_node
    names = tuple(f"{device.kind}{g}" for g in range(count))
    node = np.arange(count) // devices_per_node
    wiring = _Wiring(dict.fromkeys(names))
    domain, levels, direct = node, [], None
    if (fast := device.scale_up) is not None:
        domain = node // _nodes_per_domain(device.name, fast, devices_per_node)
        shared = domain[-1] < count - 1
        if shared and fast.topology == "switch":
            levels.append(_switched(wiring, fast, names, domain, scale_up))
        elif shared:
            direct = _meshed(wiring, fast, names, domain, scale_up)
    elif scale_up != Rates():
        raise InputError(
            f"{device.name} has no scale-up network whose numbers could be replaced",
            field="scale_up",
            fix="remove it, or draw the network with devices, switches and links",
        )
    elif devices_per_node > 1:
        levels.append(_hosted(wiring, device, names, node))
    if domain[-1] > 0:
        ports = levels[0].up[:, :1] if device.scale_up is None and levels else None
        cards = nics_per_node or devices_per_node
        levels.append(_scaled_out(wiring, device, node, ports, nic, cards, oversubscription))
    return Network(
        devices=names,
        vertices=tuple(wiring.vertices),
        links=tuple(wiring.links),
        node_of_device=frozen_int32(node),
        domain_of_device=frozen_int32(domain),
        levels=tuple(levels),
        direct=direct,
    )


def frozen_int32(values: ArrayLike) -> np.ndarray:
    """A read-only int32 copy."""
    result = np.array(values, np.int32)
    result.setflags(write=False)
    return result


def _nodes_per_domain(name: str, fast: ScaleUp, devices_per_node: int) -> int:
    """How many whole nodes one scale-up network joins."""
    if devices_per_node > fast.domain_devices:
        raise InputError(
            f"more devices per node than the scale-up network of {name} joins",
            field="devices_per_node",
            found=devices_per_node,
            allowed=f"1 … {fast.domain_devices}",
            fix=f"use more nodes, such as 2x{fast.domain_devices}x{name}",
        )
    return fast.domain_devices // devices_per_node if fast.spans_nodes else 1


def _switched(
    wiring: _Wiring, fast: ScaleUp, names: tuple[str, ...], domain: np.ndarray, rates: Rates
) -> Chains:
    bandwidth = rates.bandwidth_bytes_per_s or fast.bandwidth.si
    latency = fast.latency.si if rates.latency_s is None else rates.latency_s
    kind = "nvswitch" if fast.name.startswith("NVLink") else "upswitch"
    up = [
        wiring.join(name, f"{kind}{d}", bandwidth, latency / 2, "scale-up")
        for name, d in zip(names, domain, strict=True)
    ]
    return _chains(domain, [up])


def _meshed(
    wiring: _Wiring, fast: ScaleUp, names: tuple[str, ...], domain: np.ndarray, rates: Rates
) -> np.ndarray:
    total = rates.bandwidth_bytes_per_s or fast.bandwidth.si
    # Links to absent peers stay dark: fewer devices do not make the remaining links wider.
    bandwidth = total / (fast.domain_devices - 1)
    latency = fast.latency.si if rates.latency_s is None else rates.latency_s
    direct = np.full((len(names), len(names)), -1, np.int32)
    for d in range(int(domain[-1]) + 1):
        members = np.flatnonzero(domain == d).tolist()
        for position, g in enumerate(members):
            for h in members[position + 1 :]:
                link = wiring.join(names[g], names[h], bandwidth, latency, "scale-up")
                direct[g, h], direct[h, g] = link, link + 1
    return direct


def _hosted(wiring: _Wiring, device: Device, names: tuple[str, ...], node: np.ndarray) -> Chains:
    """Devices of a node joined by their host's PCIe."""
    host = device.host_link
    if host is None or host.latency is None:
        raise InputError(
            f"{device.name} has no link to other devices of its node: "
            "its profile names no scale-up network and no host link with a latency",
            field="host_link.latency",
            fix="use one device per node, or add the link to a profile of your own",
        )
    bandwidth = host.bandwidth.si
    port = [
        wiring.join(name, f"pcie{g}", bandwidth, 0.0, "scale-up") for g, name in enumerate(names)
    ]
    up = [
        wiring.join(f"pcie{g}", f"host{n}", bandwidth, host.latency.si / 2, "scale-up")
        for g, n in enumerate(node)
    ]
    return _chains(node, [port, up])


def _scaled_out(
    wiring: _Wiring,
    device: Device,
    node: np.ndarray,
    ports: np.ndarray | None,
    rates: Rates,
    cards: int,
    oversubscription: float,
) -> Chains:
    """Devices of all nodes joined by their network cards."""
    host, nic = device.host_link, device.nic
    bandwidth = rates.bandwidth_bytes_per_s or (nic and nic.bandwidth.si)
    latency = nic.latency.si if nic and rates.latency_s is None else rates.latency_s
    if host is None or not bandwidth or latency is None:
        lacking = "host link" if host is None else "network card"
        raise InputError(
            f"{device.name} cannot be joined across nodes: its profile names no {lacking}",
            field="nic",
            fix="write a cluster file with nic: {bandwidth: 25 GB/s, latency: 3 us}"
            if host is not None
            else "use one node, or add host_link to a profile of your own",
        )
    per_node = len(node) // (int(node[-1]) + 1)
    card = node * cards + np.arange(len(node)) % per_node * cards // per_node
    steps: list[list[int]] = []
    prefix = "pcie" if ports is not None else device.kind
    if ports is not None:
        steps.append(ports[:, 0].tolist())
    steps.append(
        [
            wiring.join(f"{prefix}{g}", f"nic{k}", host.bandwidth.si, 0.0, "scale-out")
            for g, k in enumerate(card)
        ]
    )
    blocking = oversubscription > 1
    uplink = {}
    for k in range(int(card[-1]) + 1):
        top = f"leaf{k // cards}" if blocking else "spine0"
        uplink[k] = wiring.join(f"nic{k}", top, bandwidth, latency / 2, "scale-out")
    steps.append([uplink[k] for k in card.tolist()])
    if blocking:
        shared = cards * bandwidth / oversubscription
        leaf = [
            wiring.join(f"leaf{n}", "spine0", shared, 0.0, "scale-out")
            for n in range(int(node[-1]) + 1)
        ]
        steps.append([leaf[n] for n in node.tolist()])
    return _chains(np.zeros_like(node), steps)


def _chains(group: np.ndarray, steps: list[list[int]]) -> Chains:
    up = np.array(steps, np.int32).T
    return Chains(group=group, up=up, down=up[:, ::-1] + 1)
