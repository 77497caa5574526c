"""Placements that look at no load: the baselines, and what engines do by default."""

from __future__ import annotations

import math

import numpy as np

from moesim.planners.problem import PlacementProblem

__all__ = ["contiguous", "random_balanced", "round_robin"]


def contiguous(problem: PlacementProblem) -> np.ndarray:
    """Slot s holds expert s mod E: blocks of consecutive experts, copies of the first ones last.

    What SGLang calls the trivial map (``--init-expert-location trivial``), and without redundant
    experts vLLM's ``--expert-placement-strategy linear`` and Megatron's layout.

    Returns:
        [L, S] int32 physical_to_logical.
    """
    row = np.arange(problem.slots, dtype=np.int32) % problem.experts
    return np.tile(row, (problem.layers, 1))


def round_robin(problem: PlacementProblem) -> np.ndarray:
    """Experts dealt to the devices one after the other, like cards.

    Without redundant experts vLLM's ``--expert-placement-strategy round_robin``.

    Returns:
        [L, S] int32 physical_to_logical.
    """
    row = _deal(np.arange(problem.experts), problem)
    return np.tile(row, (problem.layers, 1))


def random_balanced(problem: PlacementProblem) -> np.ndarray:
    """Experts dealt in random order, another one in every layer.

    Returns:
        [L, S] int32 physical_to_logical, the same for the same seed.
    """
    generator = np.random.default_rng(problem.seed)
    rows = [_deal(generator.permutation(problem.experts), problem) for _ in range(problem.layers)]
    return np.stack(rows)


def _deal(experts: np.ndarray, problem: PlacementProblem) -> np.ndarray:
    """[S] int32: the experts in the given order, then again from the first, a card per device.

    Where E and G share a factor, the copies of an expert would come round to the same devices;
    every lcm(E, G) cards the deal starts one device further, so that copies meet on a device only
    if there are more of them than devices.
    """
    devices = problem.devices
    card = np.arange(problem.slots)
    device = (card + card // math.lcm(len(experts), devices)) % devices
    slot = device * problem.slots_per_device + card // devices
    row = np.empty(problem.slots, np.int32)
    row[slot] = experts[card % len(experts)]
    return row
