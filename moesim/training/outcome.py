"""An iteration of training: how it is run, and what came out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from moesim.forward.machine import Machine
from moesim.forward.pricing import PricedOp
from moesim.schema import Evidence
from moesim.training.calls import Call
from moesim.training.flops import training_flops_per_token
from moesim.training.layer import TrainingShape
from moesim.training.layout import Overlap, Recompute
from moesim.training.memory import TrainingMemory
from moesim.training.pipeline import bubble_fraction
from moesim.training.reduction import Reduction

__all__ = ["Options", "PricedCall", "TrainingStep"]


@dataclass(frozen=True)
class Options:
    """How a system runs an iteration.

    Attributes:
        overlap: Of communication within a layer with computation.
        recompute: What backward computes again.
        overlap_reduction: Gradients and new weights travel behind passes.
        gradient_bytes: Per gradient on its way to be added up.
        slowdown: Of kernels in training.
        slowdown_evidence: What that rests on.
    """

    overlap: Overlap = "full"
    recompute: Recompute = "selective"
    overlap_reduction: bool = True
    gradient_bytes: float = 4.0
    slowdown: float = 1.0
    slowdown_evidence: Evidence = Evidence.ASSUMED


@dataclass(frozen=True)
class PricedCall:
    """A call of one micro-batch with its seconds on one stage.

    Attributes:
        call: The call.
        priced: Price of its op.
        time_s: Of one layer's call, slowdown included.
    """

    call: Call
    priced: PricedOp
    time_s: float

    @property
    def bound(self) -> str:
        """What decides its time."""
        return self.priced.bound


@dataclass(frozen=True, eq=False)
class TrainingStep:
    """One iteration.

    Attributes:
        shape: Model, layout, routing.
        machine: Cluster and cost model.
        options: How it is run.
        routing: Name of the distribution of tokens over experts, or ``trace``.
        forward: Calls of a micro-batch's forward pass over all layers.
        backward: The same of its backward pass.
        stage_s: [pp] forward and backward of a micro-batch on each stage.
        forward_s: Of a micro-batch on a stage without its ends.
        backward_s: The same.
        reduction: Gradients and weights over copies, alone.
        gradient_exposed_s: Waited for after the last backward pass.
        weight_exposed_s: Waited for in the next forward pass.
        optimizer_s: Adam.
        step_s: Seconds of the iteration.
        lo_s: Lower end of the 80 % interval.
        hi_s: Upper end.
        memory: Of the device that holds most.
        evidence: The weakest that went in.
    """

    shape: TrainingShape
    machine: Machine
    options: Options
    routing: str
    forward: tuple[PricedCall, ...]
    backward: tuple[PricedCall, ...]
    stage_s: tuple[float, ...]
    forward_s: float
    backward_s: float
    reduction: Reduction
    gradient_exposed_s: float
    weight_exposed_s: float
    optimizer_s: float
    step_s: float
    lo_s: float
    hi_s: float
    memory: TrainingMemory
    evidence: Evidence

    @property
    def tokens_per_s(self) -> float:
        """Of the whole job."""
        return self.shape.layout.tokens / self.step_s

    @cached_property
    def mfu(self) -> float:
        """Model FLOPs over peak FLOPs of the iteration; recomputed ones do not count."""
        layout = self.shape.layout
        flops = training_flops_per_token(self.shape.model, layout.sequence) * layout.tokens
        return flops / (self.step_s * layout.devices * self.machine.peaks["bf16"])

    @property
    def bubble(self) -> float:
        """Idle over busy time of the pipeline."""
        layout = self.shape.layout
        return bubble_fraction(layout.pp, layout.micro_batches, layout.chunks)

    @property
    def communication_s(self) -> float:
        """Of a micro-batch on a stage, alone."""
        return self._sum(communicates=True)

    @property
    def compute_s(self) -> float:
        """Of a micro-batch on a stage, alone."""
        return self._sum(communicates=False)

    def _sum(self, *, communicates: bool) -> float:
        calls = (*self.forward, *self.backward)
        return (
            sum(
                priced.time_s * priced.call.op.layers
                for priced in calls
                if priced.call.communicates == communicates and priced.call.block != "ends"
            )
            / self.shape.layout.pp
        )
