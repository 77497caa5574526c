"""Seconds of all-to-alls under a placement: bytes over links, and what kernels add to that.

Where every token goes decides how many bytes each link carries; that is counted on the cluster's
graph for every placement (:mod:`moesim.communication`). How fast links are in practice, and what
is fixed, comes from data sheets or from fitted kernels: DeepEP's for tokens that return to their
rank, NCCL's all-to-all for tokens that travel on.

    seconds = launch ⊔ (copying by SMs ⊔ scale-up links ⊔ scale-out links) + latency of the route

with ⊔ the p-norm that was fitted; a data sheet's form has no launch, no copying, a plain maximum
between the links, and the profile's latency.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from moesim.cluster import Cluster
from moesim.communication import LinkTime, link_time
from moesim.hardware import Reached
from moesim.model import ModelSpec
from moesim.operators.deepep import p_norm
from moesim.operators.roofline_errors import REACHED_RATES, reached_interval, roofline_interval
from moesim.schema import Evidence
from moesim.topology import Link

__all__ = [
    "COMBINE_BYTES",
    "Direction",
    "LinkCost",
    "dispatch_vector_bytes",
    "reached_links",
    "roofline_links",
]

COMBINE_BYTES = 2
"""Bytes per element of what returns from the experts: bfloat16 (DeepEP; DeepSeek-V3 §3.2.2)."""

FP8_SCALE_BYTES = 4
FP8_SCALE_BLOCK = 128
"""An fp8 vector travels with one float32 scale per 128 elements (DeepEP's dispatch)."""


@dataclass(frozen=True, eq=False)
class Direction:
    """One all-to-all, to the experts or back.

    Attributes:
        cluster: Links and routes.
        vector_bytes: Of one token's vector.
        up_rate: What the kernel reaches of the bandwidth of links within a domain.
        out_rate: The same between domains.
        route_latency: Whether the latency of routes counts besides ``launch_s``.
        launch_s: Fixed time.
        copy_s: Of copying by the busiest device's SMs, taken as under even routing.
        flow_overlap: Exponent of the p-norm between copying and links; ∞ is the maximum.
        latency_overlap: Exponent between the fixed time and those.
    """

    cluster: Cluster
    vector_bytes: float
    up_rate: float = 1.0
    out_rate: float = 1.0
    route_latency: bool = True
    launch_s: float = 0.0
    copy_s: float = 0.0
    flow_overlap: float = np.inf
    latency_overlap: float = 1.0

    def time(self, vectors: np.ndarray) -> tuple[np.ndarray, LinkTime]:
        """Seconds of all-to-alls, and their links.

        Args:
            vectors: [..., G, G] sent from device i to device j.
        """
        links = link_time(vectors * self.vector_bytes, self.cluster)
        seconds = self.seconds(links.scale_up_s / self.up_rate, links.scale_out_s / self.out_rate)
        return seconds + links.latency_s if self.route_latency else seconds, links

    @cached_property
    def links(self) -> tuple[Link, ...]:
        """The cluster's links with the bandwidth that the kernel reaches on them."""
        return tuple(
            replace(
                link,
                bandwidth_bytes_per_s=link.bandwidth_bytes_per_s
                * (self.up_rate if link.tier == "scale-up" else self.out_rate),
            )
            for link in self.cluster.links
        )

    def seconds(self, scale_up_s: np.ndarray, scale_out_s: np.ndarray | float = 0.0) -> np.ndarray:
        """Seconds without the latency of routes; never less for busier links.

        Where nothing travels nothing runs.

        Args:
            scale_up_s: [...] of the busiest link within a domain at the kernel's rate.
            scale_out_s: [...] of the busiest link between domains, same.
        """
        up_s, out_s = np.asarray(scale_up_s, float), np.asarray(scale_out_s, float)
        busiest_s = np.maximum(up_s, out_s)
        if np.isinf(self.flow_overlap):
            flow_s = np.maximum(busiest_s, self.copy_s)
        else:
            flow_s = p_norm(self.flow_overlap, np.array(self.copy_s), up_s, out_s)
        if self.launch_s > 0:
            flow_s = p_norm(self.latency_overlap, np.array(self.launch_s), flow_s)
        return np.where(busiest_s > 0, flow_s, 0.0)


@dataclass(frozen=True, eq=False)
class LinkCost:
    """Both directions.

    Attributes:
        dispatch: To the experts; between layers where tokens travel on.
        combine: Back.
        name: Whose coefficients, or ``roofline``.
        evidence: The weakest that went in.
        bands: Times of one direction, and up to there the ends of the 80 % interval as multiples
            of it; none for the data sheet's.
    """

    dispatch: Direction
    combine: Direction
    name: str
    evidence: Evidence
    bands: tuple[tuple[float, float, float], ...] = ()

    def interval(self, seconds: float, least_s: float) -> tuple[float, float]:
        """Ends of the 80 % interval of one all-to-all as multiples of its time.

        Fitted times are within their interval; a roofline is a bound and lies below it.

        Args:
            seconds: The time.
            least_s: The same by the data sheet, :attr:`~moesim.communication.LinkTime.seconds`.
        """
        for up_to_s, low, high in self.bands:
            if seconds <= up_to_s:
                return min(low, 1.0), max(high, 1.0)
        if self.name == REACHED_RATES:
            return reached_interval("dispatch", seconds, least_s)
        return roofline_interval("dispatch", seconds)


def dispatch_vector_bytes(model: ModelSpec) -> float:
    """Bytes of one token's vector on the way to an expert."""
    hidden = model.expert_input_size
    if model.activation_bits == 8:
        return hidden + hidden / FP8_SCALE_BLOCK * FP8_SCALE_BYTES
    return hidden * model.activation_bits / 8


def roofline_links(model: ModelSpec, cluster: Cluster) -> LinkCost:
    """Data sheets' bandwidths and latencies."""
    return LinkCost(
        Direction(cluster, dispatch_vector_bytes(model)),
        Direction(cluster, float(model.expert_input_size * COMBINE_BYTES)),
        "roofline",
        cluster.evidence,
    )


def reached_links(plain: LinkCost, shares: Reached) -> LinkCost:
    """The share of bandwidths that a profile says kernels reach, and a fixed time per call."""
    call_s = 0.0 if shares.collective_call is None else shares.collective_call.si

    def reached(way: Direction) -> Direction:
        return replace(way, up_rate=shares.link.si, out_rate=shares.link.si, launch_s=call_s)

    return LinkCost(
        reached(plain.dispatch), reached(plain.combine), REACHED_RATES, Evidence.ASSUMED
    )
