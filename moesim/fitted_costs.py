"""Which cost model prices a cluster: kernels fitted to measurements where there are any.

Both halves of an expert layer are chosen alike: the engine's kernel as it was fitted on the device,
else, on other GPUs, the nearest kernels' efficiencies on the device's own figures, else the rates
that the device's profile says kernels reach, else the data sheet's roofline.
The choice and its evidence are named in every output.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from moesim.calibrated_cost import CalibratedCost
from moesim.cluster import Cluster
from moesim.communication import CommForm
from moesim.cost import ExpertCost, ReachedCost, RooflineCost
from moesim.cost_model import CostModel
from moesim.errors import InputError
from moesim.hardware import Device
from moesim.link_cost import Direction, LinkCost, reached_links, roofline_links
from moesim.measured_cost import MeasuredCost
from moesim.measured_kernels import MeasuredKernels
from moesim.model import ModelSpec
from moesim.operators.collectives import ring_steps
from moesim.operators.comm_fits import DEFAULT_SMS
from moesim.operators.deepep import (
    HEADER_BYTES,
    LowLatencyCoefficients,
    NormalCoefficients,
    expected_parts,
)
from moesim.operators.moe_fits import moe_fit_for
from moesim.operators.shipped import find_fit
from moesim.schema import weakest
from moesim.workload import Phase

__all__ = [
    "ENGINES",
    "Engine",
    "expert_cost",
    "expert_format",
    "link_cost",
    "takes_fitted_kernels",
    "with_measured",
]

Engine = Literal["sglang", "trtllm", "vllm"]
ENGINES: tuple[Engine, ...] = ("sglang", "trtllm", "vllm")


def expert_format(model: ModelSpec, device: Device) -> str:
    """Number format that a model's routed experts run in on a device, as the tables name it."""
    method, bits = model.quantisation.method, model.quantisation.weight_bits
    named = {"fp8-block": "fp8_block", "fp8": "fp8", "mxfp8": "fp8_block", "nvfp4": "nvfp4"}
    if method in named:
        return named[method]
    if method in ("mxfp4", "fp4"):
        # Blackwell multiplies MXFP4 weights with MXFP8 activations; others widen the weights.
        return "w4a8_mxfp4_mxfp8" if "fp4" in device.peak else "w4a16_mxfp4"
    if bits == 4:
        return "int4_wo"
    return "fp8" if bits == 8 else "bfloat16"


def takes_fitted_kernels(device: Device) -> bool:
    """Whether kernels fitted on GPUs say anything about a device: only if it is one."""
    return device.kind == "gpu"


def expert_cost(model: ModelSpec, cluster: Cluster, cost: CostModel, engine: Engine) -> ExpertCost:
    """What prices a model's routed experts on a cluster's devices.

    The all-to-all brings each device the tokens of its own experts and no others, so the kernel
    works on those alone: a group of one device.
    """
    device = cluster.device
    if cost == "roofline":
        return RooflineCost.of(model, device)
    if isinstance(cost, MeasuredKernels):
        cost.check(device)
    fit = None
    if takes_fitted_kernels(device) and not model.stores_experts_otherwise:
        with suppress(InputError):
            fit = moe_fit_for(device, expert_format(model, device), engine=engine)
    if fit is not None:
        shipped = CalibratedCost.of(model, device, fit, devices=1)
        return with_measured(shipped, cost)
    if device.reached is not None:
        return ReachedCost.of(model, device, device.reached)
    return RooflineCost.of(model, device)


def with_measured(shipped: CalibratedCost, cost: CostModel) -> CalibratedCost | MeasuredCost:
    """Experts by the kernels of one's own file, where it has such."""
    found = cost.cost(shipped) if isinstance(cost, MeasuredKernels) else None
    return shipped if found is None else found


def link_cost(
    model: ModelSpec,
    cluster: Cluster,
    cost: CostModel,
    comm: CommForm,
    phase: Phase,
    tokens_per_device: int,
) -> LinkCost:
    """What prices the all-to-alls of a model's expert layers on a cluster's links.

    DeepEP's kernels for tokens that return to their rank, NCCL's all-to-all for tokens that travel
    on. Both copy between devices of a switched scale-up network and, beyond it, by network cards;
    other networks (full meshes, PCIe) take data sheets' figures.
    """
    plain = roofline_links(model, cluster)
    fast = cluster.device.scale_up
    switched = fast is not None and fast.topology == "switch"
    gpus = takes_fitted_kernels(cluster.device)
    if cost == "roofline" or cluster.devices == 1:
        return plain
    shares = cluster.device.reached
    unmeasured = plain if shares is None else reached_links(plain, shares)
    if not switched or not gpus:
        return unmeasured
    try:
        if comm == "chain":
            return _by_nccl(plain, cluster)
        return _by_deepep(plain, model, cluster, phase, tokens_per_device)
    except InputError:
        return unmeasured


