"""Dividing an expert's tokens among its copies so that the last device finishes soonest.

Even division is what EPLB plans for. Uneven division evens out what whole slots leave uneven, and,
redone for every batch, also the swings from batch to batch: that is the linear programme which
LPLB solves (https://github.com/deepseek-ai/LPLB): minimise z subject to
Σ over the slots of device g of x_s ≤ v_g · z, Σ over the copies of expert e of x_s = load_e, x ≥ 0,
with device speeds v.

No LP solver is needed. The device loads that such divisions reach form a base polytope, in which
the least Σ load_g² / v_g has also the least largest load_g / v_g (S. Fujishige, "Lexicographically
optimal base of a polymatroid with respect to a weight vector", Math. of OR 5(2), 1980). That sum is
convex, and with every other expert held still the best division of one expert is water-filling:
its copies rise to one common level. Sweeping over the experts converges. A cut certifies the
result: the experts whose copies all lie on a set of devices put at least their load over the set's
speed on one of them, whatever the division.

Axes: W batches, L MoE layers, S slots, G devices, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.compiled import compiled
from moesim.placement import Placement

__all__ = ["TokenSplit", "even_split", "ideal_split", "split_by_weights"]

PROVEN = 1e-6
"""Relative distance of the largest load to the cut that ends the sweeps."""

SWEEPS = 2000
"""At most; ten are usual."""


@dataclass(frozen=True)
class TokenSplit:
    """Tokens of every slot.

    Attributes:
        slot_tokens: [W, L, S] float64.
        finish: [W, L] load over speed of the device that finishes last, in tokens of a device of
            nominal speed.
        bound: [W, L] what no division of these tokens among these copies can be below.
    """

    slot_tokens: np.ndarray
    finish: np.ndarray
    bound: np.ndarray


def even_split(loads: np.ndarray, placement: Placement) -> np.ndarray:
    """[W, L, S] tokens if every copy gets the same share.

    Args:
        loads: [W, L, E] tokens of every expert.
        placement: Where the copies are; an empty slot gets nothing.
    """
    share = np.asarray(loads, np.float64) / placement.replica_count()
    return _of_slots(share, placement)


def split_by_weights(
    loads: np.ndarray, placement: Placement, slot_weights: np.ndarray
) -> np.ndarray:
    """[W, L, S] tokens if every copy gets its fixed share.

    Args:
        loads: [W, L, E] tokens of every expert.
        placement: Where the copies are.
        slot_weights: [L, S] relative share of every slot among the copies of its expert, as
            :func:`ideal_split` gives for mean loads; an expert with none in total is split evenly.
    """
    table = placement.physical_to_logical
    rows = np.broadcast_to(np.arange(len(table))[:, None], table.shape)
    held = table >= 0
    total = np.zeros((placement.layers, placement.experts))
    np.add.at(total, (rows[held], table[held]), slot_weights[held])
    of_expert = np.take_along_axis(total, np.maximum(table, 0), 1)
    count = np.take_along_axis(placement.replica_count(), np.maximum(table, 0), 1)
    none = of_expert <= 0
    weight = np.where(none, 1.0 / count, slot_weights / np.where(none, 1.0, of_expert))
    result: np.ndarray = _of_slots(np.asarray(loads, np.float64), placement) * weight
    return result


def ideal_split(loads: np.ndarray, placement: Placement, speeds: np.ndarray) -> TokenSplit:
    """The division that lets the last device finish soonest, for every batch and layer by itself.

    Args:
        loads: [W, L, E] tokens of every expert.
        placement: Where the copies are.
        speeds: [G] relative speed of every device.
    """
    loads = np.ascontiguousarray(loads, np.float64)
    slot_tokens = even_split(loads, placement)
    finish, bound = np.empty(loads.shape[:2]), np.empty(loads.shape[:2])
    slots_of = placement.logical_to_physical()
    device_of = placement.device_of_slot()
    for layer in range(placement.layers):
        for batch in range(len(loads)):
            finish[batch, layer], bound[batch, layer] = _sweep(
                loads[batch, layer],
                slots_of[layer],
                device_of,
                np.asarray(speeds, np.float64),
                slot_tokens[batch, layer],
            )
    return TokenSplit(slot_tokens, finish, bound)


def _of_slots(per_expert: np.ndarray, placement: Placement) -> np.ndarray:
    table = placement.physical_to_logical
    index = np.broadcast_to(np.maximum(table, 0), (*per_expert.shape[:-1], table.shape[1]))
    result: np.ndarray = np.take_along_axis(per_expert, index, -1) * (table >= 0)
    return result


@compiled
def _sweep(
    loads: np.ndarray,  # [E]
    slots_of: np.ndarray,  # [E, R], padded with -1
    device_of: np.ndarray,  # [S]
    speeds: np.ndarray,  # [G]
    slot_tokens: np.ndarray,  # [S], changed in place
) -> tuple[float, float]:
    """Water-fill one expert after the other until a cut proves that nothing is left to gain."""
    experts, most = slots_of.shape
    held = np.zeros(len(speeds))
    for slot in range(len(slot_tokens)):
        held[device_of[slot]] += slot_tokens[slot]
    finish, bound = (held / speeds).max(), 0.0
    for _ in range(SWEEPS):
        bound = max(bound, _cut(loads, slots_of, device_of, speeds, held))
        if finish <= bound * (1 + PROVEN):
            break
        for expert in range(experts):
            if most > 1 and slots_of[expert, 1] >= 0 and loads[expert] > 0:
                _fill(loads[expert], slots_of[expert], device_of, speeds, slot_tokens, held)
        finish = (held / speeds).max()
    return finish, min(bound, finish)


@compiled
def _fill(
    load: float,
    slots: np.ndarray,  # [R], padded with -1
    device_of: np.ndarray,
    speeds: np.ndarray,
    slot_tokens: np.ndarray,
    held: np.ndarray,
) -> None:
    """Divide one expert's tokens so that its copies' devices reach one level, from below."""
    copies = 0
    while copies < len(slots) and slots[copies] >= 0:
        held[device_of[slots[copies]]] -= slot_tokens[slots[copies]]
        slot_tokens[slots[copies]] = 0.0
        copies += 1
    level = np.empty(copies)
    for copy in range(copies):
        level[copy] = held[device_of[slots[copy]]] / speeds[device_of[slots[copy]]]
    order = np.argsort(level)
    # Two copies on one device are one vessel: the second one stays empty.
    vessels = np.empty(copies, np.int64)
    wet, speed, poured = 0, 0.0, 0.0
    reached = level[order[0]]
    for place in range(copies):
        copy = order[place]
        device = device_of[slots[copy]]
        twice = False
        for other in range(wet):
            twice |= device_of[slots[vessels[other]]] == device
        if twice:
            continue
        needed = (level[copy] - reached) * speed
        if wet > 0 and poured + needed >= load:
            break
        poured += needed
        reached = level[copy]
        vessels[wet] = copy
        speed += speeds[device]
        wet += 1
    reached += (load - poured) / speed
    rest = load
    for vessel in range(wet):
        slot = slots[vessels[vessel]]
        device = device_of[slot]
        share = (reached - level[vessels[vessel]]) * speeds[device]
        if vessel == wet - 1:
            share = rest
        share = min(max(share, 0.0), rest)
        slot_tokens[slot] = share
        held[device] += share
        rest -= share


@compiled
def _cut(
    loads: np.ndarray,
    slots_of: np.ndarray,
    device_of: np.ndarray,
    speeds: np.ndarray,
    held: np.ndarray,
) -> float:
    """The best of the cuts around the fullest 1, 2 … G devices."""
    experts, most = slots_of.shape
    order = np.argsort(-(held / speeds))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    inside = np.zeros(len(order))  # load that first lies inside the cut with this device
    for expert in range(experts):
        last = 0
        for copy in range(most):
            if slots_of[expert, copy] >= 0:
                last = max(last, rank[device_of[slots_of[expert, copy]]])
        inside[last] += loads[expert]
    best, load, speed = 0.0, 0.0, 0.0
    for place in range(len(order)):
        load += inside[place]
        speed += speeds[order[place]]
        best = max(best, load / speed)
    return best
