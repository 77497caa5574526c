"""Layouts of one replica that an engine can run, for so many devices."""

from __future__ import annotations

from collections.abc import Iterator

from moesim.cluster import Cluster
from moesim.errors import UsageError
from moesim.forward.layout import Dispatch, Layout
from moesim.model import ModelSpec

__all__ = ["cluster_name", "replica_layouts", "replica_sizes"]

MOST_STAGES = 4
"""Pipeline stages; every stage adds a transfer and a micro-batch, and decode gains nothing."""


def replica_sizes(most: int, domain: int) -> list[int]:
    """Devices of a replica: powers of two within a scale-up domain, whole domains beyond."""
    sizes = [2**power for power in range(domain.bit_length()) if 2**power <= domain]
    if domain not in sizes:
        sizes.append(domain)
    size = domain * 2
    while size <= most:
        sizes.append(size)
        size *= 2
    return [size for size in sizes if size <= most]


def cluster_name(device: str, devices: int, node: int) -> str:
    """A cluster of so many devices by its short name."""
    if devices <= node:
        return f"{devices}x{device}"
    return f"{devices // node}x{node}x{device}"


def replica_layouts(
    model: ModelSpec, cluster: Cluster, engine: str, domain: int, redundant: int = 0
) -> Iterator[Layout]:
    """Every layout of a cluster that engine and model allow.

    Tensor parallelism, of experts too, stays within a scale-up domain: an all-reduce per layer over
    slower links is never worth it. Pipeline stages are whole domains, or single devices of servers
    without one. Engines differ in how experts may be cut: vLLM spreads them whole over all
    devices of a stage or cuts each over all of them; TensorRT-LLM's attention DP is all or nothing.

    Args:
        model: What is served.
        cluster: Of one replica.
        engine: vllm, sglang or trtllm.
        domain: Devices of a scale-up domain.
        redundant: Expert slots beyond one each; only where experts are spread.
    """
    spans = cluster.device.scale_up is not None and cluster.device.scale_up.spans_nodes
    direct: Dispatch = "nvlink" if spans and engine == "trtllm" else "deepep"
    for pp in _divisors(cluster.devices):
        stage = cluster.devices // pp
        whole = domain if cluster.device.scale_up else 1
        if pp > min(MOST_STAGES, model.layers) or (pp > 1 and stage != whole):
            continue
        for dp in _divisors(stage):
            if not _attention(model, engine, stage, dp, domain):
                continue
            for ep in _divisors(stage) if model.moe_layers else (1,):
                if not _experts(engine, stage, ep, domain) or (redundant and ep == 1):
                    continue
                try:
                    layout = Layout.complete(
                        cluster.devices,
                        tp=stage // dp,
                        dp=dp,
                        ep=ep,
                        pp=pp,
                        direct=direct,
                        redundant=redundant,
                    )
                    layout.check(model)
                except UsageError:
                    continue
                yield layout


def _attention(model: ModelSpec, engine: str, stage: int, dp: int, domain: int) -> bool:
    if stage // dp > domain or (dp > 1 and not model.moe_layers):
        return False
    return engine != "trtllm" or dp in (1, stage)


def _experts(engine: str, stage: int, ep: int, domain: int) -> bool:
    if stage // ep > domain:
        return False
    return ep in (1, stage) or not engine.startswith("vllm")


def _divisors(number: int) -> list[int]:
    return [part for part in range(1, number + 1) if number % part == 0]
