"""The two processors of a device over one memory, and what a call takes on each.

A processor has its own peak rate, its own bandwidth to the shared memory and its own energy per
byte. A call takes the longer of its arithmetic and its bytes; which processor is faster follows
from the call's operations per byte alone: a Logic-PIM with four times the bandwidth and a ridge of
8 Op/B wins below 32 Op/B (Duplex, arXiv 2409.01141, sections III and IV).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.errors import InputError
from moesim.hardware import Device, Energy

__all__ = ["MEMORY_EFFICIENCY", "Processor", "break_even_op_per_byte", "processors_of"]

MEMORY_EFFICIENCY = 0.75
"""Of both bandwidths, that streams of weights reach: the factor by which Duplex's own split table
lowers them (LLMSimulator, ``src/module/route.cpp``)."""


@dataclass(frozen=True)
class Processor:
    """One of a device's processors.

    Attributes:
        name: For people.
        flop_per_s: Peak, half precision.
        bytes_per_s: Sustained, of the shared memory.
        j_per_byte: Of a byte read or written.
        j_per_flop: Of an operation.
    """

    name: str
    flop_per_s: float
    bytes_per_s: float
    j_per_byte: float
    j_per_flop: float

    def seconds(self, flops: np.ndarray | float, moved: np.ndarray | float) -> np.ndarray:
        """Roofline time of calls with so many operations and bytes; shapes broadcast."""
        return np.maximum(np.divide(flops, self.flop_per_s), np.divide(moved, self.bytes_per_s))

    def joules(self, flops: float, moved: float) -> float:
        """Energy of a call; nothing static is counted."""
        return flops * self.j_per_flop + moved * self.j_per_byte


def processors_of(
    device: Device,
    efficiency: tuple[float, float] = (MEMORY_EFFICIENCY, MEMORY_EFFICIENCY),
    arithmetic: str = "bf16",
) -> tuple[Processor, Processor]:
    """The main processor and the one near the memory.

    Args:
        device: Its profile.
        efficiency: Sustained shares of either bandwidth.
        arithmetic: Number type.

    Raises:
        InputError: If the profile has no second processor, or no energies.
    """
    pim = device.pim
    if pim is None:
        raise InputError(
            "the device has no second processor",
            field="pim",
            found=device.name,
            allowed="a profile with `pim`",
            fix="choose one, such as duplex, duplex_bank_pim or duplex_bankgroup_pim",
        )
    memory, compute = _energies(device.energy, device.name, "energy")
    own = pim.energy or Energy()
    near = compute if own.compute is None else own.compute.si
    if own.memory is None:
        raise InputError("energy per byte is needed", file=device.name, field="pim.energy.memory")
    return (
        Processor(
            "xPU",
            device.peak_flop_per_s(arithmetic),
            device.memory_bytes_per_s * efficiency[0],
            memory,
            compute,
        ),
        Processor(
            pim.name,
            pim.peak_flop_per_s(arithmetic),
            pim.bandwidth.si * efficiency[1],
            own.memory.si,
            near,
        ),
    )


def _energies(energy: Energy | None, name: str, field: str) -> tuple[float, float]:
    if energy is None or energy.memory is None or energy.compute is None:
        raise InputError("energies per byte and FLOP are needed", file=name, field=field)
    return energy.memory.si, energy.compute.si


def break_even_op_per_byte(main: Processor, near: Processor) -> float:
    """Operations per byte above which the main processor is the faster one.

    Returns:
        ``inf`` if it never is.
    """
    if main.bytes_per_s >= near.bytes_per_s:
        return 0.0
    # The near one is bound by its arithmetic, the main one by its bytes, where they cross.
    crossing = near.flop_per_s / main.bytes_per_s
    return crossing if crossing * main.bytes_per_s <= main.flop_per_s else float("inf")
