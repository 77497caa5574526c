"""Calls of a layer's forward and backward pass on one device.

The works are those of a forward step (:mod:`moesim.forward.work`). Backward follows from forward:

- a product has two gradients of as many FLOPs: of its input, which goes on to the layer before,
  and of its weights, which is added to a float32 sum in memory;
- attention takes 2.5 times its forward FLOPs: five products instead of two (FlashAttention-2,
  arXiv 2307.08691, section 3.1.2);
- an all-gather turns into a reduce-scatter and back, an all-to-all into the opposite one;
- element-by-element calls read the incoming gradient besides their input and write another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from moesim.forward.work import (
    OUTPUT_BYTES,
    AttentionWork,
    CollectiveWork,
    ExpertWork,
    GemmWork,
    MoveWork,
    Op,
)
from moesim.operators.collectives import Collective
from moesim.training.layout import Recompute

__all__ = ["ACCUMULATE_BYTES", "ATTENTION_BACKWARD", "Block", "Call", "backward"]

Block = Literal["attention", "moe", "dense", "ends"]

ATTENTION_BACKWARD = 2.5
"""FLOPs of attention's backward pass over those of its forward pass."""

ACCUMULATE_BYTES = 8
"""Per weight and micro-batch: the float32 gradient sum is read and written."""

MOVE_BACKWARD = 1.5
"""Bytes of an element-by-element backward over forward: input, incoming and outgoing gradient
instead of input and output."""

_OPPOSITE: dict[Collective, Collective] = {
    "all_gather": "reduce_scatter",
    "reduce_scatter": "all_gather",
    "all_reduce": "all_reduce",
    "alltoall": "alltoall",
}


@dataclass(frozen=True)
class Call:
    """A call of one pass through a layer.

    Attributes:
        op: Work on the busiest device, and in how many layers it comes back.
        block: Part of the layer.
        times: Multiple of the work's time.
        floor: What it takes at least besides: gradient sums that go through memory.
        independent: Neither needs nor feeds a transfer of its block.
        cheap: Selective recomputation repeats it in backward: norms, activations, gathers.
        partner: Of a transfer: name of the operator that needs or makes what is sent.
        partner_share: Of that operator, what is fused with the transfer.
    """

    op: Op
    block: Block
    times: float = 1.0
    floor: Op | None = None
    independent: bool = False
    cheap: bool = False
    partner: str = ""
    partner_share: float = 1.0

    @property
    def communicates(self) -> bool:
        """Whether it is a transfer."""
        return isinstance(self.op.work, CollectiveWork)


def backward(forward: tuple[Call, ...], recompute: Recompute) -> tuple[Call, ...]:
    """Calls of the backward pass, recomputed ones included.

    Args:
        forward: Calls of the forward pass.
        recompute: What was not kept.
    """
    return tuple(_backward(forward, recompute))


def _backward(forward: tuple[Call, ...], recompute: Recompute) -> Iterator[Call]:
    for call in forward:
        again = recompute == "full" or (recompute == "selective" and call.cheap)
        if again and call.block != "ends":
            name = f"{call.op.name}.again"
            # A partner that runs again, or else the one whose gradient waits for what is gathered.
            partner = f"{call.partner}{'.again' if recompute == 'full' else '.weights'}"
            yield replace(
                call,
                op=replace(call.op, name=name),
                partner=partner if call.partner else "",
                # Repeated operators hide what travels, unless they wait for it themselves.
                independent=recompute == "selective" and not call.communicates,
            )
    for call in reversed(forward):
        yield from _gradients(call)


def _gradients(call: Call) -> Iterator[Call]:
    op, work = call.op, call.op.work
    plain = replace(call, cheap=False)
    if isinstance(work, CollectiveWork):
        opposite = replace(work, collective=_OPPOSITE[work.collective])
        yield replace(
            plain,
            op=replace(op, name=f"{op.name}.grad", work=opposite),
            partner=f"{call.partner}.grad",
        )
    elif isinstance(work, GemmWork):
        yield replace(
            plain, op=replace(op, name=f"{op.name}.grad", work=replace(work, n=work.k, k=work.n))
        )
        weights = replace(work, m=work.n, n=work.k, k=work.m)
        yield replace(
            plain,
            op=replace(op, name=f"{op.name}.weights", work=weights),
            floor=_accumulate(op, float(work.batch * work.n * work.k)),
            independent=True,
        )
    elif isinstance(work, ExpertWork):
        # Both gradients at the rate of the forward kernel on the same histogram.
        yield replace(plain, op=replace(op, name=f"{op.name}.grad"))
        slots = work.slot_tokens.shape[2]
        weights_of = float(slots * work.matrices * work.hidden * work.width)
        yield replace(
            plain,
            op=replace(op, name=f"{op.name}.weights"),
            floor=_accumulate(op, weights_of),
            independent=True,
        )
        # Gate and up are read with the incoming gradient, and two gradients written.
        inner = work.busiest_copies * work.width * OUTPUT_BYTES * (2 * work.matrices - 1)
        yield Call(replace(op, name=f"{op.name}.activation.grad", work=MoveWork(inner)), call.block)
    elif isinstance(work, AttentionWork):
        yield replace(
            plain,
            op=replace(op, name=f"{op.name}.grad"),
            times=call.times * ATTENTION_BACKWARD,
        )
    else:
        yield replace(
            plain, op=replace(op, name=f"{op.name}.grad"), times=call.times * MOVE_BACKWARD
        )


def _accumulate(op: Op, weights: float) -> Op:
    return replace(op, name=f"{op.name}.sum", work=MoveWork(ACCUMULATE_BYTES * weights))
