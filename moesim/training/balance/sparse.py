"""Sparse collectives: weights of some experts to some devices, and their gradients back.

A *SparseAllGather* is a group of broadcasts, one per copied expert; a *SparseReduceScatter* the
reductions back (Hecate, arXiv 2502.02581). A broadcast goes along a chain: from node to node, in
every node to one device, and on to the others, so that every device receives and sends an expert
once and every node takes it in once.
"""

from __future__ import annotations

import numpy as np

__all__ = ["gather_chains", "received_bytes"]


def gather_chains(
    held: np.ndarray, owner: np.ndarray, node_of: np.ndarray, expert_bytes: float
) -> np.ndarray:
    """[L, G, G] bytes from device to device that give every holder its experts.

    The transpose is what gradients take back.

    Args:
        held: [L, E, G] who needs which expert; the owner has it.
        owner: [L, E].
        node_of: [G] node of every device.
        expert_bytes: Weights of one expert.
    """
    layers, _, devices = held.shape
    sent = np.zeros((layers, devices, devices))
    for layer, expert in np.argwhere(held.sum(axis=-1) > 1):
        for source, target in _chain(
            held[layer, expert], int(owner[layer, expert]), node_of, expert
        ):
            sent[layer, source, target] += expert_bytes
    return sent


def _chain(held: np.ndarray, owner: int, node_of: np.ndarray, turn: int) -> list[tuple[int, int]]:
    """Hops of one broadcast; experts take turns with the device that a node receives by."""
    hops = []
    entry = owner
    own = node_of[owner]
    nodes = sorted(set(node_of[held].tolist()), key=lambda n: (n - own) % (node_of.max() + 1))
    for node in nodes:
        members = np.flatnonzero(held & (node_of == node)).tolist()
        start = owner if node == own else members[turn % len(members)]
        if node != own:
            hops.append((entry, start))
            entry = start
        previous = start
        for member in members:
            if member != start:
                hops.append((previous, member))
                previous = member
    return hops


def received_bytes(held: np.ndarray, owner: np.ndarray, expert_bytes: float) -> np.ndarray:
    """[L, G] bytes that a device receives: the experts that it serves and does not own."""
    copies = held & (owner[..., None] != np.arange(held.shape[-1]))
    return copies.sum(axis=1) * expert_bytes
