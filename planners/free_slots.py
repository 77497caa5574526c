"""Devices may hold unequally many experts in a layer, as long as their memory holds all layers.

MoETuner (arXiv:2502.06643 §4) bounds a device's experts over all layers together, E·L/G each, and
not layer by layer. With few experts per device that helps: a device with a hot expert in one layer
takes fewer beside it there, and more in another layer.

1. Every layer by itself: LPT without a limit on experts per device, then moves and swaps, kicked
   on from local optima a few times.
2. Clusters of equally fast devices are dealt so that memory fills evenly, layer after layer.
3. While a device holds more than its memory: the move of one expert, or the exchange of two
   devices' clusters of a layer, that delays the layers least.
4. Moves that memory allows, and swaps.

Where the answer of equal slots (greedy.py) is better in sum over the layers, that is returned.

Axes: L MoE layers, S copies per layer, G devices.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moesim.errors import InfeasibleError
from moesim.planners.compiled_random import random_state
from moesim.planners.free_slots_search import (
    fill_layer,
    keep_to_memory,
    polish_layer,
    shake_layer,
)
from moesim.planners.greedy import CLOSE, lpt_swap, make_copies
from moesim.planners.problem import PlacementProblem, device_finish_load

__all__ = ["lpt_swap_free", "memory_slots"]

KICKS = 60
"""Disturbances tried in a layer that is not within 0.1 % of its mean or its hottest copy."""


def lpt_swap_free(problem: PlacementProblem) -> np.ndarray:
    """LPT, moves and swaps with free numbers of experts per device and layer.

    Returns:
        [L, S'] int32 physical_to_logical, padded with −1 where numbers differ. No device holds more
        than its memory over all layers, nor two copies of an expert while slots allow that
        (S ≤ E · G).

    Raises:
        InfeasibleError: If no placement is found that keeps to the memory.
    """
    budget = memory_slots(problem)
    equal_fits = bool((budget >= problem.layers * problem.slots_per_device).all())
    if problem.slots > problem.experts * problem.devices:
        return _fitting(lpt_swap(problem) if equal_fits else None)
    apart = replace(problem, distinct_copies=True)
    copies = make_copies(apart)
    device_of = np.empty(copies.load.shape, np.int64)
    speeds = problem.speed_factors
    no_limit = np.full(problem.devices, problem.slots * problem.layers)
    mean = problem.loads.sum(1) / speeds.sum()
    enough = np.maximum(mean, copies.load[:, 0] / speeds.max()) * (1 + CLOSE)
    state = random_state(problem.seed)
    for layer in range(problem.layers):
        one = (copies.load[layer], copies.expert[layer], speeds, device_of[layer])
        fill_layer(*one)
        polish_layer(*one, no_limit)
        shake_layer(*one, no_limit.copy(), enough[layer], KICKS, state)
    _deal_clusters(device_of, budget, speeds)
    free = None
    if keep_to_memory(copies.load, copies.expert, speeds, device_of, budget):
        left = budget - np.bincount(device_of.ravel(), minlength=problem.devices)
        for layer in range(problem.layers):
            one = (copies.load[layer], copies.expert[layer], speeds, device_of[layer])
            polish_layer(*one, left)
            shake_layer(*one, left, enough[layer], KICKS, state)
        free = _table(copies.expert, device_of, problem.devices)
    if free is None or not equal_fits:
        return _fitting(lpt_swap(apart) if equal_fits else free)
    equal = lpt_swap(apart)
    free_sum, equal_sum = (
        device_finish_load(table, problem).max(1).sum() for table in (free, equal)
    )
    return free if free_sum < equal_sum * (1 - 1e-9) else equal


def _fitting(table: np.ndarray | None) -> np.ndarray:
    if table is None:
        raise InfeasibleError(
            "no placement was found that keeps every device to its memory\n"
            "fix: pass fewer --redundant, or use more devices"
        )
    return table


def memory_slots(problem: PlacementProblem) -> np.ndarray:
    """[G] int64 expert slots of every device over all layers: the memory of S · L, as it is shared.

    Shares are rounded down, and what is left goes to the largest remainders.

    Raises:
        InfeasibleError: If some device cannot hold one expert per layer.
    """
    factors = problem.memory_factors
    if factors is None:
        factors = np.ones(problem.devices)
    exact = problem.slots * problem.layers * factors / factors.sum()
    slots = np.floor(exact + 1e-9).astype(np.int64)
    rest = problem.slots * problem.layers - int(slots.sum())
    slots[np.argsort(slots - exact, kind="stable")[:rest]] += 1
    if (slots < problem.layers).any():
        device = int(slots.argmin())
        raise InfeasibleError(
            f"device {device} has memory for {slots[device]} experts, fewer than the "
            f"{problem.layers} MoE layers\nfix: leave that device out, or pass more --redundant"
        )
    return slots


def _deal_clusters(device_of: np.ndarray, budget: np.ndarray, speeds: np.ndarray) -> None:
    """Rename equally fast devices, layer by layer: large clusters where most memory is left."""
    layers, devices = len(device_of), len(speeds)
    held = np.zeros(devices)
    for layer in range(layers):
        size = np.bincount(device_of[layer], minlength=devices)
        name = np.arange(devices)
        for speed in np.unique(speeds):
            alike = np.flatnonzero(speeds == speed)
            fair = budget[alike] * ((layer + 1) / layers)
            emptiest = alike[np.argsort(held[alike] - fair, kind="stable")]
            name[alike[np.argsort(-size[alike], kind="stable")]] = emptiest
        device_of[layer] = name[device_of[layer]]
        held += np.bincount(device_of[layer], minlength=devices)


def _table(expert: np.ndarray, device_of: np.ndarray, devices: int) -> np.ndarray:
    """[L, G · widest] int32, experts of a device in ascending order, then −1."""
    layers = len(expert)
    widest = max(int(np.bincount(row, minlength=devices).max()) for row in device_of)
    table = np.full((layers, devices, widest), -1, np.int32)
    for layer, device in np.ndindex(layers, devices):
        held = np.sort(expert[layer][device_of[layer] == device])
        table[layer, device, : len(held)] = held
    return table.reshape(layers, -1)
