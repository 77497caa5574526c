"""Where token copies go when experts have copies: near ones first, evenly among equals.

A token takes the copy on its own device, else those of its node in equal parts, else all (Hecate,
arXiv 2502.02581, topology-aware dispatch). Every device has an equal part of every expert's tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Dispatched", "dispatch", "pack_slots"]


@dataclass(frozen=True, eq=False)
class Dispatched:
    """Copies of one layer each.

    Attributes:
        copies: [L, G, G] from the token's device to the expert's, those that stay included.
        slot_tokens: [L, G, E] copies that a device works on, by expert.
    """

    copies: np.ndarray
    slot_tokens: np.ndarray


def dispatch(loads: np.ndarray, held: np.ndarray, node_of: np.ndarray) -> Dispatched:
    """Send every copy.

    Args:
        loads: [L, E] copies of all devices.
        held: [L, E, G] which device can serve which expert; at least one each.
        node_of: [G] node of every device.
    """
    devices = len(node_of)
    same = node_of[:, None] == node_of[None]  # [src, dst]
    near = held[:, :, None, :] & same  # [L, E, src, dst]
    at_home = held[:, :, :, None] & np.eye(devices, dtype=bool)
    in_node = near.any(axis=-1, keepdims=True)
    chosen = np.where(
        held[..., None], at_home, np.where(in_node, near, held[:, :, None, :])
    ).astype(float)
    chosen *= (loads / devices)[..., None, None] / chosen.sum(axis=-1, keepdims=True)
    return Dispatched(chosen.sum(axis=1), chosen.sum(axis=2).transpose(0, 2, 1))


def pack_slots(slot_tokens: np.ndarray, held: np.ndarray) -> np.ndarray:
    """[L, G, s] tokens of the experts that devices hold, the heaviest first."""
    most = int(held.sum(axis=1).max())
    return -np.sort(-slot_tokens, axis=-1)[..., :most]
