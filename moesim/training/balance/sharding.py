"""Which device owns which expert: its optimizer state, and its weights when no copies are made.

*Contiguous*: expert parallelism as usual. *Heterogeneous* (Hecate, arXiv 2502.02581, algorithm 2):
devices have equal slots over all layers together, and as many of one layer as suits. Experts that
will be copied everywhere anyway can lie where room is left; the others are spread by load, the
heaviest first, over nodes and then their devices. *Swapped* (SmartMoE): equal slots per layer.
"""

from __future__ import annotations

import numpy as np

__all__ = ["contiguous", "heterogeneous", "peak_load", "swapped"]


def contiguous(layers: int, experts: int, devices: int) -> np.ndarray:
    """[L, E] owner of every expert, in order."""
    return np.tile(np.arange(experts) * devices // experts, (layers, 1))


def peak_load(loads: np.ndarray, owner: np.ndarray, devices: int, hot: int = 0) -> float:
    """Load of the busiest device, summed over layers, without each layer's hottest experts.

    Args:
        loads: [L, E].
        owner: [L, E].
        devices: G.
        hot: Experts per layer that every device serves for itself.
    """
    total = 0.0
    for layer_loads, layer_owner in zip(loads, owner, strict=True):
        cold = np.argsort(-layer_loads, kind="stable")[hot:]
        total += np.bincount(layer_owner[cold], layer_loads[cold], devices).max(initial=0.0)
    return float(total)


def heterogeneous(loads: np.ndarray, node_of: np.ndarray, hot: int) -> np.ndarray:
    """[L, E] owners by Hecate's algorithm 2; contiguous where that would be better balanced.

    Args:
        loads: [L, E] of the past.
        node_of: [G] node of every device.
        hot: Experts per layer that will be copied (its overlap degree t).
    """
    layers, experts = loads.shape
    devices = len(node_of)
    free = np.full(devices, layers * experts // devices)
    free[: layers * experts % devices] += 1
    owner = np.full((layers, experts), -1)
    ranked = np.argsort(-loads, axis=1, kind="stable")
    for layer in np.argsort(-loads.max(axis=1), kind="stable"):
        load = np.zeros(devices)
        for expert in ranked[layer, hot:]:
            device = _least_loaded(load, free, node_of)
            owner[layer, expert] = device
            load[device] += loads[layer, expert]
            free[device] -= 1
    for layer in range(layers):
        for expert in ranked[layer, :hot]:
            device = int(free.argmax())
            owner[layer, expert] = device
            free[device] -= 1
    plain = contiguous(layers, experts, devices)
    better = peak_load(loads, owner, devices, hot) <= peak_load(loads, plain, devices, hot)
    return owner if better else plain


def _least_loaded(load: np.ndarray, free: np.ndarray, node_of: np.ndarray) -> int:
    """Of the least loaded node with room (the one with fewer free slots of equals), the device."""
    nodes = int(node_of.max()) + 1
    room = np.bincount(node_of, free, nodes)
    node_load = np.bincount(node_of, load, nodes)
    node = min((n for n in range(nodes) if room[n] > 0), key=lambda n: (node_load[n], room[n]))
    devices = np.flatnonzero((node_of == node) & (free > 0))
    return int(min(devices, key=lambda g: (load[g], free[g])))


def swapped(loads: np.ndarray, devices: int) -> np.ndarray:
    """[L, E] owners with equal slots per layer, the heaviest expert to the least loaded device."""
    layers, experts = loads.shape
    owner = np.empty((layers, experts), int)
    for layer in range(layers):
        free = np.bincount(contiguous(1, experts, devices)[0], minlength=devices)
        load = np.zeros(devices)
        for expert in np.argsort(-loads[layer], kind="stable"):
            device = int(np.where(free > 0, load, np.inf).argmin())
            owner[layer, expert] = device
            load[device] += loads[layer, expert]
            free[device] -= 1
    return owner
