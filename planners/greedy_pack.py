"""Longest processing time first: which copies there are, and packing them onto devices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.planners.problem import PlacementProblem
from moesim.planners.replicate import replicate

__all__ = ["Copies", "copies_from_counts", "largest_finish", "make_copies", "pack"]


@dataclass(frozen=True)
class Copies:
    """The copies to place, in canonical order: heavy first, copies of one expert side by side.

    Attributes:
        expert: [L, S] int64 logical expert of every copy.
        load: [L, S] float64 tokens of every copy, descending.
        largest_count: Most copies of an expert.
    """

    expert: np.ndarray
    load: np.ndarray
    largest_count: int


def make_copies(problem: PlacementProblem, to_coldest: int = 0) -> Copies:
    """Replicate experts into the spare slots and sort what has to be placed.

    Args:
        problem: What to place.
        to_coldest: So many spare slots go to the coldest experts, the rest to the hottest.
    """
    by_load = np.argsort(-problem.loads, axis=1, kind="stable")
    loads = np.take_along_axis(problem.loads, by_load, 1)
    _, count = replicate(loads, problem.slots, largest_count=problem.devices, to_coldest=to_coldest)
    return copies_from_counts(problem.loads, by_load, count)


def copies_from_counts(loads: np.ndarray, by_load: np.ndarray, count: np.ndarray) -> Copies:
    """The copies of experts, sorted.

    Args:
        loads: [X, E] tokens of every expert.
        by_load: [X, E] experts, hottest first.
        count: [X, E] copies of the experts in that order, equally many in every row.
    """
    rows = len(count)
    slot_rank = np.repeat(np.tile(np.arange(count.shape[1]), rows), count.ravel())
    slot_rank = slot_rank.reshape(rows, -1)
    load = np.take_along_axis(np.take_along_axis(loads, by_load, 1) / count, slot_rank, 1)
    order = np.lexsort((slot_rank, -load), axis=1)
    rank = np.take_along_axis(slot_rank, order, 1)
    return Copies(
        np.take_along_axis(by_load, rank, 1),
        np.take_along_axis(load, order, 1),
        int(count.max()),
    )


def pack(copies: Copies, speeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """LPT on all layers at once.

    Args:
        copies: What to place.
        speeds: [G] float64, descending.

    Returns:
        expert: [L, G, S/G] int64 logical expert in every slot.
        load: [L, G, S/G] float64 tokens of every slot.
    """
    layers, slots = copies.load.shape
    devices = len(speeds)
    room = slots // devices
    held = np.full((layers, devices, room), -1, np.int64)
    used = np.zeros((layers, devices), np.int64)
    load = np.zeros((layers, devices))
    has_expert = np.zeros((layers, devices), bool)
    every = np.arange(layers)
    for copy in range(slots):
        if copy:
            # Copies of one expert are neighbours: forget where the previous expert is.
            has_expert[copies.expert[:, copy] != copies.expert[:, copy - 1]] = False
        finish = (load + copies.load[:, copy, None]) / speeds
        finish[has_expert | (used == room)] = np.inf
        device = finish.argmin(1)
        stuck = np.isinf(finish[every, device])
        for layer in np.flatnonzero(stuck):
            device[layer] = _make_room(layer, copy, held, used, load, copies, speeds)
        held[every, device, used[every, device]] = copy
        used[every, device] += 1
        load[every, device] += copies.load[:, copy]
        has_expert[every, device] = True
    flat = held.reshape(layers, slots)
    return (
        np.take_along_axis(copies.expert, flat, 1).reshape(held.shape),
        np.take_along_axis(copies.load, flat, 1).reshape(held.shape),
    )


def _make_room(
    layer: int,
    copy: int,
    held: np.ndarray,
    used: np.ndarray,
    load: np.ndarray,
    copies: Copies,
    speeds: np.ndarray,
) -> int:
    """Every device with a free slot holds the expert already: free a slot on one that does not.

    Such a device exists while the expert has no more copies than there are devices. It is full and
    the one with the free slot is not, so it holds an expert that the other lacks: that one moves.
    If an expert has more copies than devices, two of them must share one.

    Returns:
        The device that shall take the copy.
    """
    expert, loads = copies.expert[layer], copies.load[layer]
    room = held.shape[2]
    open_devices = np.flatnonzero(used[layer] < room)
    target = int(open_devices[((load[layer] + loads[copy]) / speeds)[open_devices].argmin()])
    on_target = set(expert[held[layer, target, : used[layer, target]]])
    best = (np.inf, -1, -1)
    for device in np.flatnonzero(used[layer] == room):
        on_device = expert[held[layer, device]]
        if expert[copy] in on_device:
            continue
        for place in range(room):
            if on_device[place] in on_target:
                continue
            moved = loads[held[layer, device, place]]
            finish = max(
                (load[layer, target] + moved) / speeds[target],
                (load[layer, device] - moved + loads[copy]) / speeds[device],
            )
            best = min(best, (finish, int(device), place))
    _, device, place = best
    if device < 0:
        return target
    moved_copy = held[layer, device, place]
    held[layer, device, place] = held[layer, device, room - 1]
    used[layer, device] -= 1
    load[layer, device] -= loads[moved_copy]
    held[layer, target, used[layer, target]] = moved_copy
    used[layer, target] += 1
    load[layer, target] += loads[moved_copy]
    return device


def largest_finish(load: np.ndarray, speeds: np.ndarray) -> np.ndarray:
    """[L] load over speed of the device that finishes last."""
    result: np.ndarray = (load.sum(2) / speeds).max(1)
    return result
