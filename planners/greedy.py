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

from dataclasses import replace

import numpy as np

from moesim.planners.eplb import eplb_global, eplb_hierarchical, keeps_groups
from moesim.planners.greedy_pack import Copies, largest_finish, make_copies, pack
from moesim.planners.load_bound import finish_load_bound
from moesim.planners.problem import PlacementProblem
from moesim.planners.recount import recount

__all__ = ["Copies", "lpt", "lpt_swap", "make_copies", "pack"]

CLOSE = 1e-3
"""A layer within 0.1 % of the bound is even enough to stop trying."""

TRIES = 16
"""At most so many other uses of the spare slots are tried."""


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
    rest to the coldest; then other numbers of copies are tried for the hottest (recount.py). Where
    EPLB is better still, its answer is taken and swapped on: that
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
    finish = largest_finish(load, speeds)

    def improve(layers: np.ndarray, rival: np.ndarray, rival_load: np.ndarray) -> None:
        swap_pairs(rival, rival_load, speeds, bound[layers])
        rival_finish = largest_finish(rival_load, speeds)
        better = rival_finish < finish[layers]
        expert[layers[better]], finish[layers[better]] = rival[better], rival_finish[better]

    for to_coldest in _spare_slots_to_try(problem):
        layers = np.flatnonzero(finish > bound * (1 + CLOSE))
        if not len(layers):
            break
        open_layers = replace(
            problem, loads=problem.loads[layers], transitions=None, coactivation=None
        )
        copies = make_copies(open_layers, to_coldest)
        if copies.largest_count <= problem.devices:
            improve(layers, *pack(copies, speeds))
    recount(problem.loads, speeds, bound, bound * (1 + CLOSE), expert, finish)
    for policy in () if problem.distinct_copies else (eplb_global, eplb_hierarchical):
        if policy is eplb_hierarchical and not keeps_groups(problem):
            continue
        rival, rival_load = _shelves(policy(problem), problem.loads, problem.devices)
        layers = np.flatnonzero(largest_finish(rival_load, speeds) < finish * (1 - 1e-9))
        if len(layers):
            improve(layers, rival[layers], rival_load[layers])
    return _to_table(expert, devices)


def _spare_slots_to_try(problem: PlacementProblem) -> range:
    """How many spare slots to give to the coldest experts."""
    spare = problem.slots - problem.experts
    return range(max(1, spare // TRIES), min(spare, problem.experts) + 1, max(1, spare // TRIES))


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


def _to_table(expert: np.ndarray, devices: np.ndarray) -> np.ndarray:
    """[L, S] int32, experts of a device in ascending order."""
    table = np.empty(expert.shape, np.int32)
    table[:, devices] = np.sort(expert, axis=2)
    return table.reshape(len(table), -1)
