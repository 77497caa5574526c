"""Which experts get copies in an iteration (Hecate, arXiv 2502.02581, algorithm 1)."""

from __future__ import annotations

import numpy as np

__all__ = ["held_by_owner", "materialise", "overlap_degree", "replicate"]


def overlap_degree(window_s: float, bytes_per_s: float, expert_bytes: float) -> int:
    """t: experts whose weights reach all devices while a layer's attention is computed.

    Args:
        window_s: Seconds of the computation before the layer's experts.
        bytes_per_s: Of a node to others, or of a device where there is one node.
        expert_bytes: Weights of one expert.
    """
    return int(window_s * bytes_per_s / expert_bytes)


def held_by_owner(owner: np.ndarray, devices: int) -> np.ndarray:
    """[L, E, G] every expert on its owner alone."""
    return owner[..., None] == np.arange(devices)


def materialise(
    loads: np.ndarray, owner: np.ndarray, node_of: np.ndarray, hot: int, room: int
) -> np.ndarray:
    """[L, E, G] owners and copies.

    The ``hot`` heaviest experts of a layer are copied: to all devices if each has room for them,
    else into the room of all devices in proportion to load, over nodes first.

    Args:
        loads: [L, E] expected.
        owner: [L, E].
        node_of: [G] node of every device.
        hot: t, see :func:`overlap_degree`.
        room: m, copies that a device can hold of one layer.
    """
    devices = len(node_of)
    held = held_by_owner(owner, devices)
    hot = min(hot, loads.shape[1])
    room = min(room, hot)
    if room == 0:
        return held
    for layer, layer_loads in enumerate(loads):
        top = np.argsort(-layer_loads, kind="stable")[:hot]
        if hot <= room:
            held[layer, top] = True
        else:
            _share(held[layer], layer_loads, top, node_of, room)
    return held


def _share(
    held: np.ndarray, loads: np.ndarray, top: np.ndarray, node_of: np.ndarray, room: int
) -> None:
    """Fill every device's room; ``held`` [E, G] is changed."""
    devices = len(node_of)
    share = loads[top] / max(loads[top].sum(), 1e-12) * devices * room
    free = np.full(devices, room)
    for expert, copies in zip(top, np.maximum(np.round(share), 1).astype(int), strict=True):
        for _ in range(min(int(copies), devices)):
            open_to = np.flatnonzero((free > 0) & ~held[expert])
            if len(open_to) == 0:
                break
            in_node = np.bincount(node_of, held[expert])
            device = min(open_to, key=lambda g: (in_node[node_of[g]], -free[g]))
            held[expert, device] = True
            free[device] -= 1


def replicate(loads: np.ndarray, devices: int, slots: int) -> tuple[np.ndarray, np.ndarray]:
    """[L, E, G] copies and [L, E] owners with so many slots per device and layer (FlexMoE).

    Slots go one by one to the expert with the most load per copy; copies go to the device with the
    least load that has room and none of that expert. The first copy's device is the owner.
    """
    layers, experts = loads.shape
    held = np.zeros((layers, experts, devices), bool)
    owner = np.zeros((layers, experts), int)
    for layer, layer_loads in enumerate(loads):
        copies = np.ones(experts, int)
        for _ in range(devices * slots - experts):
            per_copy = np.where(copies < devices, layer_loads / copies, -1.0)
            copies[per_copy.argmax()] += 1
        free, load = np.full(devices, slots), np.zeros(devices)
        for expert in np.argsort(-layer_loads / copies, kind="stable"):
            for copy in range(copies[expert]):
                open_to = (free > 0) & ~held[layer, expert]
                if not open_to.any():
                    break
                device = int(np.where(open_to, load, np.inf).argmin())
                held[layer, expert, device] = True
                load[device] += layer_loads[expert] / copies[expert]
                free[device] -= 1
                if copy == 0:
                    owner[layer, expert] = device
    return held, owner
