"""Changing a placement in use under a budget: every moved slot is weights to load while serving."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.errors import UsageError
from moesim.placement import EMPTY_SLOT, Placement
from moesim.step import StepCost

__all__ = ["LimitedMoves", "count_moves", "holdings", "limit_moves"]


@dataclass(frozen=True)
class LimitedMoves:
    """A placement between two others.

    Attributes:
        placement: The layers that change, changed.
        moves: Experts that some device holds now and did not hold before.
    """

    placement: Placement
    moves: int


def count_moves(current: Placement, target: Placement) -> np.ndarray:
    """[L] int64, experts that a device must load to get from one placement to the other."""
    moves = np.zeros(current.layers, np.int64)
    for layer in range(current.layers):
        before = holdings(current, layer)
        after = holdings(target, layer)
        moves[layer] = np.maximum(after - before, 0).sum()
    return moves


def limit_moves(
    current: Placement,
    target: Placement,
    current_cost: StepCost,
    target_cost: StepCost,
    max_moves: int,
) -> LimitedMoves:
    """Take over the target layer by layer, the most seconds per moved expert first.

    Layers are independent in the home-rank form, so the chosen ones gain what is expected of them;
    in the chain form neighbours interact and the result is priced afresh by the caller.

    Args:
        current: The placement in use.
        target: The placement wanted.
        current_cost: Price of the first.
        target_cost: Price of the second.
        max_moves: Budget over all layers.
    """
    if max_moves < 0:
        raise UsageError(
            f"--max-moves must be at least 0; found {max_moves}\nfix: pass --max-moves 0 or more"
        )
    moves = count_moves(current, target)
    gain_s = _layer_s(current_cost) - _layer_s(target_cost)
    order = np.argsort(-gain_s / np.maximum(moves, 1), kind="stable")
    table = current.physical_to_logical.copy()
    spent = 0
    for layer in order:
        if gain_s[layer] > 0 and spent + moves[layer] <= max_moves:
            spent += int(moves[layer])
            table[layer] = _keep_slots(
                table[layer], target.physical_to_logical[layer], current.slots_per_device
            )
    return LimitedMoves(
        Placement(table, current.devices, current.experts, current.moe_layers), spent
    )


def _layer_s(cost: StepCost) -> np.ndarray:
    return cost.layer_compute_s + cost.layer_dispatch_s + cost.layer_combine_s


def holdings(placement: Placement, layer: int) -> np.ndarray:
    """[G, E] int64, copies of each expert on each device."""
    held = np.zeros((placement.devices, placement.experts), np.int64)
    row = placement.physical_to_logical[layer].reshape(placement.devices, -1)
    for device, experts in enumerate(row):
        np.add.at(held[device], experts[experts != EMPTY_SLOT], 1)
    return held


def _keep_slots(before: np.ndarray, after: np.ndarray, per_device: int) -> np.ndarray:
    """The new row, ordered within each device so that experts that stay keep their slot."""
    result = after.copy()
    for start in range(0, len(after), per_device):
        old = before[start : start + per_device]
        waiting = list(after[start : start + per_device])
        fixed = np.full(per_device, False)
        row = np.empty(per_device, after.dtype)
        for slot, expert in enumerate(old):
            if expert in waiting:
                waiting.remove(expert)
                row[slot], fixed[slot] = expert, True
        row[~fixed] = waiting
        result[start : start + per_device] = row
    return result
