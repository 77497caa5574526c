"""Rooflines of single calls: the time that no kernel can beat on the device's data sheet.

FLOPs over peak or bytes over bandwidth, whichever is longer (Williams et al. 2009); for
communication bytes over the link, and its latency. Where no kernel was fitted it is the
prediction, with the interval of :mod:`moesim.operators.roofline_errors`, unless the profile says
what kernels reach of the data sheet.
"""

from __future__ import annotations

import numpy as np

from moesim.forward.machine import Links, Machine, Rates
from moesim.forward.price import Price
from moesim.forward.work import (
    CollectiveWork,
    ExpertWork,
    Op,
    TransferWork,
    Work,
)
from moesim.hardware import Device
from moesim.operators.roofline_errors import REACHED_RATES, reached_interval, roofline_interval
from moesim.schema import Evidence

__all__ = ["compute_s", "memory_s", "roofline_price", "roofline_s"]


def compute_s(work: Work, machine: Rates) -> float:
    """Seconds of the arithmetic at peak rate."""
    if isinstance(work, CollectiveWork | TransferWork):
        return 0.0
    return work.flops / machine.peaks.get(work.arithmetic, machine.peaks.get("bf16", np.inf))


def memory_s(work: Work, machine: Rates) -> float:
    """Seconds of the bytes: at the memory's rate, or at the link's for communication."""
    if isinstance(work, CollectiveWork):
        return _collective_s(work, machine.links)
    if isinstance(work, TransferWork):
        return _transfer_s(work, machine.links)
    return work.bytes / machine.memory_bytes_per_s


def roofline_s(work: Work, machine: Rates) -> float:
    """Seconds that no implementation can beat on the data sheet's figures."""
    if isinstance(work, ExpertWork):
        return _experts_s(work, machine)
    return max(compute_s(work, machine), memory_s(work, machine))


def roofline_price(op: Op, machine: Machine) -> Price:
    """The roofline as a prediction, or what kernels are said to reach of it."""
    seconds = roofline_s(op.work, machine)
    of_links = op.operator in ("collective", "dispatch")
    evidence = machine.links.evidence if of_links else machine.evidence
    if machine.reached is None or machine.cost == "roofline":
        low, high = roofline_interval(op.operator, seconds)
        return Price(seconds, seconds * low, seconds * high, evidence, "roofline")
    likely = roofline_s(op.work, machine.reached) + _call_s(op, machine.device)
    low, high = reached_interval(op.operator, likely, seconds)
    return Price(likely, likely * low, likely * high, Evidence.ASSUMED, REACHED_RATES)


def _call_s(op: Op, device: Device) -> float:
    """Fixed time of a call."""
    reached = device.reached
    if reached is None:
        return 0.0
    kinds = {
        "collective": reached.collective_call,
        "dispatch": reached.collective_call,
        "small": reached.vector_call,
    }
    found = kinds.get(op.operator, reached.matrix_call)
    return 0.0 if found is None else found.si


def _experts_s(work: ExpertWork, machine: Rates) -> float:
    """The slowest rank, mean over draws."""
    copies = work.slot_tokens.sum(axis=-1)
    active = np.count_nonzero(work.slot_tokens, axis=-1)
    per_copy = (work.hidden + 2 * work.width) * work.activation_bytes + 2 * work.hidden
    weights = work.matrices * work.hidden * work.width
    moved = active * (weights * work.weight_bytes) + copies * per_copy
    seconds = np.maximum(
        moved / machine.memory_bytes_per_s,
        copies * (2.0 * weights / machine.peaks[work.arithmetic]),
    )
    return float(seconds.max(axis=-1).mean())


def _collective_s(work: CollectiveWork, links: Links) -> float:
    """Within one domain bytes over its link; over several, first within each and then between."""
    ranks, domains = work.ranks, links.domains(work.ranks)
    rounds = 2.0 if work.collective == "all_reduce" else 1.0
    inside = min(ranks, links.domain_devices)
    seconds = 0.0
    if inside > 1:
        seconds += rounds * (inside - 1) / inside * work.size_bytes / links.up_bytes_per_s
        seconds += links.up_latency_s
    if domains > 1:
        share = work.size_bytes / inside if work.collective != "alltoall" else work.size_bytes
        seconds += rounds * (domains - 1) / domains * share / links.out_bytes_per_s
        seconds += links.out_latency_s
    return seconds


def _transfer_s(work: TransferWork, links: Links) -> float:
    """The busier of the two links; copies go to every rank alike, times the skew."""
    ranks, domains = work.ranks, links.domains(work.ranks)
    if ranks == 1:
        return 0.0
    copies = work.tokens * work.top_k * work.vector_bytes * work.skew
    inside = min(ranks, links.domain_devices)
    near = copies * (inside - 1) / ranks
    far = copies * (1 - inside / ranks)
    seconds, latency = 0.0, 0.0
    if inside > 1:
        seconds, latency = near / links.up_bytes_per_s, links.up_latency_s
    if domains > 1:
        seconds = max(seconds, far / links.out_bytes_per_s)
        latency = links.out_latency_s
    return seconds + latency
