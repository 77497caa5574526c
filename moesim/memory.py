"""Whether weights fit into the devices' memory."""

from __future__ import annotations

import numpy as np

from moesim.cluster import Cluster
from moesim.errors import InfeasibleError
from moesim.model import ModelSpec
from moesim.units import format_bytes

__all__ = ["check_memory", "expert_memory_bytes", "weight_bytes_per_device"]


def weight_bytes_per_device(model: ModelSpec, cluster: Cluster, slots: int) -> float:
    """Bytes of weights that a device holds at least.

    Routed experts take their slots; everything else is taken as spread evenly and stored as
    narrowly as the experts, which is less than any engine needs, so a set-up that fails here fails
    in every layout.

    Args:
        model: Sizes.
        cluster: Devices.
        slots: S, physical expert slots per layer.
    """
    experts = _expert_layers(model) * slots / cluster.devices * model.expert_weight_bytes
    return experts + _other_bytes(model) / cluster.devices


def expert_memory_bytes(model: ModelSpec, cluster: Cluster) -> np.ndarray:
    """[G] float64 bytes of every device that are left for routed experts at most."""
    left: np.ndarray = cluster.memory_bytes - _other_bytes(model) / cluster.devices
    return left


def _expert_layers(model: ModelSpec) -> float:
    """MoE layers whose weights are stored."""
    return len(model.moe_layers) / model.variant.layer_reuse


def _other_bytes(model: ModelSpec) -> float:
    routed = _expert_layers(model) * model.experts * model.expert_parameters
    return (model.total_parameters - routed) * model.quantisation.weight_bits / 8


def check_memory(model: ModelSpec, cluster: Cluster, slots: int, *, free: bool = False) -> None:
    """Refuse what cannot be loaded.

    Args:
        model: Sizes.
        cluster: Devices.
        slots: S, physical expert slots per layer.
        free: Whether devices may hold unequally many of them.

    Raises:
        InfeasibleError: If the weights alone are more than the smallest device's memory or, where
            slots are free, than that of all devices together.
    """
    needed = weight_bytes_per_device(model, cluster, slots)
    available = float(cluster.memory_bytes.mean() if free else cluster.memory_bytes.min())
    if needed > available:
        kind = "" if cluster.memory_factors is None else "the mean " if free else "the smallest "
        raise InfeasibleError(
            f"{model.name} does not fit on {cluster.name}: its weights take "
            f"{format_bytes(needed)} per device with {slots} expert slots per layer, and "
            f"{kind}{cluster.device.name} has {format_bytes(available)}\n"
            "fix: use more or larger devices, fewer --redundant slots, or a quantised model"
        )
