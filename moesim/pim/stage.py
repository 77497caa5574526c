"""One stage of a model on devices with two processors: seconds, joules, and which one did what.

The calls are those of :mod:`moesim.forward.calls`; here each finds its processor (Duplex, arXiv
2409.01141, section V). Dense GEMMs and attention of prompts stay on the main one; attention of
decoding sequences and experts go by ``mode``:

``main``
    The main processor alone: the plain GPU.
``choose``
    Each on the processor that is faster for it, one after the other.
``split``
    Experts are divided between both, and attention of decoding sequences runs beside that of
    prompts (co-processing).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from moesim.errors import UsageError
from moesim.forward.calls import StepShape, step_ops
from moesim.forward.expert_load import Distribution, draw_layer_tokens
from moesim.forward.formats import Formats
from moesim.forward.layout import Layout, StepLoad
from moesim.forward.machine import Machine
from moesim.forward.roofline import roofline_s
from moesim.forward.work import (
    OUTPUT_BYTES,
    AttentionWork,
    CollectiveWork,
    ExpertWork,
    Op,
    TransferWork,
)
from moesim.model import ModelSpec
from moesim.pim.processors import MEMORY_EFFICIENCY, Processor, processors_of
from moesim.pim.split import split_experts

__all__ = ["MODES", "Call", "Mode", "Stage", "StagePricer"]

UNIFORM = Distribution("uniform")
"""As Duplex routes."""

Mode = Literal["main", "choose", "split"]
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True)
class Call:
    """One kind of call of a stage.

    Attributes:
        op: The call and the layers it comes back in.
        time_s: Of one call, on the slowest device.
        joules: Of one call, on all devices.
        processor: Whose it is; ``both`` where it is divided, ``link`` for communication.
        near_share: Of its operations, done near the memory.
        roofline_s: Of one call: that no division over both processors can beat.
    """

    op: Op
    time_s: float
    joules: float
    processor: str
    near_share: float
    roofline_s: float


@dataclass(frozen=True)
class Stage:
    """A stage: one forward step of all layers.

    Attributes:
        calls: In order.
        time_s: Of the whole stage, co-processing counted.
        joules: Of all devices.
    """

    calls: tuple[Call, ...]
    time_s: float
    joules: float


@dataclass(frozen=True, eq=False)
class StagePricer:
    """Prices stages of one model on one system.

    Attributes:
        model: Sizes.
        machine: Devices and links.
        layout: How the model is spread.
        formats: Of weights and cache.
        mode: Who computes what.
        routing: Of tokens over experts.
        efficiency: Sustained shares of bandwidth, of the main processor and the near one.
        seed: Of the draws.
    """

    model: ModelSpec
    machine: Machine
    layout: Layout
    formats: Formats
    mode: Mode = "split"
    routing: Distribution = UNIFORM
    efficiency: tuple[float, float] = (MEMORY_EFFICIENCY, MEMORY_EFFICIENCY)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.layout.pp > 1:
            raise UsageError("--pp with a second processor is not modelled\nfix: leave out --pp")

    @property
    def processors(self) -> tuple[Processor, Processor]:
        """Main and near."""
        return processors_of(self.machine.device, self.efficiency)

    def shape(self, load: StepLoad) -> StepShape:
        """What the calls follow from."""
        tokens = load.busiest(self.layout.dp).tokens * self.layout.dp
        slots = draw_layer_tokens(self.model, self.routing, tokens, self.layout.ep, self.seed)
        return StepShape(self.model, self.layout, load, self.formats, slots)

    def price(self, load: StepLoad) -> Stage:
        """A stage of so many sequences over all devices."""
        calls = tuple(self._call(op) for op in step_ops(self.shape(load)))
        total = sum(call.time_s * call.op.layers for call in calls)
        joules = sum(call.joules * call.op.layers for call in calls)
        if self.mode == "split":
            total -= self._beside(calls)
        return Stage(calls, total, joules)

    def _beside(self, calls: tuple[Call, ...]) -> float:
        """Seconds of attention near the memory that pass beside attention on the main processor."""
        main, near = self.processors
        times = {main.name: 0.0, near.name: 0.0}
        for call in calls:
            if isinstance(call.op.work, AttentionWork):
                times[call.processor] += call.time_s * call.op.layers
        return min(times.values())

    def _call(self, op: Op) -> Call:
        work = op.work
        if isinstance(work, ExpertWork):
            return self._experts(op, work)
        if isinstance(work, CollectiveWork | TransferWork):
            return self._communicate(op, work)
        main, near = self.processors
        may = self.mode != "main" and isinstance(work, AttentionWork) and work.phase == "decode"
        times = [float(unit.seconds(work.flops, work.bytes)) for unit in (main, near)]
        on_near = may and times[1] < times[0]
        unit = near if on_near else main
        joules = unit.joules(work.flops, work.bytes) * self.layout.devices
        roofline = min(times) if may else times[0]
        return Call(op, times[on_near], joules, unit.name, float(on_near), roofline)

    def _communicate(self, op: Op, work: CollectiveWork | TransferWork) -> Call:
        """Over a ring every hop has its latency; the roofline has one of them."""
        roofline = time_s = roofline_s(work, self.machine)
        links = self.machine.links
        inside = min(work.ranks, links.domain_devices)
        if isinstance(work, CollectiveWork) and inside > 1:
            rounds = 2 if work.collective == "all_reduce" else 1
            time_s += (rounds * (inside - 1) - 1) * links.up_latency_s
        main, _ = self.processors
        # What is sent is read from memory, what is received is written.
        joules = main.joules(0.0, 2 * work.bytes) * self.layout.devices
        return Call(op, time_s, joules, "link", 0.0, roofline)

    def _experts(self, op: Op, work: ExpertWork) -> Call:
        main, near = self.processors
        tokens = work.slot_tokens  # [W, R, s]
        weights = work.matrices * work.hidden * work.width
        per_copy = (
            work.hidden + 2 * work.width
        ) * work.activation_bytes + OUTPUT_BYTES * work.hidden
        flops = tokens * (2.0 * weights)
        moved = (tokens > 0) * (weights * work.weight_bytes) + tokens * per_copy
        flat = tokens.reshape(-1, tokens.shape[-1])
        main_s = main.seconds(flops, moved).reshape(flat.shape)
        near_s = near.seconds(flops, moved).reshape(flat.shape)
        if self.mode == "main":
            on_near: np.ndarray = np.zeros(flat.shape, bool)
        elif self.mode == "choose":
            on_near = near_s < main_s
        else:
            table = processors_of(self.machine.device)
            on_near = split_experts(tokens.reshape(flat.shape), *table, work.weight_bytes)
        busy = np.where(on_near, 0.0, main_s).sum(-1), np.where(on_near, near_s, 0.0).sum(-1)
        ranks = np.maximum(*busy) if self.mode == "split" else np.add(*busy)
        ranks = ranks.reshape(tokens.shape[:2])
        joules = np.where(
            on_near.reshape(tokens.shape),
            near.joules(1.0, 0.0) * flops + near.joules(0.0, 1.0) * moved,
            main.joules(1.0, 0.0) * flops + main.joules(0.0, 1.0) * moved,
        )
        total = flops.sum()
        share = float(flops[on_near.reshape(tokens.shape)].sum() / total) if total else 0.0
        # Both processors at their full rates, nothing indivisible.
        bound = np.maximum(
            flops.sum(-1) / (main.flop_per_s + near.flop_per_s),
            moved.sum(-1) / (main.bytes_per_s + near.bytes_per_s),
        )
        used = on_near.any(), not on_near.all()
        name = "both" if all(used) and self.mode == "split" else near.name if used[0] else main.name
        return Call(
            op,
            float(ranks.max(-1).mean()),
            float(joules.sum((1, 2)).mean()) * self.layout.moe_tp,
            name,
            share,
            float(bound.max(-1).mean()),
        )
