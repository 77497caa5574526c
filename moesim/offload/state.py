"""What the loops of a replay share: rules, what is where, and what is written down."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moesim.compiled import compiled_part

__all__ = [
    "ACTIVE",
    "COPIED_ON_DEMAND",
    "COUNTED",
    "DISK_FREE",
    "LATE",
    "LINK_FREE",
    "NOW",
    "NO_SLOT",
    "NVME",
    "PREFETCHED",
    "PREFETCHES",
    "READ",
    "RESIDENT",
    "RESOURCES",
    "RUN_ON_CPU",
    "Memory",
    "Record",
    "Rules",
    "take",
]

RESOURCES = ("GPU", "CPU", "PCIe", "NVMe")
NVME = 3

COUNTED = ("active", "resident", "prefetched", "late", "copied", "on_cpu", "prefetches", "read")
"""What is counted per step: active experts; of them those in their slot by an earlier event, by a
prefetch that has landed, by one still under way; copied on demand; computed on the CPU although
not in a slot. Beside these, prefetches begun and experts read from the disk."""
ACTIVE, RESIDENT, PREFETCHED, LATE, COPIED_ON_DEMAND, RUN_ON_CPU, PREFETCHES, READ = range(8)

NO_SLOT = -1


class Rules(NamedTuple):
    """Of the plan and its timing, what the loops read."""

    schedule: np.ndarray
    admit: bool
    fill: bool
    lookahead: int
    impact: bool
    scores: np.ndarray
    predicted: np.ndarray
    narrow: np.ndarray
    copy_s: float
    copy_narrow_s: float
    read_s: float
    other_s: np.ndarray


class Memory(NamedTuple):
    """Where experts are, by layer and expert, and when link and disk are free."""

    resident: np.ndarray
    landed: np.ndarray
    """When the weights of what is in a slot are there."""
    fetched: np.ndarray
    """Whether a prefetch brought them and nothing has used them yet."""
    host: np.ndarray
    slots: np.ndarray
    host_slots: np.ndarray
    clocks: np.ndarray
    """[3] now, and when the link and the disk are free."""


class Record(NamedTuple):
    """Arrays of a replay."""

    step_s: np.ndarray
    busy_s: np.ndarray
    counts: np.ndarray
    place: np.ndarray


NOW, LINK_FREE, DISK_FREE = 0, 1, 2


@compiled_part
def take(held: np.ndarray, slots: int, score: np.ndarray, expert: int) -> None:
    """Put an expert into a slot; the one of least score makes room, the first of equals."""
    if slots == 0:
        return
    if held.sum() >= slots:
        victim = -1
        for other in range(held.size):
            if held[other] and (victim < 0 or score[other] < score[victim]):
                victim = other
        held[victim] = False
    held[expert] = True
