"""The least cost of small chain instances, from every placement that can be part of the best one.

``every_placement`` deals a layer's experts to devices in every way, and ``optimum`` goes through
all pairs of placements of neighbouring layers (dynamic programming), which is exact and plain.
``optimum_among`` gives the same for many more placements, because it first throws out those that
cost too much whatever the other layers do. A placement p of a layer costs at least

* its own largest device load, and the least largest load of every other layer;
* towards each neighbour, the travel that is left if every expert there goes where p would have it
  best (with two devices: the best half of them), but never less than the eigenvalue bound;
* the eigenvalue bound of every other pair of layers.

What costs more than a known placement of all layers is out. No rounding throws out the optimum:
the known cost is taken a millionth higher.
"""

from functools import cache

import numpy as np

from moesim.kept_flow import travel_at_least
from tests.benchmarks.placement_instances import ASSIGNMENT_S, FAR_S, NEAR_S

CHUNK = 2048
"""Placements looked at together."""

SLACK = 1e-6


@cache
def every_placement(experts, devices):
    """[P, E] int8 every deal of the experts to devices of equal room."""
    room = experts // devices
    rows = np.zeros((1, 0), np.int8)
    left = np.full((1, devices), room, np.int8)
    for _ in range(experts):
        row, device = np.nonzero(left)
        rows = np.hstack((rows[row], device[:, None].astype(np.int8)))
        left = left[row]
        left[np.arange(len(row)), device] -= 1
    return rows


def optimum(instance, placements):
    """Least cost over all placements of all layers, in the units of ``price``."""
    devices, per_node = instance.devices, instance.devices // instance.nodes
    on_device = np.eye(devices)[placements]  # [P, E, G]
    in_node = np.eye(instance.nodes)[placements // per_node]
    loads = np.einsum("peg,le->lpg", on_device, instance.loads).max(2)
    least = ASSIGNMENT_S * loads[0]
    for layer, flow in enumerate(instance.transitions):
        kept = [
            np.einsum("peg,ef->pfg", place, flow).reshape(len(place), -1)
            @ place.reshape(len(place), -1).T
            for place in (on_device, in_node)
        ]
        travel = FAR_S * flow.sum() - (FAR_S - NEAR_S) * kept[1] - NEAR_S * kept[0]
        least = (least[:, None] + travel / devices).min(0) + ASSIGNMENT_S * loads[layer + 1]
    return least.min() * devices


def optimum_among(instance, placements, known):
    """The same, given what some placement of all layers costs; also how many were left per layer.

    Returns:
        cost: Least cost; ``known`` if nothing is cheaper.
        left: [L] placements that could be part of something as cheap as ``known``.
    """
    layers, devices = len(instance.loads), instance.devices
    allowed = known / devices * (1 + SLACK)
    load = [_largest_load(placements, row, devices) * ASSIGNMENT_S for row in instance.loads]
    travel = travel_at_least(instance.transitions, devices, instance.nodes, NEAR_S, FAR_S) / devices
    kept = []
    for layer in range(layers):
        elsewhere = sum(part.min() for at, part in enumerate(load) if at != layer)
        least = load[layer] + elsewhere + travel.sum()
        # The cheap part first: what is out already needs no look at the neighbours.
        rows = np.flatnonzero(least <= allowed)
        extra = np.zeros(len(rows))
        for pair in (layer - 1, layer):
            if 0 <= pair < layers - 1:
                flow = instance.transitions[pair]
                flow = flow if pair == layer else flow.T
                extra += np.maximum(_best_case(instance, placements[rows], flow) - travel[pair], 0)
        kept.append(rows[least[rows] + extra <= allowed])
    if not all(len(rows) for rows in kept):
        return known, [len(rows) for rows in kept]
    cost = load[0][kept[0]]
    for layer, flow in enumerate(instance.transitions):
        here, there = placements[kept[layer]], placements[kept[layer + 1]]
        cost = _next(instance, cost, here, there, flow) + load[layer + 1][kept[layer + 1]]
    return min(known, float(cost.min()) * devices), [len(rows) for rows in kept]


def _largest_load(placements, loads, devices):
    return np.max([(placements == device) @ loads for device in range(devices)], axis=0)


def _saving(instance, rows, flow):
    """[P, G, E] seconds saved if expert j of the other layer is on device g, for placements P."""
    devices, per_node = instance.devices, instance.devices // instance.nodes
    held = np.stack([(rows == device) @ flow for device in range(devices)], axis=1)
    node = np.add.reduceat(held, np.arange(0, devices, per_node), axis=1)
    return (NEAR_S * held + (FAR_S - NEAR_S) * np.repeat(node, per_node, axis=1)) / devices


def _best_case(instance, rows, flow):
    """[P] travel to a neighbour layer, at least."""
    found = np.empty(len(rows))
    for first in range(0, len(rows), CHUNK):
        saving = _saving(instance, rows[first : first + CHUNK], flow)
        if instance.devices == 2:
            gain = np.sort(saving[:, 1] - saving[:, 0], axis=1)[:, saving.shape[2] // 2 :]
            most = saving[:, 0].sum(axis=1) + gain.sum(axis=1)
        else:
            most = saving.max(axis=1).sum(axis=1)
        found[first : first + CHUNK] = FAR_S * flow.sum() / instance.devices - most
    return found


def _next(instance, cost, here, there, flow):
    """[P'] least cost up to a layer and of the travel into the next, for its placements."""
    on_device = there[:, None, :] == np.arange(instance.devices)[:, None]
    on_device = on_device.reshape(len(there), -1).astype(np.float64)
    best = np.full(len(there), np.inf)
    for first in range(0, len(here), CHUNK):
        rows = slice(first, first + CHUNK)
        saving = _saving(instance, here[rows], flow).reshape(len(here[rows]), -1)
        for column in range(0, len(there), CHUNK):
            columns = slice(column, column + CHUNK)
            reached = cost[rows, None] - saving @ on_device[columns].T
            best[columns] = np.minimum(best[columns], reached.min(axis=0))
    return best + FAR_S * flow.sum() / instance.devices
