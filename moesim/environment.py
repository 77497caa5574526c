"""What a measurement must say of the machine it ran on.

Linux tells most of it in /proc and /sys; elsewhere what is unknown stays empty.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path

import moesim

__all__ = [
    "available_memory_bytes",
    "cache_bytes",
    "clock_mhz",
    "cpu_pressure_percent",
    "frequency_governor",
    "library_variables",
    "load_average",
    "memory_bytes",
    "peak_memory_bytes",
    "processor_name",
    "system_name",
    "usable_processors",
    "versions",
]

LIBRARY_PREFIXES = ("OMP_", "KMP_", "MKL_", "GOMP_", "ONEDNN_", "DNNL_", "OPENBLAS_", "TORCH_")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _field(text: str, name: str) -> list[str]:
    """Values of ``name : value`` lines."""
    return [m.strip() for m in re.findall(rf"^{re.escape(name)}\s*:\s*(.*)$", text, re.MULTILINE)]


def processor_name() -> str:
    """Model name of the processor, with family, model and stepping, which hypervisors keep."""
    text = _read("/proc/cpuinfo")
    names = _field(text, "model name")
    if not names:
        return platform.processor() or platform.machine() or "unknown"
    numbers = [_field(text, name)[:1] for name in ("cpu family", "model", "stepping")]
    known = "/".join(value[0] for value in numbers if value)
    return f"{names[0]} (family/model/stepping {known})" if known else names[0]


def system_name(processor: str) -> str:
    """The processor's name as a profile's: lower case, digits and underscores."""
    plain = re.sub(r"\(.*?\)", " ", processor).lower()
    return re.sub(r"[^a-z0-9]+", "_", plain).strip("_")[:64] or "unknown"


def usable_processors() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cache_bytes() -> int | None:
    """Last-level cache of the first processor, None if the system does not tell."""
    sizes = [_read(f"/sys/devices/system/cpu/cpu0/cache/index{i}/size").strip() for i in range(5)]
    found = [re.fullmatch(r"(\d+)([KMG])", size) for size in sizes]
    known = [int(match[1]) * UNITS[match[2]] for match in found if match]
    return max(known, default=None)


def _meminfo(name: str) -> int | None:
    values = _field(_read("/proc/meminfo"), name)
    return int(values[0].split()[0]) * 1024 if values else None


def memory_bytes() -> int | None:
    """Memory of the machine."""
    return _meminfo("MemTotal")


def available_memory_bytes() -> int | None:
    """Memory that can be had without swapping."""
    return _meminfo("MemAvailable")


def peak_memory_bytes() -> int:
    """The most memory that this process has had resident.

    Linux keeps it per program; getrusage's figure starts from that of the process that started
    this one, however large it was.
    """
    own = _field(_read("/proc/self/status"), "VmHWM")
    if own:
        return int(own[0].split()[0]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # KiB, on macOS bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def clock_mhz() -> tuple[float, ...]:
    """Current clocks of the processors."""
    return tuple(float(value) for value in _field(_read("/proc/cpuinfo"), "cpu MHz"))


def frequency_governor() -> str | None:
    """Who chooses the clock, where the system tells."""
    return _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or None


def load_average() -> float | None:
    """Mean number of runnable tasks over the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def cpu_pressure_percent() -> float | None:
    """Share of the last 10 s in which some task waited for a processor (Linux PSI)."""
    match = re.search(r"^some avg10=([\d.]+)", _read("/proc/pressure/cpu"), re.MULTILINE)
    return float(match[1]) if match else None


def library_variables() -> dict[str, str]:
    """Environment variables that steer threads and matrix libraries."""
    return {k: v for k, v in sorted(os.environ.items()) if k.startswith(LIBRARY_PREFIXES)}


def versions(*packages: str) -> dict[str, str]:
    """Versions of moesim, Python, the system and the packages that are installed."""
    found = {
        "moesim": moesim.__version__,
        "python": ".".join(str(part) for part in sys.version_info[:3]),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
