"""What prices depend on: the device, its links, and the engine whose kernels run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from moesim.cluster import Cluster
from moesim.cost_model import CostModel
from moesim.fitted_costs import Engine
from moesim.hardware import Device
from moesim.measured_kernels import MeasuredKernels
from moesim.operators.power import DevicePower, device_power
from moesim.schema import Evidence, weakest

__all__ = ["Links", "Machine", "Rates", "ReachedRates"]


@dataclass(frozen=True)
class Links:
    """Links of one device.

    Attributes:
        domain_devices: Devices that reach each other over scale-up links alone.
        up_bytes_per_s: To all of those together; 0 for a device alone.
        up_latency_s: To one of those.
        out_bytes_per_s: To a device of another domain; 0 if there is one domain.
        out_latency_s: The same.
        evidence: Of the bandwidths.
    """

    domain_devices: int
    up_bytes_per_s: float
    up_latency_s: float
    out_bytes_per_s: float
    out_latency_s: float
    evidence: Evidence

    @classmethod
    def of(cls, cluster: Cluster) -> Links:
        """Links of the cluster's first device; clusters are regular in this respect."""
        domain = cluster.domain_of_device
        near = np.flatnonzero(domain == domain[0])
        far = np.flatnonzero(domain != domain[0])
        name = cluster.device_names[0]
        own = [link for link in cluster.links if link.source == name and link.tier == "scale-up"]
        up, up_latency, out, out_latency = 0.0, 0.0, 0.0, 0.0
        if len(near) > 1:
            up = sum(link.bandwidth_bytes_per_s for link in own)
            up_latency = float(cluster.pair_latency_s[0, near[1]])
        if len(far):
            out = float(cluster.pair_bandwidth_bytes_per_s[0, far[0]])
            out_latency = float(cluster.pair_latency_s[0, far[0]])
        return cls(len(near), up, up_latency, out, out_latency, cluster.evidence)

    def domains(self, ranks: int) -> int:
        """Scale-up domains that so many neighbouring devices lie in."""
        return -(-ranks // self.domain_devices)


class Rates(Protocol):
    """What rooflines are made of: a machine's data sheet, or what kernels reach of it."""

    @property
    def peaks(self) -> Mapping[str, float]:
        """FLOP/s by number type."""

    @property
    def memory_bytes_per_s(self) -> float:
        """Of the memory."""

    @property
    def links(self) -> Links:
        """What it sends over."""


@dataclass(frozen=True)
class ReachedRates:
    """Rates that kernels reach; see :class:`Rates`."""

    peaks: Mapping[str, float]
    memory_bytes_per_s: float
    links: Links


@dataclass(frozen=True, eq=False)
class Machine:
    """A cluster under an engine.

    Attributes:
        cluster: Devices and links.
        engine: Whose kernels run.
        cost: Fitted coefficients, rooflines alone, or kernels measured on the device.

    Raises:
        InputError: If those kernels were measured on another device.
    """

    cluster: Cluster
    engine: Engine
    cost: CostModel

    def __post_init__(self) -> None:
        if isinstance(self.cost, MeasuredKernels):
            self.cost.check(self.cluster.device)

    @property
    def device(self) -> Device:
        """What computes."""
        return self.cluster.device

    @cached_property
    def links(self) -> Links:
        """What it sends over."""
        return Links.of(self.cluster)

    @cached_property
    def peaks(self) -> dict[str, float]:
        """FLOP/s by number type."""
        return {name: quantity.si for name, quantity in self.device.peak.items()}

    @cached_property
    def memory_bytes_per_s(self) -> float:
        """Peak bandwidth."""
        return self.device.memory_bytes_per_s

    @cached_property
    def reached(self) -> ReachedRates | None:
        """What kernels reach of the peaks, where the profile says it."""
        shares = self.device.reached
        if shares is None:
            return None
        link = shares.link.si
        return ReachedRates(
            {name: peak * shares.compute.si for name, peak in self.peaks.items()},
            self.memory_bytes_per_s * shares.memory.si,
            replace(
                self.links,
                up_bytes_per_s=self.links.up_bytes_per_s * link,
                out_bytes_per_s=self.links.out_bytes_per_s * link,
            ),
        )

    @cached_property
    def power(self) -> DevicePower | None:
        """What a device draws, if anything is known of it."""
        return device_power(self.device)

    @cached_property
    def evidence(self) -> Evidence:
        """The weakest of the device's own rates."""
        memory = self.device.memory.bandwidth.evidence
        return weakest(memory, *(peak.evidence for peak in self.device.peak.values()))
