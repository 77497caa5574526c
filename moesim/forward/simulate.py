"""From a model, a cluster and a load to a step: calls, seconds, memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from moesim.cluster import Cluster
from moesim.errors import InfeasibleError
from moesim.forward.calls import StepShape, step_ops
from moesim.forward.drafts import draft_shape, tokens_per_step
from moesim.forward.energy import StepEnergy, step_energy
from moesim.forward.expert_load import Distribution, draw_layer_tokens
from moesim.forward.formats import Formats
from moesim.forward.layout import Layout, StepLoad
from moesim.forward.machine import Machine
from moesim.forward.memory import DeviceMemory, device_memory
from moesim.forward.overlap import Overlap, halves, hidden_s, micro_batch
from moesim.forward.pricing import PricedOp, price_ops
from moesim.intervals import add_intervals
from moesim.model import ModelSpec
from moesim.schema import Evidence, weakest
from moesim.units import format_bytes

__all__ = ["ForwardStep", "simulate_step"]


@dataclass(frozen=True)
class ForwardStep:
    """One forward step of a whole model.

    Attributes:
        shape: Model, layout, and the load of one micro-batch.
        machine: Cluster, engine, cost model.
        routing: Name of the distribution of tokens over experts, or ``trace``.
        batch_tokens: Tokens that all sequences gain, accepted drafts among them.
        ops: Its calls in order, priced.
        hidden_s: Seconds of calls that run beside others.
        step_s: Seconds until every sequence has its next token: all calls but what is hidden.
        lo_s: Lower end of the 80 % interval.
        hi_s: Upper end.
        energy: Of all devices; None where nothing is known of their power.
        memory: Of the device that holds most.
        evidence: The weakest of the calls'.
    """

    shape: StepShape
    machine: Machine
    routing: str
    batch_tokens: float
    ops: tuple[PricedOp, ...]
    hidden_s: float
    step_s: float
    lo_s: float
    hi_s: float
    energy: StepEnergy | None
    memory: DeviceMemory
    evidence: Evidence

    @property
    def tokens_per_s(self) -> float:
        """New tokens of the whole deployment per second; every stage is busy."""
        return self.batch_tokens / self.step_s


def simulate_step(
    model: ModelSpec,
    machine: Machine,
    layout: Layout,
    load: StepLoad,
    formats: Formats,
    routing: Distribution | np.ndarray,
    *,
    seed: int = 0,
    overlap: Overlap = "none",
    acceptance: float = 0.0,
    check_memory: bool = True,
) -> ForwardStep:
    """Price a step.

    With pipeline stages the sequences are divided into as many micro-batches, one in each stage;
    a step is one micro-batch's way through all of them.

    Args:
        model: Sizes.
        machine: Devices, links, engine.
        layout: How the model is spread.
        load: Sequences over all devices.
        formats: Of weights and cache.
        routing: A named distribution, or [W, R, s] tokens of the slots of every expert-parallel
            rank.
        seed: Of the draws.
        overlap: What runs beside what.
        acceptance: Probability that a draft is accepted if those before it were.
        check_memory: Refuse what does not fit.

    Raises:
        InfeasibleError: If a device's memory does not hold the step.
    """

    def make(own: StepLoad) -> StepShape:
        tokens = own.busiest(layout.dp).tokens * layout.dp
        if isinstance(routing, Distribution):
            slots = draw_layer_tokens(model, routing, tokens, layout.ep, seed, layout.redundant)
        else:
            # A share of a recorded batch has that share of every slot's tokens.
            slots = routing * (tokens / (mine.busiest(layout.dp).tokens * layout.dp))
        return StepShape(model, layout, own, formats, slots)

    mine = load.busiest(layout.pp)
    half = micro_batch(mine.busiest(layout.dp), layout.dp) if halves(overlap) else None
    shape = replace(
        make(mine), half=None if half is None else make(half), **draft_shape(model, mine, make)
    )
    memory = device_memory(shape)
    if check_memory:
        _check_memory(shape, memory, machine.cluster)
    ops = tuple(price_ops(step_ops(shape), machine))
    total, low, high = add_intervals(
        (
            priced.op.operator,
            priced.time_s,
            priced.price.lo_s * priced.op.layers,
            priced.price.hi_s * priced.op.layers,
        )
        for priced in ops
    )
    beside_s = hidden_s(
        overlap,
        [(p.op, p.time_s, p.price.held_s * p.op.layers) for p in ops],
        shape,
        None if machine.device.cores is None else int(machine.device.cores.value),
    )
    shorter = 1 - beside_s / total
    total, low, high = total * shorter, low * shorter, high * shorter
    evidence = weakest(*(priced.price.evidence for priced in ops))
    name = str(routing) if isinstance(routing, Distribution) else "trace"
    gained = tokens_per_step(load, acceptance)
    energy = step_energy(ops, machine, layout.devices, gained, (total, low, high))
    return ForwardStep(
        shape, machine, name, gained, ops, beside_s, total, low, high, energy, memory, evidence
    )


def _check_memory(shape: StepShape, memory: DeviceMemory, cluster: Cluster) -> None:
    available = cluster.device.memory_bytes
    if memory.total > available:
        weights = memory.attention + memory.dense + memory.experts + memory.embedding
        raise InfeasibleError(
            f"{shape.model.name} does not fit on {cluster.name} as {shape.layout}: a device needs "
            f"{format_bytes(memory.total)} ({format_bytes(weights)} weights, "
            f"{format_bytes(memory.cache)} cache, {format_bytes(memory.activations)} activations) "
            f"and has {format_bytes(available)}\n"
            "fix: use more devices, another layout, a smaller --batch or --context, or narrower "
            "formats"
        )
