"""What one forward step of the expert layers costs under a placement."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.schema import Evidence

__all__ = ["StepCost"]


@dataclass(frozen=True)
class StepCost:
    """Cost of the expert layers of one step, averaged over the sampled batches.

    Attributes:
        step_s: Seconds per step: Σ over layers of compute + communication, mean over batches.
        layer_compute_s: [L] seconds of the slowest device.
        layer_dispatch_s: [L] seconds of the all-to-all before the experts.
        layer_combine_s: [L] seconds of the all-to-all behind the experts.
        layer_bound: [L] what takes the longest: ``weights``, ``flops``, ``all-to-all``.
        device_tokens: [L, G] token assignments per device and step.
        traffic_bytes: [G, G] bytes per step from device i to device j, all layers, both ways.
        link_bytes: [links] bytes per step over each link of the cluster.
        balance: Mean over layers and batches of mean/max device load; 1 is even.
        remote_fraction: Token assignments that leave their device, of all.
        internode_fraction: Token assignments that leave their node, of all.
        internode_bytes: Bytes per step that cross nodes, all layers, both ways.
        comm: Form of communication, ``home-rank`` or ``chain``.
        evidence: The weakest evidence that went in.
    """

    step_s: float
    layer_compute_s: np.ndarray
    layer_dispatch_s: np.ndarray
    layer_combine_s: np.ndarray
    layer_bound: tuple[str, ...]
    device_tokens: np.ndarray
    traffic_bytes: np.ndarray
    link_bytes: np.ndarray
    balance: float
    remote_fraction: float
    internode_fraction: float
    internode_bytes: float
    comm: str
    evidence: Evidence
