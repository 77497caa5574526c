"""What the physics of an expert layer needs of a device, from its profile."""

from __future__ import annotations

import numpy as np

from moesim.errors import InputError
from moesim.hardware import Device
from moesim.operators.moe import MoeDevice
from moesim.operators.moe_kernels import ARITHMETIC, cache_bytes

__all__ = ["moe_device"]


def moe_device(device: Device, dtype: str) -> MoeDevice:
    """Bandwidth, peak, cores and cache for experts of a type.

    A device without the type's arithmetic widens the weights and computes in bfloat16.

    Args:
        device: A profile.
        dtype: Of the experts, as the measured tables name it.

    Raises:
        InputError: If the profile does not say how many cores there are.
    """
    if device.cores is None:
        raise InputError(
            f"the profile of {device.name} lacks its number of cores",
            field="cores",
            allowed="how many streaming multiprocessors (or the like) there are",
            fix="add it to the profile",
        )
    numbers = (
        device.memory_bytes_per_s,
        _peak(device, ARITHMETIC[dtype]),
        device.cores.value,
        cache_bytes(device.name),
    )
    return MoeDevice(*(np.array(float(number)) for number in numbers))


def _peak(device: Device, arithmetic: str) -> float:
    """Peak of the arithmetic, or of bfloat16 where the device lacks it."""
    try:
        return device.peak_flop_per_s(arithmetic)
    except InputError:
        return device.peak_flop_per_s("bf16")
