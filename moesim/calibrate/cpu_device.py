"""A measured CPU as a device profile, for everything that takes a device by file."""

from __future__ import annotations

from typing import Any

from moesim.calibrate.measurements import Measurements
from moesim.errors import InputError
from moesim.hardware import Device
from moesim.operators.cpu_experts import CpuExpertProfile

__all__ = ["measured_device"]


def measured_device(measurements: Measurements, profile: CpuExpertProfile) -> Device:
    """The machine as ``moesim.device/1``: rates that a program was seen to reach.

    They are those of the threads that were measured, not of a data sheet.

    Raises:
        InputError: If the size of the memory or its bandwidth is not known.
    """
    if profile.read_bytes_per_s is None or measurements.environment.memory_bytes is None:
        raise InputError(
            "a device profile needs the size and the bandwidth of the memory",
            field="environment.memory_bytes, points",
            allowed="a run that read memory, on a system that tells its size",
            fix="measure again on Linux, or write the profile by hand",
        )

    def number(value: float | str, unit: str) -> dict[str, Any]:
        text = f"{value:.4g} {unit}"
        return {"value": text, "source": "measured", "evidence": "measured"}

    threads = profile.threads
    return Device.model_validate(
        {
            "name": profile.system if profile.system[0].isalpha() else f"cpu_{profile.system}",
            "title": f"{profile.processor}, {threads} thread{'s' if threads > 1 else ''}",
            "vendor": "measured",
            "kind": "cpu",
            "note": f"Measured with {threads} of {measurements.environment.processors_usable} "
            f"processors, clock {profile.clock}.",
            "peak": {
                fit.coefficients.dtype: {
                    "value": f"{fit.coefficients.flop_per_s / 1e9:.4g} GFLOP/s",
                    "source": "measured",
                    "evidence": "fitted",
                }
                for fit in profile.fits
            },
            "memory": {
                "capacity": number(measurements.environment.memory_bytes / 1e9, "GB"),
                "bandwidth": number(profile.read_bytes_per_s / 1e9, "GB/s"),
            },
            "cores": {"value": threads, "source": "measured", "evidence": "measured"},
            "sources": {"measured": {"title": f"moesim calibrate measure, {profile.date}"}},
        }
    )
