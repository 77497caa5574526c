"""What one forward step of the expert layers costs under a placement."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from moesim.cluster import Cluster
from moesim.communication import CommForm, count_copies
from moesim.cost import ExpertCost, RooflineCost
from moesim.errors import UsageError
from moesim.intervals import add_intervals
from moesim.link_cost import LinkCost, roofline_links
from moesim.model import ModelSpec
from moesim.placement import Placement
from moesim.schema import Evidence, weakest
from moesim.workload import Batches, Phase

__all__ = ["StepCost", "StepEvaluator"]


@dataclass(frozen=True)
class StepCost:
    """Cost of the expert layers of one step, averaged over the sampled batches.

    Attributes:
        step_s: Seconds per step: Σ over layers of dispatch + experts + combine.
        lo_s: Lower end of the step's 80 % interval.
        hi_s: Upper end.
        layer_compute_s: [L] seconds of the slowest device.
        layer_dispatch_s: [L] seconds of the all-to-all before the experts.
        layer_combine_s: [L] seconds of the all-to-all behind the experts.
        layer_bound: [L] what takes the longest: ``weights``, ``flops``, ``all-to-all``.
        device_tokens: [L, G] token assignments per device and step.
        traffic_bytes: [G, G] bytes per step from device i to device j, all layers, both ways.
        link_bytes: [links] bytes per step over each link of the cluster.
        tail_pair_s: Seconds per step of the slowest device pair, each alone on its route, summed
            over layers and both ways (MoETuner's tail term).
        balance: Mean over layers and batches of mean/max device load; 1 is even.
        remote_fraction: Token assignments that leave their device, of all.
        internode_fraction: Token assignments that leave their node (scale-up domain), of all.
        internode_bytes: Bytes per step that cross nodes, all layers, both ways.
        comm: Form of communication, ``home-rank`` or ``chain``.
        evidence: The weakest evidence that went in.
    """

    step_s: float
    lo_s: float
    hi_s: float
    layer_compute_s: np.ndarray
    layer_dispatch_s: np.ndarray
    layer_combine_s: np.ndarray
    layer_bound: tuple[str, ...]
    device_tokens: np.ndarray
    traffic_bytes: np.ndarray
    link_bytes: np.ndarray
    tail_pair_s: float
    balance: float
    remote_fraction: float
    internode_fraction: float
    internode_bytes: float
    comm: str
    evidence: Evidence


@dataclass(frozen=True)
class StepEvaluator:
    """Prices placements on the batches of one workload.

    Dispatch, experts and combine follow one another: overlap between them, attention, shared
    experts and everything else that placement does not change are left out.

    Attributes:
        batches: Tokens of the sampled steps.
        model: Sizes of the experts and of what travels.
        cluster: Devices and links.
        comm: Form of communication.
        phase: Decides how copies travel in the home-rank form.
        cost: Seconds of a device for its experts; the roofline unless given.
        links: Seconds of the all-to-alls; data sheets' bandwidths unless given.
    """

    batches: Batches
    model: ModelSpec
    cluster: Cluster
    comm: CommForm
    phase: Phase
    cost: ExpertCost | None = None
    links: LinkCost | None = None

    def __post_init__(self) -> None:
        if self.batches.devices != self.cluster.devices:
            raise UsageError(
                f"the batches are for {self.batches.devices} devices and the cluster "
                f"{self.cluster.name} has {self.cluster.devices}"
            )

    @cached_property
    def expert_cost(self) -> ExpertCost:
        """The cost model in use."""
        if self.cost is not None:
            return self.cost
        return RooflineCost.of(self.model, self.cluster.device)

    @cached_property
    def link_cost(self) -> LinkCost:
        """The cost of communication in use."""
        return self.links or roofline_links(self.model, self.cluster)

    @property
    def kernels(self) -> dict[str, str]:
        """What prices each half of a layer, and what it rests on."""
        experts, links = self.expert_cost, self.link_cost
        found = {"experts": f"{experts.name} ({experts.evidence})"}
        if self.cluster.devices > 1:
            found["communication"] = f"{links.name} ({links.evidence})"
        return found

    def evaluate(self, placement: Placement) -> StepCost:
        """Price a placement.

        Raises:
            UsageError: If the placement is for other devices, layers or experts than the batches.
        """
        self._check(placement)
        cluster = self.cluster
        copies = count_copies(self.batches, placement, cluster, self.comm, self.phase)
        slot_tokens = copies.slot_tokens.reshape(
            *copies.slot_tokens.shape[:2], cluster.devices, placement.slots_per_device
        )
        device_tokens = slot_tokens.sum(axis=-1)
        experts = self.expert_cost.time(slot_tokens)
        device_s = experts.total_s / cluster.speed_factors
        slowest = device_s.argmax(axis=-1)[..., None]
        least_s = (experts.least_s / cluster.speed_factors).max(axis=-1).mean(axis=0)
        compute_s = np.take_along_axis(device_s, slowest, -1)[..., 0]
        to, back = self.link_cost.dispatch, self.link_cost.combine
        dispatch_s, dispatch = to.time(copies.dispatch)
        combine_s, combine = back.time(copies.combine)
        traffic = (copies.dispatch * to.vector_bytes + copies.combine * back.vector_bytes).sum(
            axis=1
        )
        node = cluster.domain_of_device
        load = device_tokens / cluster.speed_factors
        peak_load = load.max(axis=-1)
        per_step = 1.0 / self.batches.count
        dispatch_s, combine_s = dispatch_s.mean(axis=0), combine_s.mean(axis=0)
        all_to_all_s = dispatch_s + combine_s
        layer_compute_s = compute_s.mean(axis=0)
        memory_s = np.take_along_axis(experts.memory_s, slowest, -1)[..., 0].mean(axis=0)
        arithmetic_s = np.take_along_axis(experts.compute_s, slowest, -1)[..., 0].mean(axis=0)
        step_s, lo_s, hi_s = self._with_interval(
            (layer_compute_s, least_s),
            ((dispatch_s, dispatch.seconds), (combine_s, combine.seconds)),
        )
        return StepCost(
            step_s=step_s,
            lo_s=lo_s,
            hi_s=hi_s,
            layer_compute_s=layer_compute_s,
            layer_dispatch_s=dispatch_s,
            layer_combine_s=combine_s,
            layer_bound=tuple(
                _bound(*times)
                for times in zip(layer_compute_s, all_to_all_s, memory_s, arithmetic_s, strict=True)
            ),
            device_tokens=device_tokens.mean(axis=0),
            traffic_bytes=traffic.mean(axis=0),
            link_bytes=(dispatch.link_bytes + combine.link_bytes).sum(axis=(0, 1)) * per_step,
            tail_pair_s=float((dispatch.tail_pair_s + combine.tail_pair_s).sum() * per_step),
            balance=float(
                np.divide(
                    load.mean(axis=-1), peak_load, out=np.ones_like(peak_load), where=peak_load > 0
                ).mean()
            ),
            remote_fraction=copies.remote / max(copies.assignments, 1),
            internode_fraction=copies.internode / max(copies.assignments, 1),
            internode_bytes=float(traffic[:, node[:, None] != node].sum() * per_step),
            comm=self.comm,
            evidence=weakest(
                self.expert_cost.evidence,
                self.link_cost.evidence if cluster.devices > 1 else Evidence.MEASURED,
                Evidence.ASSUMED if self.batches.assumed_independent else Evidence.MEASURED,
            ),
        )

    def _with_interval(
        self,
        compute_s: tuple[np.ndarray, np.ndarray],
        moving_s: tuple[tuple[np.ndarray, np.ndarray], ...],
    ) -> tuple[float, float, float]:
        """Sum over layers with its 80 % interval: experts err together, and so do all-to-alls.

        Args:
            compute_s: [L] seconds of experts, and [L] what their interval counts from.
            moving_s: The same of both directions; the latter is the data sheet's [W, L].
        """
        tokens = self.batches.tokens_per_device * self.batches.devices
        parts = []
        for layer_s, least_s in zip(*(part.tolist() for part in compute_s), strict=True):
            low, high = self.expert_cost.interval(layer_s, tokens, least_s)
            parts.append(("experts", layer_s, layer_s * low, layer_s * high))
        for way_s, plain_s in moving_s:
            for layer_s, least_s in zip(way_s.tolist(), plain_s.mean(axis=0).tolist(), strict=True):
                low, high = self.link_cost.interval(layer_s, least_s)
                parts.append(("dispatch", layer_s, layer_s * low, layer_s * high))
        return add_intervals(parts)

    def _check(self, placement: Placement) -> None:
        batches = self.batches
        expected = {
            "devices": (placement.devices, batches.devices),
            "MoE layers": (placement.layers, batches.layers),
            "experts": (placement.experts, batches.experts),
        }
        for what, (found, allowed) in expected.items():
            if found != allowed:
                raise UsageError(
                    f"the placement has {found} {what} and the workload {allowed}; "
                    "use a placement made for this trace and cluster"
                )


def _bound(compute_s: float, all_to_all_s: float, memory_s: float, arithmetic_s: float) -> str:
    if all_to_all_s > compute_s:
        return "all-to-all"
    return "weights" if memory_s >= arithmetic_s else "flops"
