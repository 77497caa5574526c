"""The machine that a benchmark ran on: what it is, how fast it was clocked, which programs."""

from __future__ import annotations

import subprocess
from shutil import which
from typing import Any

from moesim import environment

__all__ = ["describe", "gpu_state"]

GPU_FIELDS = (
    "name",
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "power.draw",
    "power.limit",
    "temperature.gpu",
)
"""What is asked of nvidia-smi; it only reads."""


def describe(torch: Any, on_gpu: bool, clock: str) -> dict[str, Any]:
    """Processor, memory, versions and how busy the machine is, for the file."""
    found: dict[str, Any] = {
        "processor": environment.processor_name(),
        "processors_usable": environment.usable_processors(),
        "threads": 1,
        "clock": clock,
        "cache_bytes": environment.cache_bytes(),
        "memory_bytes": environment.memory_bytes(),
        "clock_mhz": list(environment.clock_mhz()),
        "load_average": environment.load_average(),
        "cpu_pressure_percent": environment.cpu_pressure_percent(),
        "versions": environment.versions("torch", "triton", "numpy"),
        "variables": environment.library_variables(),
    }
    if not on_gpu:
        found["versions"]["torch_cpu_capability"] = torch.backends.cpu.get_cpu_capability()
        return found
    properties = torch.cuda.get_device_properties(0)
    found |= {
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "cores": properties.multi_processor_count,
        "cache_bytes": int(properties.L2_cache_size),
        "memory_bytes": int(properties.total_memory),
        "gpu_state": gpu_state(),
    }
    found["versions"]["cuda"] = str(torch.version.cuda)
    return found


def gpu_state() -> dict[str, str]:
    """Driver, clocks, power and temperature now; empty without nvidia-smi."""
    program = which("nvidia-smi")
    if program is None:
        return {}
    try:
        answer = subprocess.run(
            [program, f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader", "--id=0"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in answer.stdout.strip().split(",")]
    return dict(zip(GPU_FIELDS, values, strict=False))
