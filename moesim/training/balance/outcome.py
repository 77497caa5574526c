"""A balanced iteration: what was asked of the system, and what came out."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.forward.machine import Machine
from moesim.intervals import add_intervals
from moesim.model import ModelSpec
from moesim.operators.roofline_errors import roofline_interval
from moesim.training.balance.memory import ExpertMemory
from moesim.training.flops import training_flops_per_token
from moesim.training.layout import TrainingLayout
from moesim.training.outcome import PricedCall

__all__ = ["BalancedStep", "Balancing"]


@dataclass(frozen=True)
class Balancing:
    """How a system balances.

    Attributes:
        system: One of ``BALANCERS``.
        interval: Iterations between rearrangements; Hecate re-shards ten times as seldom.
        room: Copies of one layer that a device has room for; by its memory, if None.
        slots: FlexMoE's slots per device and layer; three times its share, if None.
        slowdown: Of kernels in training.
        samples: Iterations that are priced.
        scores_in_memory: Whether attention writes its scores out (V100 has no FlashAttention).
    """

    system: str
    interval: int = 10
    room: int | None = None
    slots: int | None = None
    slowdown: float = 1.0
    samples: int = 10
    scores_in_memory: bool = False


@dataclass(frozen=True, eq=False)
class BalancedStep:
    """One iteration, mean over those priced.

    Attributes:
        model: Sizes.
        machine: Cluster and cost model.
        layout: Data parallel attention, experts over all devices.
        balancing: The system.
        other_s: Attention, routers, head: forward and backward.
        alltoall_s: All layers' ways to experts and back.
        experts_s: All layers' experts, slowest device.
        sparse_s: Weights to copies and gradients back, alone.
        exposed_s: Of that, what is waited for.
        moved_s: Rearranging, per iteration.
        reduce_s: Dense gradients.
        optimizer_s: Adam.
        hot: Hecate's overlap degree.
        balance: Mean over busiest load of devices, mean over layers.
        sparse_bytes: That all devices receive for copies, both ways.
        memory: Of experts, mean over iterations of the fullest device.
        dense_bytes: Weights, gradients and optimizer state of everything else.
        activation_bytes: Kept for the backward pass.
        calls: Priced calls of one layer kind, forward and backward.
    """

    model: ModelSpec
    machine: Machine
    layout: TrainingLayout
    balancing: Balancing
    other_s: float
    alltoall_s: float
    experts_s: float
    sparse_s: float
    exposed_s: float
    moved_s: float
    reduce_s: float
    optimizer_s: float
    hot: int
    balance: float
    sparse_bytes: float
    memory: ExpertMemory
    dense_bytes: float
    activation_bytes: float
    calls: tuple[PricedCall, ...]

    @property
    def moe_s(self) -> float:
        """Dispatch, experts, combine and what sparse collectives do not hide."""
        return self.alltoall_s + self.experts_s + self.exposed_s

    @property
    def step_s(self) -> float:
        """Seconds of an iteration."""
        return self.other_s + self.moe_s + self.moved_s + self.reduce_s + self.optimizer_s

    @property
    def memory_bytes(self) -> float:
        """Of the device that holds most."""
        return self.memory.total + self.dense_bytes + self.activation_bytes

    @property
    def tokens_per_s(self) -> float:
        """Of the whole job."""
        return self.layout.tokens / self.step_s

    def interval(self) -> tuple[float, float]:
        """Ends of the 80 % interval: of kernels their own, of transfers that of rooflines."""
        parts = []
        for c in self.calls:
            price = c.priced.price
            scale = c.time_s / price.time_s * c.call.op.layers
            parts.append(
                (c.call.op.operator, price.time_s * scale, price.lo_s * scale, price.hi_s * scale)
            )
        for seconds in (self.alltoall_s, self.exposed_s + self.moved_s, self.reduce_s):
            low, high = roofline_interval("dispatch", max(seconds, 1e-9))
            parts.append(("dispatch", seconds, seconds * low, seconds * high))
        parts.append(("small", self.optimizer_s, self.optimizer_s, self.optimizer_s))
        _, low, high = add_intervals(parts)
        return low, high

    @property
    def mfu(self) -> float:
        """Model FLOPs over peak FLOPs."""
        flops = training_flops_per_token(self.model, self.layout.sequence) * self.layout.tokens
        return flops / (self.step_s * self.layout.devices * self.machine.peaks["bf16"])
