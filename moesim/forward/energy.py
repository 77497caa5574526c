"""Joules of a step: watts of every call from how busy it keeps arithmetic and memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, hypot, log

from moesim.forward.machine import Machine
from moesim.forward.pricing import PricedOp
from moesim.forward.roofline import compute_s, memory_s
from moesim.forward.work import CollectiveWork, TransferWork
from moesim.operators.power import DevicePower
from moesim.schema import Evidence

__all__ = ["StepEnergy", "step_energy"]


@dataclass(frozen=True)
class StepEnergy:
    """Energy of the devices; hosts, switches and cooling are not among them.

    Attributes:
        device_w: Mean power of one device.
        j_per_token: Of all devices, per new token.
        lo_j_per_token: Lower end of the 80 % interval.
        hi_j_per_token: Upper end.
        evidence: Of the watts.
        source: Where the watts come from, in words.
    """

    device_w: float
    j_per_token: float
    lo_j_per_token: float
    hi_j_per_token: float
    evidence: Evidence
    source: str


def step_energy(
    ops: Sequence[PricedOp],
    machine: Machine,
    devices: int,
    tokens: float,
    step_s: tuple[float, float, float],
) -> StepEnergy | None:
    """Energy of a step.

    Devices wait for the busiest one at its power; with pipeline stages every device works all the
    time on one micro-batch or another.

    Args:
        ops: Calls of the busiest device.
        machine: Its device and links.
        devices: All of them.
        tokens: That the step gains.
        step_s: Seconds with the ends of its interval.

    Returns:
        ``None`` where nothing is known of the device's power.
    """
    power = machine.power
    if power is None:
        return None
    total_s = sum(priced.time_s for priced in ops)
    drawn_j = sum(priced.time_s * _watts(priced, machine, power) for priced in ops)
    mean_w = drawn_j / total_s
    per_token = mean_w * step_s[0] * devices / tokens
    low, high = (_both(power.interval[end], step_s[end + 1] / step_s[0], end) for end in (0, 1))
    return StepEnergy(
        mean_w, per_token, per_token * low, per_token * high, power.evidence, power.source
    )


def _watts(priced: PricedOp, machine: Machine, power: DevicePower) -> float:
    work, time_s = priced.op.work, priced.price.time_s
    if isinstance(work, CollectiveWork | TransferWork):
        # What the links themselves take was not measured apart.
        return power.watts(0.0, min(1.0, work.bytes / machine.memory_bytes_per_s / time_s))
    return power.watts(
        min(1.0, compute_s(work, machine) / time_s), min(1.0, memory_s(work, machine) / time_s)
    )


def _both(of_power: float, of_time: float, end: int) -> float:
    """Two independent relative errors at one end, as one."""
    return exp((-1, 1)[end] * hypot(log(of_power), log(of_time)))
