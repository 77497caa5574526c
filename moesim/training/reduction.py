"""What follows the last micro-batch: gradients added up over copies, weights updated and spread.

ZeRO-1 (arXiv 1910.02054): a reduce-scatter of gradients over the copies of every weight, Adam on
the own part, an all-gather of new weights. Both travel while the last backward and the next
forward pass go on (Megatron-LM's overlapped gradient reduce and parameter gather); what does not
fit behind them, and the last layer's part, is waited for.
"""

from __future__ import annotations

from dataclasses import dataclass

from moesim.forward.machine import Links
from moesim.training.memory import DeviceParameters

__all__ = ["ADAM_BYTES", "Reduction", "exposed_s", "reduction", "sync_s"]

ADAM_BYTES = 30
"""Per parameter: float32 gradient, weight and two moments read, the last three and the bfloat16
weight written."""


@dataclass(frozen=True)
class Reduction:
    """Alone, without what hides it.

    Attributes:
        gradient_bytes: That a device sends to add up gradients.
        gradient_s: Seconds of that.
        weight_bytes: That a device sends to spread new weights.
        weight_s: Seconds of that.
        optimizer_bytes: Of its memory that Adam moves.
    """

    gradient_bytes: float
    gradient_s: float
    weight_bytes: float
    weight_s: float
    optimizer_bytes: float


def sync_s(size_bytes: float, copies: int, near: int, links: Links) -> tuple[float, float]:
    """Bytes that a device sends, and seconds, of a reduce-scatter or all-gather over copies.

    First over the copies of a scale-up domain, then each device its part between domains, one in
    pipeline with the other (MegaScale-MoE, section 3.1).

    Args:
        size_bytes: Of the whole buffer.
        copies: Devices that hold it.
        near: Of those, in one domain.
        links: Of a device.
    """
    if copies == 1:
        return 0.0, 0.0
    near = min(near, copies)
    inside = size_bytes * (near - 1) / near
    far = copies // near
    outside = size_bytes / near * (far - 1) / far
    inside_s = inside / links.up_bytes_per_s if inside else 0.0
    outside_s = outside / links.out_bytes_per_s if outside else 0.0
    return inside + outside, max(inside_s, outside_s)


def reduction(
    parameters: DeviceParameters, links: Links, gradient_bytes: float, weight_bytes: float = 2.0
) -> Reduction:
    """What the copies of every weight exchange; those next to each other are in one domain.

    Args:
        parameters: Of the fullest device.
        links: Of a device.
        gradient_bytes: Per gradient on the way: 4, or 2 where bfloat16 is sent and summed as
            float32 at its goal (MegaScale-MoE, section 5).
        weight_bytes: Per weight.
    """
    sent, seconds = [0.0, 0.0], [0.0, 0.0]
    for part in parameters.parts:
        near = max(1, links.domain_devices // part.spread)
        for way, element in enumerate((gradient_bytes, weight_bytes)):
            moved, took = sync_s(part.parameters * element, part.copies, near, links)
            sent[way] += moved
            seconds[way] += took
    return Reduction(sent[0], seconds[0], sent[1], seconds[1], ADAM_BYTES * parameters.sharded)


def exposed_s(sync: float, behind_s: float, layers: int, *, overlapped: bool) -> float:
    """What is waited for: all, or what a pass does not hide and at least one layer's part.

    Args:
        sync: Seconds alone.
        behind_s: Of the pass that it travels behind.
        layers: Of the stage: the last one's part has no pass left.
        overlapped: Whether it travels behind a pass at all.
    """
    return max(sync - behind_s, sync / layers) if overlapped else sync
