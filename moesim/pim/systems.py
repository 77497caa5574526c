"""Systems as Duplex compares them: one node, attention cut by heads, experts whole or cut."""

from __future__ import annotations

from moesim.cluster import Cluster
from moesim.errors import UsageError
from moesim.forward.formats import Formats
from moesim.forward.layout import Layout
from moesim.forward.machine import Machine
from moesim.model import ModelSpec
from moesim.pim.processors import MEMORY_EFFICIENCY
from moesim.pim.stage import Mode, StagePricer

__all__ = ["system_pricer"]

HALF = Formats("bfloat16", "bfloat16", "bfloat16")
"""Duplex computes in 16 bits."""

WAYS: dict[str, tuple[Mode, bool]] = {
    "main": ("main", False),
    "choose": ("choose", False),
    "split": ("split", False),
    "split-et": ("split", True),
}


def system_pricer(
    model: ModelSpec,
    cluster: Cluster,
    way: str,
    *,
    efficiency: tuple[float, float] = (MEMORY_EFFICIENCY, MEMORY_EFFICIENCY),
    seed: int = 0,
) -> StagePricer:
    """Stages of a model on a node of devices with two processors.

    Args:
        model: That is served.
        cluster: The node.
        way: ``main``, ``choose``, ``split``, or ``split-et`` with experts cut over all devices.
        efficiency: Sustained shares of bandwidth, of the main processor and the near one.
        seed: Of the routing.

    Raises:
        UsageError: If there is no such way, or the model does not divide.
    """
    if way not in WAYS:
        raise UsageError(f"no way {way!r} to use two processors\nfix: choose {', '.join(WAYS)}")
    mode, cut = WAYS[way]
    devices = cluster.devices
    spread = 1
    if model.moe_layers and not cut:
        spread = next(n for n in range(min(devices, model.experts), 0, -1) if devices % n == 0)
    layout = Layout.complete(devices, tp=devices, dp=1, ep=spread, moe_tp=devices // spread)
    layout.check(model)
    machine = Machine(cluster, "sglang", "roofline")
    return StagePricer(model, machine, layout, HALF, mode, efficiency=efficiency, seed=seed)
