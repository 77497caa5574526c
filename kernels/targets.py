"""Which processor a kernel runs on or is compiled for, and what it can do."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from moesim.errors import UsageError
from moesim.kernels.language import INTERPRETED

__all__ = ["REACHED_BANDWIDTH", "TARGETS", "Chip", "Target", "check_type", "chip_of", "target_of"]

REACHED_BANDWIDTH = 0.9
"""Share of a data sheet's bandwidth that copies reach: 3.03 of 3.35 TB/s on an H100, 4.27 of
4.8 TB/s on an H200 (measured)."""


@dataclass(frozen=True)
class Target:
    """A processor as the compiler sees it.

    Attributes:
        name: The compiler's name.
        backend: Triton's backend.
        arch: Architecture as that backend writes it.
        warp_size: Threads of a warp (a wavefront).
        shared_bytes: Most shared memory (LDS) of one program.
        core_shared_bytes: Shared memory of a core, for all programs on it.
        reserved_bytes: What the system takes of it per program.
        registers: 32-bit registers of a core.
        fp8: The e4m3 type that its matrix units take, or None.
        descriptors: Whether it has a copy engine that takes tensor descriptors.
    """

    name: str
    backend: str
    arch: int | str
    warp_size: int
    shared_bytes: int
    core_shared_bytes: int
    reserved_bytes: int
    registers: int
    fp8: torch.dtype | None
    descriptors: bool


@dataclass(frozen=True)
class Chip:
    """The device at hand, of a target.

    Attributes:
        cores: Streaming multiprocessors (compute units).
        bytes_per_s: Memory bandwidth that a kernel can reach; None if the driver does not tell.
    """

    cores: int
    bytes_per_s: float | None = None


E4M3, E4M3_FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
KIB = 1024

TARGETS = {
    target.name: target
    for target in (
        # CUDA C++ programming guide, technical specifications per compute capability: shared
        # memory per block and per multiprocessor, 1 KiB of it reserved per block, 64 Ki registers.
        Target("sm_80", "cuda", 80, 32, 163 * KIB, 164 * KIB, KIB, 64 * KIB, None, False),
        Target("sm_90a", "cuda", 90, 32, 227 * KIB, 228 * KIB, KIB, 64 * KIB, E4M3, True),
        Target("sm_100a", "cuda", 100, 32, 227 * KIB, 228 * KIB, KIB, 64 * KIB, E4M3, True),
        # AMD Instinct MI300 instruction set reference: 64 KiB LDS per compute unit, 4 SIMDs with
        # 512 vector registers of 64 lanes (accumulation registers included).
        Target("gfx942", "hip", "gfx942", 64, 64 * KIB, 64 * KIB, 0, 128 * KIB, E4M3_FNUZ, False),
    )
}
"""Targets that every kernel is compiled for in tests."""


def target_of(device: torch.device) -> Target:
    """The target of a device; under the interpreter Hopper, whose features it imitates.

    Raises:
        UsageError: If the kernels have no configurations for it.
    """
    return TARGETS["sm_90a"] if INTERPRETED else _target_of_gpu(device.index or 0)


def check_type(dtype: torch.dtype, target: Target) -> None:
    """Refuse a type that the target's matrix units do not take.

    Raises:
        UsageError: Naming the type and what the target takes.
    """
    taken = [torch.bfloat16, torch.float16] + ([target.fp8] if target.fp8 else [])
    if dtype not in taken:
        raise UsageError(
            f"{target.name} multiplies {', '.join(str(t) for t in taken)}, not {dtype}\n"
            "fix: convert the operands"
        )


@cache
def chip_of(device: torch.device) -> Chip:
    """Cores and bandwidth; under the interpreter 2 cores, so that programs take several tiles."""
    if INTERPRETED:
        return Chip(2)
    properties = torch.cuda.get_device_properties(device)
    # Older versions of torch do not tell; two transfers per cycle of the memory's clock.
    clock_hz = 1e3 * getattr(properties, "memory_clock_rate", 0)
    bus_bytes = getattr(properties, "memory_bus_width", 0) / 8
    reached = 2 * clock_hz * bus_bytes * REACHED_BANDWIDTH
    return Chip(int(properties.multi_processor_count), reached or None)


@cache
def _target_of_gpu(index: int) -> Target:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        name = str(properties.gcnArchName).partition(":")[0]
    else:
        # 8.6 and 8.9 have too little shared memory for the tiles of 8.0.
        names = {(8, 0): "sm_80", (8, 7): "sm_80", (9, 0): "sm_90a", (10, 0): "sm_100a"}
        names[(10, 3)] = "sm_100a"
        name = names.get((properties.major, properties.minor), "")
    if name not in TARGETS:
        raise UsageError(
            f"no kernel configurations for {properties.name}; there are some for "
            f"{', '.join(TARGETS)}\nfix: move the tensors to the CPU, where plain torch runs"
        )
    return TARGETS[name]
