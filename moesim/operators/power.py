"""Watts of a device from how busy its arithmetic and its memory are.

    power = min(limit, idle + FLOP/s · joules per FLOP + bytes/s · joules per byte)

Fitted to measured kernels where they come with watts, and kept relative to the power limit and to
the device's own rates, so that a device without watts takes the shares of the measured one. FLOPs
and bytes are those of :mod:`moesim.forward.work`: of the mathematics, nothing padded, so a joule
per FLOP includes what kernels waste.

``hwprofiles/fitted/power.json`` is written by ``moesim calibrate fit --operator power``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Annotated, ClassVar

from pydantic import Field

from moesim.hardware import Device, profiles_folder
from moesim.schema import Document, Evidence

__all__ = ["DevicePower", "FittedPower", "PowerFit", "device_power", "shipped_power"]

NonNegative = Annotated[float, Field(ge=0)]


class PowerFit(Document):
    """Shares of the power limit on one system.

    Attributes:
        system: Device profile.
        engine: Whose kernels were measured.
        version: Of the engine.
        rows: Measured kernels.
        limit_w: Power limit in the measurements.
        idle_share: Of the limit, with a kernel that neither computes nor moves.
        compute_share: Further, at full peak rate.
        memory_share: Further, at full bandwidth.
        median_error: Of held-out model shapes.
        interval: Central 80 % of measured over predicted watts on those.
    """

    system: str
    engine: str
    version: str
    rows: int
    limit_w: Annotated[float, Field(gt=0)]
    idle_share: NonNegative
    compute_share: NonNegative
    memory_share: NonNegative
    median_error: NonNegative
    interval: tuple[float, float]


class FittedPower(Document):
    """All fits, with their provenance."""

    schema_id: ClassVar[str] = "moesim.fitted-power/1"

    source: str
    date: str
    command: str
    fits: tuple[PowerFit, ...]


@cache
def shipped_power() -> FittedPower:
    """The fits that come with moesim."""
    return FittedPower.load(profiles_folder() / "fitted" / "power.json")


@dataclass(frozen=True)
class DevicePower:
    """What a device draws.

    Attributes:
        idle_w: With nothing to compute or move.
        compute_w: Further, at full peak rate, whatever the number format.
        memory_w: Further, at full bandwidth.
        limit_w: At most; ∞ if unknown.
        interval: Central 80 % of measured over predicted watts, on the system of the shares.
        evidence: ``fitted``, or ``spec`` where another system's shares or the profile's energies
            were taken.
        source: In words.
    """

    idle_w: float
    compute_w: float
    memory_w: float
    limit_w: float
    interval: tuple[float, float]
    evidence: Evidence
    source: str

    def watts(self, compute_busy: float, memory_busy: float) -> float:
        """Mean power over a time in which these shares of peak and bandwidth were used."""
        drawn = self.idle_w + self.compute_w * compute_busy + self.memory_w * memory_busy
        return min(self.limit_w, drawn)


def device_power(device: Device, arithmetic: str = "bf16") -> DevicePower | None:
    """Power of a device: from its own measured watts, its profile's energies, or another's shares.

    Args:
        device: The profile.
        arithmetic: Number format whose peak the profile's joules per FLOP are read at.

    Returns:
        ``None`` where neither energies nor a power limit are known.
    """
    fits = shipped_power().fits
    own = next((fit for fit in fits if fit.system == device.name), None)
    if own is not None:
        return _of_shares(own, own.limit_w, Evidence.FITTED, f"watts measured on {own.system}")
    energy = device.energy
    if energy is not None and (energy.compute is not None or energy.memory is not None):
        compute = energy.compute.si if energy.compute is not None else 0.0
        memory = energy.memory.si if energy.memory is not None else 0.0
        return DevicePower(
            0.0,
            compute * device.peak_flop_per_s(arithmetic),
            memory * device.memory_bytes_per_s,
            device.tdp_w or float("inf"),
            (1.0, 1.0),
            Evidence.SPEC,
            "energies per FLOP and byte of the profile, nothing else that draws power",
        )
    if device.tdp_w is None or not fits:
        return None
    like = max(fits, key=lambda fit: fit.rows)
    source = f"design power, divided as measured on {like.system}"
    return _of_shares(like, device.tdp_w, Evidence.SPEC, source)


def _of_shares(fit: PowerFit, limit_w: float, evidence: Evidence, source: str) -> DevicePower:
    return DevicePower(
        fit.idle_share * limit_w,
        fit.compute_share * limit_w,
        fit.memory_share * limit_w,
        limit_w,
        fit.interval,
        evidence,
        source,
    )
