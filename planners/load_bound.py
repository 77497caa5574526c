"""How evenly can experts be spread at best? A lower bound on the largest device load.

For every layer, whatever the planner: no placement with S / G slots per device, at least one slot
per expert and tokens split evenly over the copies of an expert leaves the most loaded device with
less than this. The largest of these counts:

* **Mean.** Some device carries at least the mean. With unequal speeds also: the k slowest devices
  have k·S/G slots and so at least the load of as many lightest experts.
* **Hottest experts**, without spare slots. The k hottest experts sit on some m devices, whose
  other m·S/G − k slots hold at least the lightest experts. One of these devices carries at least
  the mean of that, for the best m. (k = 1: the hottest expert with the lightest S/G − 1.)
* **Hottest copy**, with spare slots. The device that holds the hottest copy fills its other
  S/G − 1 slots with at least the lightest copies there are.

Spare slots make the last argument delicate, because they can serve either to split hot experts
or to make light ones lighter. Let ``h_j`` be the hottest copy after the j best spare slots went to
the hottest experts (replicate.py), and let the other R − j go to anything: each of them spares
the device at most one of the other slots, as n copies of an expert must sit in n slots of the
device before all of its load is there. So the device carries at least ``h_j`` plus the
S/G − 1 − (R − j) lightest copies of that state, and the bound is the least of that over j = 0 … R.
"""

from __future__ import annotations

import numpy as np

from moesim.planners.problem import PlacementProblem

__all__ = ["finish_load_bound"]


def finish_load_bound(problem: PlacementProblem, *, free_sizes: bool = False) -> np.ndarray:
    """Lower bound per layer on the largest load over speed of a device.

    Args:
        problem: Loads, slots and speeds.
        free_sizes: Whether devices may hold unequally many experts in a layer (at least one); no
            expert has a copy then, whatever the slots.

    Returns:
        [L] float64 token assignments of a device of nominal speed.
    """
    speeds = np.sort(problem.speed_factors)
    room = 1 if free_sizes else problem.slots_per_device
    spare = problem.slots - problem.experts
    light_first = np.sort(problem.loads, axis=1)
    mean = light_first.sum(1) / speeds.sum()
    slowest = _slowest_devices(light_first, room, spare, speeds)
    if spare and not free_sizes:
        hottest = _hottest_copy(light_first, room, spare) / speeds[-1]
    else:
        hottest = _hottest_experts(light_first, None if free_sizes else room, speeds)
    result: np.ndarray = np.maximum(np.maximum(mean, slowest), hottest)
    return result


def _slowest_devices(
    light_first: np.ndarray, room: int, spare: int, speeds: np.ndarray
) -> np.ndarray:
    """[L] the k slowest devices hold k·room slots, filled with the lightest at best."""
    upto = np.concatenate((np.zeros((len(light_first), 1)), np.cumsum(light_first, 1)), 1)
    slots = np.arange(1, len(speeds) + 1) * room
    least = upto[:, np.clip(slots - spare, 0, light_first.shape[1])]
    result: np.ndarray = (least / np.cumsum(speeds)).max(1)
    return result


def _hottest_experts(light_first: np.ndarray, room: int | None, speeds: np.ndarray) -> np.ndarray:
    """[L] the k hottest experts on m devices with the lightest beside them; free sizes: no room."""
    layers, experts = light_first.shape
    devices = len(speeds)
    zero = np.zeros((layers, 1))
    light = np.concatenate((zero, np.cumsum(light_first, 1)), 1)
    hot = np.concatenate((zero, np.cumsum(light_first[:, ::-1], 1)), 1)
    fastest = np.cumsum(speeds[::-1])
    m = np.arange(1, devices + 1)
    best = np.zeros(layers)
    for k in range(1, min(experts, 2 * devices) + 1):
        beside = np.zeros(devices, np.int64) if room is None else m * room - k
        fits = (beside >= 0) & (m <= k)
        carried = hot[:, [k]] + light[:, np.clip(beside[fits], 0, experts - k)]
        best = np.maximum(best, (carried / fastest[fits]).min(1))
    return best


def _hottest_copy(light_first: np.ndarray, room: int, spare: int) -> np.ndarray:
    """[L] the least, over j, of the hottest copy and the lightest that must go with it."""
    layers, experts = light_first.shape
    every = np.arange(layers)
    count = np.ones((layers, experts), np.int64)
    per_copy = light_first.copy()
    result = np.full(layers, np.inf)
    for given in range(spare + 1):
        hottest = per_copy.argmax(1)
        load = per_copy[every, hottest]
        beside = room - 1 - (spare - given)
        if beside > 0:
            load = load + _lightest(per_copy, count, beside)
        result = np.minimum(result, load)
        count[every, hottest] += 1
        per_copy[every, hottest] = light_first[every, hottest] / count[every, hottest]
    return result


def _lightest(per_copy: np.ndarray, count: np.ndarray, slots: int) -> np.ndarray:
    """[L] sum of the lightest copies, of ``count`` copies each."""
    order = np.argsort(per_copy, axis=1)
    copies = np.take_along_axis(count, order, 1)
    before = np.cumsum(copies, 1) - copies
    taken = np.clip(slots - before, 0, copies)
    result: np.ndarray = (np.take_along_axis(per_copy, order, 1) * taken).sum(1)
    return result