def _by_deepep(
    plain: LinkCost, model: ModelSpec, cluster: Cluster, phase: Phase, tokens: int
) -> LinkCost:
    mode = "normal" if phase == "prefill" else "low_latency"
    across = "nodes" if int(cluster.domain_of_device.max()) > 0 else "node"
    found = {
        way: find_fit(f"deepep_{mode}", cluster.device, phase=way, mode=mode, across=across)
        for way in ("dispatch", "combine")
    }
    ways = {
        way: _deepep_way(getattr(plain, way), fit, model, cluster, tokens)
        for way, fit in found.items()
    }
    dispatch = found["dispatch"]
    return LinkCost(
        ways["dispatch"],
        ways["combine"],
        f"DeepEP {mode.replace('_', '-')} of {dispatch.engine} {dispatch.version}",
        weakest(*(fit.evidence for fit in found.values())),
        _bands(dispatch),
    )


def _deepep_way(
    plain: Direction, fit: Any, model: ModelSpec, cluster: Cluster, tokens: int
) -> Direction:
    """One direction with the kernel's rates; its fixed and SM times as under even routing."""
    c = fit.coefficients
    domains = int(cluster.domain_of_device.max()) + 1
    size, remote = plain.vector_bytes, 1 - 1 / domains
    if isinstance(c, LowLatencyCoefficients):
        sms = np.ceil(model.experts / np.ceil(model.experts / c.device_sms))
        copies = tokens * model.top_k * (size + HEADER_BYTES)
        copy_s = tokens * (c.token_s + c.token_s_per_byte * size) + copies * c.copy_s_per_byte
        copy_s = copy_s / sms
        launch_s = c.launch_s + c.expert_s * model.experts + (c.internode_s or 0.0) * remote
        rdma = c.rdma_s_per_byte
    else:
        copy_s, launch_s, rdma = _normal(c, size, model, cluster, tokens, domains)
    up, out = _rates(cluster, c.link_s_per_byte, rdma)
    return replace(
        plain,
        up_rate=up,
        out_rate=out,
        route_latency=False,
        launch_s=float(launch_s),
        copy_s=float(copy_s),
        flow_overlap=c.flow_overlap,
        latency_overlap=c.latency_overlap,
    )


def _normal(
    c: NormalCoefficients,
    size: float,
    model: ModelSpec,
    cluster: Cluster,
    tokens: int,
    domains: int,
) -> tuple[float, float, float | None]:
    """Copying and fixed time of a normal kernel, and seconds per byte over network cards."""
    top_k, experts = np.array(model.top_k), np.array(model.experts)
    ranks = float(expected_parts(top_k, experts, np.array(cluster.devices)))
    remote = float(expected_parts(top_k, experts, np.array(domains))) * (1 - 1 / domains)
    token_s = c.token_s + c.token_s_per_byte * size
    token_s += ranks * (c.copy_s + c.copy_s_per_byte * size)
    token_s += remote * (c.relay_s_per_byte or 0.0) * size
    launch_s = c.launch_s + c.launch_s_per_byte * size
    launch_s += (c.internode_s or 0.0) * float(np.log2(domains))
    rates = {
        nodes: rate
        for nodes, rate in zip(c.nodes, c.rdma_s_per_byte or (), strict=False)
        if nodes > 1
    }
    # A number of nodes that was not measured takes the rate of the next smaller one.
    below = max((nodes for nodes in rates if nodes <= domains), default=min(rates, default=0))
    return tokens / DEFAULT_SMS * token_s, launch_s, rates.get(below)


def _by_nccl(plain: LinkCost, cluster: Cluster) -> LinkCost:
    """Ranks exchange vectors by NCCL within a domain; network cards take data sheets' figures."""
    fit = find_fit("collective", cluster.device, collective="alltoall", spread="node")
    c = fit.coefficients
    inside = int(np.bincount(cluster.domain_of_device).max())
    large = c.protocols[-1]
    known = np.log(np.array(c.ranks, float))
    per_byte = float(np.interp(np.log(inside), known, np.array(large.wire_s_per_byte)))
    small = c.protocols[0]
    launch_s = small.launch_s + small.step_s * float(ring_steps("alltoall", np.array(inside)))
    if inside == 1:
        return plain
    several = int(cluster.domain_of_device.max()) > 0
    up, out = _rates(cluster, per_byte, None)

    def fitted(way: Direction) -> Direction:
        return replace(way, up_rate=up, out_rate=out, launch_s=launch_s, route_latency=several)

    return LinkCost(
        fitted(plain.dispatch),
        fitted(plain.combine),
        f"NCCL {fit.version} all-to-all",
        weakest(fit.evidence, *([cluster.evidence] if several else [])),
        _bands(fit),
    )


def _bands(fit: Any) -> tuple[tuple[float, float, float], ...]:
    return tuple(
        (np.inf if band.up_to_s is None else band.up_to_s, band.lo, band.hi) for band in fit.bands
    )


def _rates(
    cluster: Cluster, up_s_per_byte: float, out_s_per_byte: float | None
) -> tuple[float, float]:
    """What a kernel reaches of the links' bandwidths, within a domain and between domains.

    Rates count relative to the profile's, so that a cluster whose links differ from its device's
    profile keeps the difference. A rate that the fit leaves open is the profile's.
    """
    device, up, out = cluster.device, 1.0, 1.0
    if device.scale_up is not None and up_s_per_byte > 0:
        up = 1 / up_s_per_byte / device.scale_up.bandwidth.si
    if device.nic is not None and out_s_per_byte:
        out = 1 / out_s_per_byte / device.nic.bandwidth.si
    return up, out
