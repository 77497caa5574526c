"""What a design takes of an FPGA: multipliers and on-chip memory."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from moesim.errors import InfeasibleError
from moesim.fpga.documents import Design, VitMoe
from moesim.fpga.ports import fpga_fabric
from moesim.hardware import Device
from moesim.units import format_bytes

__all__ = ["Resources", "expert_weight_bytes", "multiplier_slices", "resources_of"]

DSP_WIDE, DSP_NARROW = 27, 18
"""Signed operands of a DSP48E2 (AMD UG579)."""


@dataclass(frozen=True)
class Resources:
    """Estimates from the design's constants; control, exponentials and dividers are left out.

    Attributes:
        dsp_slices: For multiply-adds.
        buffer_bytes: Weight buffers and pinned experts.
        room_experts: Most experts that fit beside the buffers.
        dsp_share: Of the device's.
        on_chip_share: Of the device's on-chip memory.
    """

    dsp_slices: int
    buffer_bytes: int
    room_experts: int
    dsp_share: float
    on_chip_share: float


def multiplier_slices(a_bits: int, b_bits: int) -> int:
    """DSP slices of a signed product: operands are cut so that each piece keeps a sign bit."""
    wide, narrow = max(a_bits, b_bits), min(a_bits, b_bits)
    return ceil((wide - 1) / (DSP_WIDE - 1)) * ceil((narrow - 1) / (DSP_NARROW - 1))


def expert_weight_bytes(network: VitMoe, design: Design) -> int:
    """Both matrices of an expert."""
    return ceil(2 * network.hidden * network.moe.expert_hidden * design.bits.weight / 8)


def resources_of(network: VitMoe, design: Design, device: Device, pinned: int = 0) -> Resources:
    """What the design takes.

    Args:
        network: Whose largest matrix fills a buffer.
        design: The accelerator.
        device: The FPGA.
        pinned: Experts that stay on chip.

    Raises:
        UsageError: If the device is no FPGA.
        InfeasibleError: If the multipliers, the buffers or the weights do not fit.
    """
    fabric = fpga_fabric(device)
    bits, block = design.bits, design.block_features
    by_weight = multiplier_slices(bits.activation, bits.weight)
    attention = 2 * design.attention.queries * block
    pixels = max(1, design.axi.width_bits // bits.pixel)
    slices = (
        design.linear.macs_per_cycle * by_weight
        + attention * multiplier_slices(bits.activation, bits.activation)
        + pixels * block * multiplier_slices(bits.weight, bits.pixel)
        + network.moe.experts * block * by_weight
    )
    matrix = network.hidden * max(
        network.hidden,
        network.dense_hidden if network.dense_layers else 0,
        network.moe.expert_hidden if network.moe_layers else 0,
    )
    buffers = design.weight_buffers * ceil(matrix * bits.weight / 8)
    _fits("multipliers", f"{slices:,} DSP slices", slices, fabric.dsp_slices.value, device)
    on_chip = fabric.on_chip_memory.si
    _fits("weight buffers", format_bytes(buffers), buffers, on_chip, device)
    each = expert_weight_bytes(network, design)
    room = min(int((on_chip - buffers) // each), network.moe_layers * network.moe.experts)
    if pinned > room:
        raise InfeasibleError(
            f"{pinned} experts of {format_bytes(each)} do not stay on chip: {device.name} has room "
            f"for {room} beside the weight buffers\nfix: pass --pin-experts {room} or fewer"
        )
    held = buffers + pinned * each
    weights = parameters(network) * bits.weight / 8
    _fits("weights", format_bytes(weights), weights, device.memory_bytes, device)
    return Resources(
        slices,
        held,
        room,
        slices / fabric.dsp_slices.value,
        held / on_chip,
    )


def parameters(network: VitMoe) -> int:
    """Matrices of the layers; biases, norms and the patch embedding are small beside them."""
    hidden, moe = network.hidden, network.moe
    return (
        network.layers * 4 * hidden**2
        + network.dense_layers * 2 * hidden * network.dense_hidden
        + network.moe_layers * moe.experts * (2 * moe.expert_hidden + 1) * hidden
    )


def _fits(what: str, shown: str, needed: float, there: float, device: Device) -> None:
    if needed > there:
        have = f"{there:,.0f}" if what == "multipliers" else format_bytes(there)
        raise InfeasibleError(
            f"the {what} take {shown}, {device.name} has {have}\n"
            "fix: use a larger device, a smaller network, or another design file"
        )
