"""An iteration as a person asks for it: names and numbers, checked and looked up."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from moesim.cluster import Cluster, load_cluster
from moesim.cost_model import CostModel
from moesim.errors import UsageError
from moesim.fitted_costs import Engine
from moesim.forward.expert_load import parse_distribution
from moesim.forward.machine import Machine
from moesim.model import ModelSpec, load_model
from moesim.training.coefficients import find_slowdown
from moesim.training.layout import AttentionCut, Overlap, Recompute, TrainingLayout
from moesim.training.outcome import Options, TrainingStep
from moesim.training.simulate import simulate_training
from moesim.training.systems import SYSTEMS, System

__all__ = ["ENGINE", "TrainingRequest", "run_training"]

ENGINE: Engine = "trtllm"
"""Whose fitted kernels stand for training's: PyTorch's cuBLAS, flash attention, grouped GEMM."""


@dataclass(frozen=True)
class TrainingRequest:
    """What to simulate.

    Attributes:
        model: Registry name, file or folder.
        cluster: Short name or file; all devices are used.
        system: Key of :data:`~moesim.training.systems.SYSTEMS`; what is None below is its own.
        tp: Devices that share a sequence by heads.
        sp: Devices that share a sequence by tokens, heads inside attention.
        ep: See :class:`~moesim.training.layout.TrainingLayout`; so are the next seven.
        expert_tp: Same.
        pp: Same.
        chunks: Same.
        dp: Same; what is left of the devices.
        sequence: Same.
        micro_batch: Same.
        global_batch: Same.
        overlap: See :class:`~moesim.training.outcome.Options`; so is the next.
        recompute: Same.
        overlap_reduction: Same.
        slowdown: Of kernels in training; the device's and system's own if not given.
        routing: Named distribution of tokens over experts.
        cost: Fitted coefficients, or rooflines alone.
        transforms: Of the model.
        seed: Of the draws.
        check_memory: Refuse what does not fit.
    """

    model: str
    cluster: str
    system: str = "megascale"
    tp: int | None = None
    sp: int | None = None
    ep: int | None = None
    expert_tp: int | None = None
    pp: int = 1
    chunks: int = 1
    dp: int | None = None
    sequence: int = 4096
    micro_batch: int = 1
    global_batch: int | None = None
    overlap: Overlap | None = None
    recompute: Recompute | None = None
    overlap_reduction: bool = True
    slowdown: float | None = None
    routing: str = "uniform"
    cost: CostModel = "fitted"
    transforms: tuple[str, ...] = ()
    seed: int = 0
    check_memory: bool = True


def run_training(request: TrainingRequest) -> TrainingStep:
    """Look everything up and simulate.

    Raises:
        UsageError: If options contradict each other or the model.
        InputError: If a file cannot be used.
        InfeasibleError: If a device's memory does not hold the iteration.
    """
    _check(request)
    system = SYSTEMS[request.system]
    model = load_model(request.model, dense=True, transforms=request.transforms)
    cluster = load_cluster(request.cluster)
    machine = Machine(cluster, ENGINE, request.cost)
    layout = _layout(request, system, model, cluster)
    slowdown, evidence = find_slowdown(cluster.device, system.name)
    options = Options(
        overlap=request.overlap or system.overlap,
        recompute=request.recompute or system.recompute,
        overlap_reduction=request.overlap_reduction,
        gradient_bytes=system.gradient_bytes,
        slowdown=slowdown if request.slowdown is None else request.slowdown,
        slowdown_evidence=evidence,
    )
    return simulate_training(
        model,
        machine,
        layout,
        parse_distribution(request.routing),
        options,
        seed=request.seed,
        check_memory=request.check_memory,
    )


def _check(request: TrainingRequest) -> None:
    if request.system not in SYSTEMS:
        raise UsageError(
            f"--system {request.system!r} is not known\nfix: choose from {', '.join(SYSTEMS)}"
        )
    for option, value in (
        ("--tp", request.tp), ("--sp-attention", request.sp), ("--ep", request.ep),
        ("--expert-tp", request.expert_tp), ("--pp", request.pp), ("--chunks", request.chunks),
        ("--dp", request.dp), ("--micro-batch", request.micro_batch),
        ("--global-batch", request.global_batch),
    ):  # fmt: skip
        if value is not None and not 1 <= value <= 2**20:
            raise UsageError(f"{option} must be 1 … {2**20}; found {value}\nfix: pass {option} 1")
    if not 2 <= request.sequence <= 2**20:
        raise UsageError(
            f"--sequence must be 2 … {2**20}; found {request.sequence}\nfix: pass --sequence 4096"
        )
    if request.tp is not None and request.sp is not None:
        raise UsageError(
            "--tp and --sp-attention both say how attention is shared\nfix: leave out one of them"
        )
    if request.slowdown is not None and not 1 <= request.slowdown <= 10:
        raise UsageError(
            f"--slowdown must be 1 … 10; found {request.slowdown}\nfix: leave it out, or pass 1"
        )


def _layout(
    request: TrainingRequest, system: System, model: ModelSpec, cluster: Cluster
) -> TrainingLayout:
    """What is given, completed: a sequence group per scale-up domain, the rest data parallel."""
    attention: AttentionCut = system.attention
    if request.tp is not None or request.sp is not None:
        attention = "tp" if request.tp is not None else "sp"
    stage = _quotient(cluster.devices, request.pp, "--pp", "devices of the cluster")
    near = gcd(stage, int((cluster.domain_of_device == cluster.domain_of_device[0]).sum()))
    heads = [mixer.heads for mixer in model.mixers if hasattr(mixer, "heads")]
    group = request.tp or request.sp or gcd(near, *heads)
    option = "--tp" if attention == "tp" else "--sp-attention"
    groups = _quotient(stage, group, option, "devices of a stage")
    if request.dp is not None and request.dp != groups:
        raise UsageError(
            f"--dp {request.dp} times {option} {group} times --pp {request.pp} is not the "
            f"{cluster.devices} devices of {cluster.name}\nfix: leave out --dp, or pass --dp "
            f"{groups}"
        )
    expert_tp = request.expert_tp
    if expert_tp is None:
        expert_tp = group if system.uniform else 1
    ep = request.ep
    if ep is None:
        # Experts over the scale-up domain.
        ep = gcd(max(1, max(near, group) // expert_tp), model.experts) if model.experts else 1
    return TrainingLayout(
        attention, group, ep, expert_tp, request.pp, request.chunks, groups, request.sequence,
        request.micro_batch, request.global_batch or groups * request.micro_batch * request.pp,
    )  # fmt: skip


def _quotient(whole: int, part: int, option: str, what: str) -> int:
    if whole % part:
        raise UsageError(
            f"{option} {part} does not divide the {whole} {what}\nfix: pass a divisor of {whole}"
        )
    return whole // part
