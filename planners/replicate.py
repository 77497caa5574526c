"""Redundant copies: which experts get the spare slots.

One copy at a time goes to the expert whose copies are loaded most, load / copies. That greedy
choice minimises the load of the hottest copy (each step lowers the only entry that is at the
maximum, as in the apportionment of seats), and it is what EPLB does:
https://github.com/deepseek-ai/EPLB (``replicate_experts``).

It is not always best for the devices: many equally hot copies, each more than half a device's fair
share, are hard to pack. A caller can have some spare slots filled with the coldest experts.
"""

from __future__ import annotations

import numpy as np

__all__ = ["replicate"]


def replicate(
    loads: np.ndarray,
    slots: int,
    *,
    largest_count: int | None = None,
    to_coldest: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Give every expert one slot and each spare slot to the expert with the hottest copies.

    Ties go to the lowest expert id. The arithmetic is that of the dtype of ``loads``.

    Args:
        loads: [X, E] float32 or float64, one problem per row.
        slots: S ≥ E.
        largest_count: Copies that an expert may have at most (the number of devices: two copies
            on one device help nobody). Ignored if the slots cannot be filled otherwise.
        to_coldest: So many spare slots, ≤ E, get a second copy of the least loaded experts instead:
            they hardly add to the load of the device that they fill up.

    Returns:
        slot_expert: [X, S] int64; the first E slots are the experts in order, then the copies in
        the order in which they were given.
        count: [X, E] int64 copies of each expert, ≥ 1.
    """
    rows, experts = loads.shape
    if largest_count is not None and experts * largest_count < slots:
        largest_count = None
    slot_expert = np.empty((rows, slots), np.int64)
    warm = slots - to_coldest
    slot_expert[:, :experts] = np.arange(experts)
    count = np.ones((rows, experts), np.int64)
    per_copy = loads.copy()
    if largest_count == 1:
        per_copy[:] = -1
    every = np.arange(rows)
    for slot in range(experts, warm):
        hottest = per_copy.argmax(1)
        slot_expert[:, slot] = hottest
        count[every, hottest] += 1
        copies = count[every, hottest]
        per_copy[every, hottest] = loads[every, hottest] / copies.astype(loads.dtype)
        if largest_count is not None:
            full = copies >= largest_count
            per_copy[every[full], hottest[full]] = -1
    coldest = np.argsort(loads, axis=1, kind="stable")[:, :to_coldest]
    slot_expert[:, warm:] = coldest
    count[every[:, None], coldest] += 1
    return slot_expert, count
