"""Which copies lie on which device, while pairs of them change places (for compiled searches)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moesim.compiled import compiled
from moesim.planners.compiled_random import below, uniform

__all__ = ["Shelves", "accepts", "exchange", "fill_shelves", "partner"]


class Shelves(NamedTuple):
    """One layer's copies on their devices.

    Attributes:
        device_of: [S] int64 device of every copy.
        slot: [G, S/G] int64 copies on every device.
        place: [S] int64 where on its device a copy lies.
        expert_of: [S] int64 logical expert of every copy.
    """

    device_of: np.ndarray
    slot: np.ndarray
    place: np.ndarray
    expert_of: np.ndarray


@compiled
def fill_shelves(device_of: np.ndarray, expert_of: np.ndarray, devices: int) -> Shelves:
    """Shelves of a placement; ``device_of`` is kept and changed by :func:`exchange`."""
    copies = device_of.shape[0]
    slot = np.empty((devices, copies // devices), np.int64)
    place = np.empty(copies, np.int64)
    filled = np.zeros(devices, np.int64)
    for copy in range(copies):
        device = device_of[copy]
        slot[device, filled[device]] = copy
        place[copy] = filled[device]
        filled[device] += 1
    return Shelves(device_of, slot, place, expert_of)


@compiled
def partner(shelves: Shelves, i: int, y: int, state: np.ndarray) -> int:
    """A random copy on device y that may change places with copy i, or −1.

    None may if y is i's own device, or if a device would hold an expert twice afterwards.
    """
    x = shelves.device_of[i]
    if x == y:
        return -1
    f = shelves.slot[y, below(state, shelves.slot.shape[1])]
    expert_of = shelves.expert_of
    for index in range(shelves.slot.shape[1]):
        held = shelves.slot[y, index]
        if held != f and expert_of[held] == expert_of[i]:
            return -1
        held = shelves.slot[x, index]
        if held != i and expert_of[held] == expert_of[f]:
            return -1
    return f


@compiled
def exchange(shelves: Shelves, i: int, f: int) -> None:
    """Copies i and f change places."""
    device_of, slot, place, _ = shelves
    x, y = device_of[i], device_of[f]
    slot[x, place[i]], slot[y, place[f]] = f, i
    place[i], place[f] = place[f], place[i]
    device_of[i], device_of[f] = y, x


@compiled
def accepts(change: float, temperature: float, state: np.ndarray) -> bool:
    """Whether simulated annealing takes a change of the cost (Metropolis et al. 1953)."""
    return change <= 0 or change < -np.log(uniform(state)) * temperature
