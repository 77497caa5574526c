"""From a model, a cluster and a layout to an iteration: calls, seconds, utilisation, memory."""

from __future__ import annotations

from moesim.cluster import Cluster
from moesim.errors import InfeasibleError
from moesim.forward.expert_load import Distribution, draw_layer_tokens
from moesim.forward.machine import Machine
from moesim.forward.price import Price
from moesim.forward.pricing import price_ops
from moesim.forward.work import MoveWork, Op
from moesim.intervals import add_intervals
from moesim.model import ModelSpec
from moesim.schema import Evidence, weakest
from moesim.training.calls import Block, Call, backward
from moesim.training.layer import TrainingShape, check_model, forward_calls
from moesim.training.layout import TrainingLayout
from moesim.training.links import shared_links
from moesim.training.memory import TrainingMemory, device_parameters, training_memory
from moesim.training.outcome import Options, PricedCall, TrainingStep
from moesim.training.overlap import Exchange, Pass
from moesim.training.pipeline import pipeline_s
from moesim.training.reduction import exposed_s, reduction
from moesim.units import format_bytes

__all__ = ["price_calls", "simulate_training"]


def simulate_training(
    model: ModelSpec,
    machine: Machine,
    layout: TrainingLayout,
    routing: Distribution,
    options: Options,
    *,
    seed: int = 0,
    check_memory: bool = True,
) -> TrainingStep:
    """Price an iteration.

    Args:
        model: Sizes.
        machine: Devices and links.
        layout: How the model is spread, and the batch.
        routing: Of tokens over experts.
        options: How the system runs it.
        seed: Of the draws.
        check_memory: Refuse what does not fit.

    Raises:
        UsageError: If the layout does not divide the model, or its attention is not modelled.
        InfeasibleError: If a device's memory does not hold it.
    """
    check_model(model)
    layout.check(model)
    slots = draw_layer_tokens(model, routing, layout.group_tokens, layout.ep, seed)
    shape = TrainingShape.of(model, layout, slots)
    memory = training_memory(shape, options.recompute)
    if check_memory:
        _check_memory(shape, memory, machine.cluster)
    there = forward_calls(shape)
    forward = price_calls(there, machine, options.slowdown)
    back = price_calls(backward(there, options.recompute), machine, options.slowdown)
    forward_s, backward_s = (_blocks_s(calls, options) / layout.pp for calls in (forward, back))
    stages = _stages(forward_s + backward_s, forward, back, layout)
    links = shared_links(machine.cluster, machine.links)
    synced = reduction(device_parameters(shape), links, options.gradient_bytes)
    layers = max(1, model.layers // layout.pp)
    exposed = [
        exposed_s(sync, behind, layers, overlapped=options.overlap_reduction)
        for sync, behind in ((synced.gradient_s, backward_s), (synced.weight_s, forward_s))
    ]
    adam = price_ops([Op("optimizer", MoveWork(synced.optimizer_bytes))], machine)[0]
    optimizer_s = adam.time_s * options.slowdown
    passes_s = pipeline_s(stages, layout.micro_batches, layout.chunks)
    step_s = passes_s + sum(exposed) + optimizer_s
    low, high = _interval((*forward, *back), step_s)
    evidence = weakest(
        Evidence.ASSUMED,  # routing
        options.slowdown_evidence,
        *(priced.priced.price.evidence for priced in (*forward, *back)),
    )
    return TrainingStep(
        shape, machine, options, str(routing), forward, back, stages, forward_s, backward_s,
        synced, exposed[0], exposed[1], optimizer_s, step_s, low, high, memory, evidence,
    )  # fmt: skip


def price_calls(
    calls: tuple[Call, ...], machine: Machine, slowdown: float
) -> tuple[PricedCall, ...]:
    """Price every call, in order; those that go through memory besides take at least that long."""
    prices = price_ops([call.op for call in calls], machine)
    floors = iter(price_ops([call.floor for call in calls if call.floor], machine))
    result = []
    for call, priced in zip(calls, prices, strict=True):
        seconds = priced.price.time_s * call.times
        if call.floor is not None:
            seconds = max(seconds, next(floors).price.time_s)
        if not call.communicates:
            seconds *= slowdown
        result.append(PricedCall(call, priced, seconds))
    return tuple(result)


def _blocks_s(calls: tuple[PricedCall, ...], options: Options) -> float:
    """Seconds of all layers' calls of one way, block by block."""
    blocks: tuple[Block, ...] = ("attention", "moe", "dense")
    return sum(
        _pass([c for c in calls if c.call.block == block]).time_s(options.overlap)
        for block in blocks
    )


def _pass(calls: list[PricedCall]) -> Pass:
    """Calls of one block, all layers, as operators and transfers."""
    seconds = {c.call.op.name: c.time_s * c.call.op.layers for c in calls}
    compute = [c for c in calls if not c.call.communicates]
    exchanges = []
    left = {c.call.op.name: 1.0 for c in compute if not c.call.independent}
    for c in calls:
        if c.call.communicates:
            partner = c.call.partner
            share = min(c.call.partner_share, left.get(partner, 0.0))
            left[partner] = left.get(partner, 0.0) - share
            exchanges.append(
                Exchange(
                    seconds[c.call.op.name],
                    seconds.get(partner, 0.0) * share,
                    getattr(c.call.op.work, "ranks", 1),
                )
            )
    return Pass(
        sum(seconds[c.call.op.name] for c in compute),
        sum(seconds[c.call.op.name] for c in compute if c.call.independent),
        tuple(exchanges),
    )


def _stages(
    layers_s: float,
    forward: tuple[PricedCall, ...],
    back: tuple[PricedCall, ...],
    layout: TrainingLayout,
) -> tuple[float, ...]:
    """[pp] seconds of a micro-batch: the embedding on the first, head and loss on the last."""
    ends = {"first": 0.0, "last": 0.0}
    for c in (*forward, *back):
        if c.call.block == "ends":
            ends["first" if c.call.op.name.startswith("embedding") else "last"] += c.time_s
    stages = [layers_s] * layout.pp
    stages[0] += ends["first"]
    stages[-1] += ends["last"]
    return tuple(stages)


def _interval(calls: tuple[PricedCall, ...], step_s: float) -> tuple[float, float]:
    """The calls' own interval, scaled to the iteration."""

    def part(c: PricedCall, price: Price) -> tuple[str, float, float, float]:
        scale = c.time_s / price.time_s * c.call.op.layers if price.time_s else 0.0
        operator = c.call.op.operator
        return operator, price.time_s * scale, price.lo_s * scale, price.hi_s * scale

    total, low, high = add_intervals(part(c, c.priced.price) for c in calls)
    return step_s * low / total, step_s * high / total


def _check_memory(shape: TrainingShape, memory: TrainingMemory, cluster: Cluster) -> None:
    available = cluster.device.memory_bytes
    if memory.total > available:
        raise InfeasibleError(
            f"{shape.model.name} does not fit on {cluster.name} as {shape.layout}: a device needs "
            f"{format_bytes(memory.total)} ({format_bytes(memory.weights)} weights, "
            f"{format_bytes(memory.gradients)} gradients, {format_bytes(memory.optimizer)} "
            f"optimizer, {format_bytes(memory.activations)} activations) and has "
            f"{format_bytes(available)}\n"
            "fix: use more devices, more --pp or --ep, --recompute full, or a smaller "
            "--micro-batch"
        )
