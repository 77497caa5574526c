"""Recurrences and their short convolutions by fitted kernels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from moesim.errors import InputError
from moesim.forward.machine import Machine
from moesim.forward.price import Price, prices_of
from moesim.forward.work import ScanWork
from moesim.operators.shipped import find_fit
from moesim.operators.streaming import StreamKernel, scan_work
from moesim.workload import Phase

__all__ = ["price_scans"]

PHASES: dict[Phase, str] = {"prefill": "context", "decode": "generation"}
"""What the tables call them."""
VERIFY = "verify"
"""Decoding with several new tokens per sequence; measured for some kernels."""


def price_scans(works: Sequence[ScanWork], machine: Machine) -> list[Price | None]:
    """Prices of the calls; None where no kernel of the kind was measured in that role."""
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for place, work in enumerate(works):
        groups[work.kind, work.role, _phases(work), work.heads].append(place)
    prices: list[Price | None] = [None] * len(works)
    for places in groups.values():
        one = works[places[0]]
        fit = _fit(machine, one.kind, one.role, _phases(one))
        if fit is None:
            continue
        batch = np.array([works[place].sequences for place in places])
        tokens = np.array([works[place].query_tokens for place in places])
        found = prices_of(fit.time(scan_work(one.role, batch, tokens, one.heads)), fit)
        for place, price in zip(places, found, strict=True):
            prices[place] = price
    return prices


def _phases(work: ScanWork) -> tuple[str, ...]:
    """The tables' names for the phase, the best first."""
    several = work.phase == "decode" and work.query_tokens > 1
    return (VERIFY, PHASES[work.phase]) if several else (PHASES[work.phase],)


@lru_cache(maxsize=256)
def _fit(machine: Machine, kind: str, role: str, phases: tuple[str, ...]) -> StreamKernel | None:
    for phase in phases:
        try:
            fit: StreamKernel = find_fit(
                kind, machine.device, engine=machine.engine, phase=phase, role=role
            )
        except InputError:
            continue
        if fit.role == role:  # of Mamba-2 only the convolution was measured
            return fit
    return None
