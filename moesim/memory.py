"""Whether weights fit into the devices' memory."""

from __future__ import annotations

from moesim.cluster import Cluster
from moesim.errors import InfeasibleError
from moesim.model import ModelSpec
from moesim.units import format_bytes

__all__ = ["check_memory", "weight_bytes_per_device"]


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
    layers = len(model.moe_layers) / model.variant.layer_reuse
    routed = layers * model.experts * model.expert_parameters
    other = (model.total_parameters - routed) * model.quantisation.weight_bits / 8
    experts = layers * slots / cluster.devices * model.expert_weight_bytes
    return experts + other / cluster.devices


def check_memory(model: ModelSpec, cluster: Cluster, slots: int) -> None:
    """Refuse what cannot be loaded.

    Raises:
        InfeasibleError: If the weights alone are more than a device's memory.
    """
    needed = weight_bytes_per_device(model, cluster, slots)
    available = cluster.device.memory_bytes
    if needed > available:
        raise InfeasibleError(
            f"{model.name} does not fit on {cluster.name}: its weights take "
            f"{format_bytes(needed)} per device with {slots} expert slots per layer, and "
            f"{cluster.device.name} has {format_bytes(available)}\n"
            "fix: use more or larger devices, fewer --redundant slots, or a quantised model"
        )
