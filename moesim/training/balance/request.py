"""A balanced iteration as a person asks for it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from moesim.cluster import load_cluster
from moesim.cost_model import CostModel
from moesim.errors import UsageError
from moesim.forward.machine import Machine
from moesim.model import load_model
from moesim.schema import Evidence
from moesim.training.balance.loads import drifting_loads, loads_of_trace
from moesim.training.balance.outcome import BalancedStep, Balancing
from moesim.training.balance.plans import BALANCERS, HISTORY
from moesim.training.balance.simulate import simulate_balanced
from moesim.training.coefficients import find_slowdown
from moesim.training.layout import TrainingLayout
from moesim.training.request import ENGINE

__all__ = ["BalancedAnswer", "BalancedRequest", "run_balanced"]

SAMPLES = 10
"""Iterations that are priced: one interval of systems that rearrange."""

SEEN = 100
"""Iterations before those: Hecate's interval of sharding (arXiv 2502.02581, section 4.1)."""


@dataclass(frozen=True)
class BalancedRequest:
    """What to simulate.

    Attributes:
        model: Registry name, file or folder.
        cluster: Short name or file; experts lie over all its devices.
        system: One of :data:`~moesim.training.balance.plans.BALANCERS`.
        sequence: Tokens per sequence.
        micro_batch: Sequences of a device in an iteration.
        routing: ``balanced``, or ``zipf:S`` whose ranks drift.
        drift: Correlation of experts' popularity from one iteration to the next.
        trace: Routing trace whose windows are iterations, instead.
        interval: Iterations between rearrangements.
        room: Copies of one layer that a device has room for; by its memory, if None.
        slots: FlexMoE's slots per device and layer; three times its share, if None.
        flash_attention: Whether attention keeps its scores on chip.
        slowdown: Of kernels in training; the device's own if not given.
        cost: Fitted coefficients, or rooflines alone.
        transforms: Of the model.
        seed: Of the loads.
    """

    model: str
    cluster: str
    system: str = "hecate"
    sequence: int = 2048
    micro_batch: int = 1
    routing: str = "zipf:0.65"
    drift: float = 0.99
    trace: Path | None = None
    interval: int = 10
    room: int | None = None
    slots: int | None = None
    flash_attention: bool = True
    slowdown: float | None = None
    cost: CostModel = "fitted"
    transforms: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True, eq=False)
class BalancedAnswer:
    """A system beside plain expert parallelism on the same loads.

    Attributes:
        step: The system's iteration.
        plain: Expert parallelism's.
        routing: Name of the loads.
        evidence: The weakest that went in.
    """

    step: BalancedStep
    plain: BalancedStep
    routing: str
    evidence: Evidence

    @property
    def speedup(self) -> float:
        """Over expert parallelism."""
        return self.plain.step_s / self.step.step_s


def run_balanced(request: BalancedRequest) -> BalancedAnswer:
    """Look everything up and simulate.

    Raises:
        UsageError: If options contradict each other or the model.
        InputError: If a file cannot be used.
        InfeasibleError: If a device's memory does not hold what it owns.
    """
    exponent = _check(request)
    model = load_model(request.model, transforms=request.transforms)
    cluster = load_cluster(request.cluster)
    machine = Machine(cluster, ENGINE, request.cost)
    devices = cluster.devices
    layout = TrainingLayout(
        "tp", 1, devices, 1, 1, 1, devices, request.sequence, request.micro_batch,
        request.micro_batch * devices,
    )  # fmt: skip
    layout.check(model)
    copies = round(layout.tokens * model.copies_per_token)
    layers, count = len(model.moe_layers), HISTORY + SEEN + SAMPLES
    if request.trace is None:
        loads = drifting_loads(
            count, layers, model.experts, copies, exponent, request.drift, request.seed
        )
    else:
        loads = loads_of_trace(request.trace, layers, model.experts, copies, count)
    slowdown = find_slowdown(cluster.device, request.system)[0]
    balancing = Balancing(
        request.system,
        interval=request.interval,
        room=request.room,
        slots=request.slots,
        slowdown=slowdown if request.slowdown is None else request.slowdown,
        samples=SAMPLES,
        scores_in_memory=not request.flash_attention,
    )
    step = simulate_balanced(model, machine, layout, loads, balancing)
    plain = step
    if request.system != "ep":
        plain = simulate_balanced(model, machine, layout, loads, replace(balancing, system="ep"))
    routing = request.routing if request.trace is None else "trace"
    return BalancedAnswer(step, plain, routing, Evidence.ASSUMED)


def _check(request: BalancedRequest) -> float:
    """The exponent of Zipf's law."""
    if request.system not in BALANCERS:
        raise UsageError(
            f"--system {request.system!r} is not known\nfix: choose from {', '.join(BALANCERS)}"
        )
    for option, value, least in (
        ("--micro-batch", request.micro_batch, 1), ("--sequence", request.sequence, 2),
        ("--interval", request.interval, 1), ("--room", request.room, 0),
        ("--slots", request.slots, 1),
    ):  # fmt: skip
        if value is not None and not least <= value <= 2**20:
            raise UsageError(
                f"{option} must be {least} … {2**20}; found {value}\nfix: pass another {option}"
            )
    if not 0 <= request.drift <= 1:
        raise UsageError(f"--drift must be 0 … 1; found {request.drift}\nfix: pass --drift 0.99")
    if request.slowdown is not None and not 1 <= request.slowdown <= 10:
        raise UsageError(
            f"--slowdown must be 1 … 10; found {request.slowdown}\nfix: leave it out, or pass 1"
        )
    if request.routing == "balanced":
        return 0.0
    match = re.fullmatch(r"zipf:(\d{1,2}(?:\.\d{1,6})?)", request.routing)
    if match is None:
        raise UsageError(
            f"--routing {request.routing!r} has no form that drifts from iteration to iteration\n"
            "fix: pass balanced or zipf:S, such as zipf:0.65, or --trace FOLDER"
        )
    return float(match.group(1))
