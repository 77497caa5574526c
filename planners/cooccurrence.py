"""TensorRT-LLM's heuristic: fill most of a device with experts used together, the rest by load.

The placement of ``examples/wide_ep/ep_load_balancer/generate_eplb_config_cooccurrence.py`` (NVIDIA
TensorRT-LLM, Apache-2.0), with its default trade-off between load and co-occurrence of 0.8:

1. The spare slots go to the experts whose copies are loaded most.
2. Device after device starts with the heaviest copy that is left and takes, one by one, the expert
   used together most often with those it holds, until its next one would exceed 0.8 of its slots
   or 0.8 of the mean load.
3. The copies that are left go, heavy to light, to the device with the least load and a free slot.

It knows neither nodes nor speeds, and in step 3 copies of an expert may share a device.
"""

from __future__ import annotations

import heapq

import numpy as np

from moesim.planners.affinity import copies_by_load, pair_counts
from moesim.planners.problem import PlacementProblem

__all__ = ["cooccurrence"]

ALPHA = 0.8
"""Share of slots and of the mean load that co-occurrence decides on; the script's default."""

_LAST_CHOICE = -1e9
"""Of an expert with itself, as in the script: a second copy comes after everything else."""


def cooccurrence(problem: PlacementProblem) -> np.ndarray:
    """Place every layer.

    Returns:
        [L, S] int32 physical_to_logical.
    """
    expert, _ = copies_by_load(problem)
    table = np.empty(expert.shape, np.int32)
    for layer in range(problem.layers):
        count = np.bincount(expert[layer], minlength=problem.experts)
        pairs = pair_counts(problem, layer)
        np.fill_diagonal(pairs, _LAST_CHOICE)
        shelves = place_layer(problem.loads[layer], count, pairs, problem.devices)
        table[layer] = np.concatenate(shelves)
    return table


def place_layer(
    loads: np.ndarray, count: np.ndarray, pairs: np.ndarray, devices: int, alpha: float = ALPHA
) -> list[list[int]]:
    """Steps 2 and 3 for one layer.

    Args:
        loads: [E] tokens.
        count: [E] copies, Σ a multiple of the devices.
        pairs: [E, E] tokens that use both experts; the diagonal below everything else.
        devices: G.
        alpha: See ``ALPHA``.

    Returns:
        The experts of every device.
    """
    room, mean = int(count.sum()) // devices, float(loads.sum()) / devices
    per_copy = loads / count
    heavy_first = np.argsort(-per_copy, kind="stable")
    left = count.copy()
    shelves: list[list[int]] = [[] for _ in range(devices)]
    load = [0.0] * devices
    for device in range(devices):
        order = heavy_first
        while left.any():
            expert = int(order[np.argmax(left[order] > 0)])
            full = len(shelves[device]) + 1 > room * alpha
            if full or load[device] + per_copy[expert] > mean * alpha:
                break
            _put(shelves[device], expert, left)
            load[device] += per_copy[expert]
            order = np.argsort(-pairs[shelves[device]].sum(axis=0), kind="stable")
    queue = [(load[device], device) for device in range(devices) if len(shelves[device]) < room]
    heapq.heapify(queue)
    for expert in heavy_first:
        while left[expert]:
            lightest, device = heapq.heappop(queue)
            _put(shelves[device], int(expert), left)
            if len(shelves[device]) < room:
                heapq.heappush(queue, (lightest + float(per_copy[expert]), device))
    return shelves


def _put(shelf: list[int], expert: int, left: np.ndarray) -> None:
    shelf.append(expert)
    left[expert] -= 1
