"""Longest processing time first (LPT), and LPT improved by swapping pairs.

LPT takes the copies from heavy to light; each goes to the device that would be done with it
first, among those with a free slot that do not hold the expert yet: R. L. Graham, "Bounds on
multiprocessing timing anomalies", 1969; with equal numbers of jobs per machine, and finish time
instead of load where the devices differ in speed.

Swapping looks at the device that finishes last and exchanges one of its experts for one of
another device, the pair after which the later of the two is done soonest, as long as that helps
or until the lower bound of load_bound.py is met.

Both work on experts sorted by load and devices sorted by speed, so relabelling experts or devices
relabels the answer and changes none of its loads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from moesim.planners.eplb import eplb_global, eplb_hierarchical, keeps_groups
from moesim.planners.load_bound import finish_load_bound
from moesim.planners.problem import PlacementProblem
from moesim.planners.replicate import replicate

__all__ = ["Copies", "lpt", "lpt_swap", "make_copies", "pack"]

CLOSE = 1e-3
"""A layer within 0.1 % of the bound is even enough to stop trying."""

TRIES = 16
"""At most so many other uses of the spare slots are tried."""


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


def lpt(problem: PlacementProblem) -> np.ndarray:
    """Longest processing time first.

    Returns:
        [L, S] int32 physical_to_logical; copies of an expert on distinct devices where S ≤ E·G.
    """
    speeds, devices = _by_speed(problem)
    expert, _ = pack(make_copies(problem), speeds)
    return _to_table(expert, devices)


def lpt_swap(problem: PlacementProblem) -> np.ndarray:
    """LPT, then swaps of pairs; the best of several ways to use the spare slots.

    In layers that miss the bound, fewer and fewer spare slots go to the hottest experts and the
    rest to the coldest. Where EPLB is better still, its answer is taken and swapped on: that
    happens where spare slots abound, because two copies of an expert on one device act like a
    slot left empty. Only in those layers do copies of an expert share a device, and in none if the
    problem asks for distinct ones.

    Returns:
        [L, S] int32 physical_to_logical, in no layer less even than either policy of EPLB, unless
        copies must be distinct.
    """
    from moesim.planners.swap import swap_pairs  # numba: half a second

    bound = finish_load_bound(problem)
    speeds, devices = _by_speed(problem)
    expert, load = pack(make_copies(problem), speeds)
    swap_pairs(expert, load, speeds, bound)
    finish = _largest_finish(load, speeds)

    def improve(layers: np.ndarray, rival: np.ndarray, rival_load: np.ndarray) -> None:
        swap_pairs(rival, rival_load, speeds, bound[layers])
        rival_finish = _largest_finish(rival_load, speeds)
        better = rival_finish < finish[layers]
        expert[layers[better]], finish[layers[better]] = rival[better], rival_finish[better]

    for to_coldest in _spare_slots_to_try(problem):
        layers = np.flatnonzero(finish > bound * (1 + CLOSE))
        if not len(layers):
            break
        open_layers = replace(problem, loads=problem.loads[layers], transitions=None)
        copies = make_copies(open_layers, to_coldest)
        if copies.largest_count <= problem.devices:
            improve(layers, *pack(copies, speeds))
    for policy in () if problem.distinct_copies else (eplb_global, eplb_hierarchical):
        if policy is eplb_hierarchical and not keeps_groups(problem):
            continue
        rival, rival_load = _shelves(policy(problem), problem.loads, problem.devices)
        layers = np.flatnonzero(_largest_finish(rival_load, speeds) < finish * (1 - 1e-9))
        if len(layers):
            improve(layers, rival[layers], rival_load[layers])
    return _to_table(expert, devices)


def _spare_slots_to_try(problem: PlacementProblem) -> range:
    """How many spare slots to give to the coldest experts."""
    spare = problem.slots - problem.experts
    return range(max(1, spare // TRIES), min(spare, problem.experts) + 1, max(1, spare // TRIES))


def make_copies(problem: PlacementProblem, to_coldest: int = 0) -> Copies:
    """Replicate experts into the spare slots and sort what has to be placed.

    Args:
        problem: What to place.
        to_coldest: So many spare slots go to the coldest experts, the rest to the hottest.
    """
    by_load = np.argsort(-problem.loads, axis=1, kind="stable")
    loads = np.take_along_axis(problem.loads, by_load, 1)
    slot_rank, count = replicate(
        loads, problem.slots, largest_count=problem.devices, to_coldest=to_coldest
    )
    load = np.take_along_axis(loads / count, slot_rank, 1)
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


def _by_speed(problem: PlacementProblem) -> tuple[np.ndarray, np.ndarray]:
    devices = np.argsort(-problem.speed_factors, kind="stable")
    return problem.speed_factors[devices], devices


def _shelves(table: np.ndarray, loads: np.ndarray, devices: int) -> tuple[np.ndarray, np.ndarray]:
    """What every device holds, as [L, S/G] experts and tokens, heaviest device first.

    EPLB takes all devices for equally fast; with its heaviest device in the place of the fastest
    one, and so on, no answer of its gets worse.
    """
    layers = len(table)
    count = np.zeros(loads.shape)
    np.add.at(count, (np.arange(layers)[:, None], table), 1)
    load = np.take_along_axis(loads / count, table, 1).reshape(layers, devices, -1)
    heavy_first = np.argsort(-load.sum(2), axis=1, kind="stable")[..., None]
    expert = np.take_along_axis(table.reshape(load.shape).astype(np.int64), heavy_first, 1)
    return expert, np.take_along_axis(load, heavy_first, 1)


def _largest_finish(load: np.ndarray, speeds: np.ndarray) -> np.ndarray:
    """[L] load over speed of the device that finishes last."""
    result: np.ndarray = (load.sum(2) / speeds).max(1)
    return result


def _to_table(expert: np.ndarray, devices: np.ndarray) -> np.ndarray:
    """[L, S] int32, experts of a device in ascending order."""
    table = np.empty(expert.shape, np.int32)
    table[:, devices] = np.sort(expert, axis=2)
    return table.reshape(len(table), -1)
