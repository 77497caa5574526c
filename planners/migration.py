"""Getting from one placement to another: bytes over the links, seconds, and when it has paid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.cluster import Cluster
from moesim.communication import link_time
from moesim.model import ModelSpec
from moesim.placement import Placement
from moesim.planners.moves import holdings

__all__ = ["Migration", "break_even_steps", "migration"]


@dataclass(frozen=True)
class Migration:
    """What devices must load.

    Attributes:
        moves: Copies of experts that some device holds afterwards and did not hold before.
        moved_bytes: Their weights.
        sent_bytes: [G, G] what device i sends to device j of it; a second copy on a device that
            has one already is sent by nobody.
        seconds: Of the busiest link at its data sheet's bandwidth, all transfers at once, and the
            latency of its route. Serving engines pause longer: they also plan, and swap tensors.
    """

    moves: int
    moved_bytes: float
    sent_bytes: np.ndarray
    seconds: float


def migration(before: Placement, after: Placement, model: ModelSpec, cluster: Cluster) -> Migration:
    """Every new copy comes from the nearest device that holds the expert now.

    Nearest is the route of most bandwidth; among equals the device that has sent least so far.

    Args:
        before: The placement in use.
        after: The one wanted, of the same layers, experts and devices.
        model: Gives the weights of an expert; layers that share experts move them once.
        cluster: Gives the links.
    """
    expert_bytes = model.expert_weight_bytes / model.variant.layer_reuse
    near = cluster.pair_bandwidth_bytes_per_s
    sent = np.zeros((cluster.devices, cluster.devices))
    moves = 0
    for layer in range(before.layers):
        held = holdings(before, layer)
        new = np.maximum(holdings(after, layer) - held, 0)
        moves += int(new.sum())
        for device, expert in np.argwhere(new > 0):
            if held[device, expert]:
                continue
            sources = np.flatnonzero(held[:, expert])
            order = np.lexsort((sent[sources].sum(1), -near[sources, device]))
            sent[sources[order[0]], device] += expert_bytes
    links = link_time(sent, cluster)
    seconds = np.maximum(links.scale_up_s, links.scale_out_s) + links.latency_s
    return Migration(moves, moves * expert_bytes, sent, float(seconds))


def break_even_steps(pause_s: float, before_s: float, after_s: float) -> float | None:
    """Steps until a pause has paid; None if the new placement is no faster.

    Args:
        pause_s: Seconds without any step.
        before_s: Of a step under the old placement.
        after_s: Of a step under the new one.
    """
    return pause_s / (before_s - after_s) if after_s < before_s else None
