"""The systems that kernels were measured on: their profiles and peaks."""

from __future__ import annotations

from functools import lru_cache

from moesim.errors import InputError
from moesim.hardware import Device, load_device
from moesim.operators.moe_transfer import PROFILES
from moesim.operators.processor import Processor

__all__ = ["device_of", "processor", "processor_of", "system_of"]

SUBSTITUTES = {"fp4": "fp8", "fp8": "bf16", "int8": "bf16", "fp16": "bf16"}
"""Where a device has no peak for a format, its kernels convert to the next wider one."""


def device_of(system: str) -> Device:
    """The profile of a measured system.

    Raises:
        UsageError: If there is none.
    """
    return load_device(PROFILES.get(system, system))


def system_of(device: Device) -> str:
    """The name that the measured tables have for a device; its own where there is none."""
    names = {profile: system for system, profile in PROFILES.items()}
    return names.get(device.name, device.name)


def processor(device: Device, arithmetic: str) -> Processor:
    """Peaks of a device out of its profile.

    Args:
        device: The profile.
        arithmetic: ``bf16``, ``fp8`` …; the next wider format where the device lacks it.

    Raises:
        InputError: If the profile has neither a peak for the format nor for a wider one, or does
            not say how many cores there are.
    """
    if device.cores is None:
        raise InputError(
            f"{device.name} does not say how many cores it has",
            field="cores",
            fix="add the number of streaming multiprocessors, or compute units, to the profile",
        )
    while True:
        try:
            peak = device.peak_flop_per_s(arithmetic)
            break
        except InputError:
            if arithmetic not in SUBSTITUTES:
                raise
            arithmetic = SUBSTITUTES[arithmetic]
    return Processor(
        peak_flop_per_s=peak,
        memory_bytes_per_s=device.memory_bytes_per_s,
        cores=device.cores.value,
    )


@lru_cache
def processor_of(system: str, arithmetic: str) -> Processor:
    """Peaks of a measured system; see :func:`processor`."""
    return processor(device_of(system), arithmetic)
