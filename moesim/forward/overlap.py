"""Communication beside computation: what of a step's calls is hidden behind others.

A layer's attention (a), dispatch (d), experts (f) and combine (b) follow one another for one set of
tokens. Engines hide transfers in three ways:

- ``shared-expert``: shared experts run beside the transfers of the layer (vLLM, TensorRT-LLM).
- ``two-batch``: the batch is cut in two, and the halves' stages alternate on one stream in the
  order of SGLang's two-batch overlap (srt/operations_strategy.py), made after DeepSeek's: see
  :func:`_decode_s` and :func:`_prefill_s`.
- ``dual-microbatch``: two halves in stages so fine that a transfer never waits for one kernel
  alone: the longer of all kernels and all transfers of a layer, the most that two halves can hide.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import ceil
from typing import Literal, get_args

from moesim.forward.calls import StepShape
from moesim.forward.layout import Sequences, StepLoad
from moesim.forward.work import AttentionWork, CollectiveWork, Op, TransferWork
from moesim.operators.comm_fits import DEFAULT_SMS

__all__ = ["OVERLAPS", "Overlap", "halves", "hidden_s", "micro_batch"]

Overlap = Literal["none", "shared-expert", "two-batch", "dual-microbatch"]

OVERLAPS: tuple[Overlap, ...] = get_args(Overlap)

_BEHIND_EXPERTS = ("moe.combine", "moe.reduce_scatter", "moe.all_reduce", "moe.tp_all_gather")

_BEFORE_DISPATCH = ("moe.norm", "moe.router", "moe.top_k")


def halves(overlap: Overlap) -> bool:
    """Whether the batch is cut in two."""
    return overlap in ("two-batch", "dual-microbatch")


def micro_batch(own: StepLoad, ways: int) -> StepLoad | None:
    """The busier half of every attention group's sequences; None where there is nothing to cut.

    A lone prompt is cut into chunks, whose mean number of earlier tokens is that of the half
    returned here: two of it have as many pairs of tokens as the whole.

    Args:
        own: Sequences of one attention group.
        ways: Such groups.
    """
    if all(group.count == 1 and group.phase == "decode" for group in own.groups):
        return None
    return StepLoad(tuple(_half(group, ways) for group in own.groups))


def _half(group: Sequences, ways: int) -> Sequences:
    if group.count == 1 and group.phase == "prefill":
        new = ceil(group.new_tokens / 2)
        return Sequences(ways, new, group.cached_tokens + new // 2)
    return replace(group, count=ceil(group.count / 2) * ways)


def hidden_s(
    overlap: Overlap, priced: Iterable[tuple[Op, float, float]], shape: StepShape, cores: int | None
) -> float:
    """Seconds of a step's calls that run beside others.

    Args:
        overlap: How.
        priced: Calls with seconds over all layers, and those in which a transfer's own kernels
            hold all cores; those of layers are of both halves.
        shape: Of the step.
        cores: Of the device, some of which transfers occupy.

    Returns:
        What the sum of all calls is to be shortened by.
    """
    moe_layers = len(shape.model.moe_layers)
    if overlap == "none" or not moe_layers or (halves(overlap) and shape.half is None):
        return 0.0
    times = _by_stage(priced)
    share = moe_layers / shape.model.layers
    p, c = (times[name] * share for name in ("prepare", "attention"))
    g, s, d, f, b = (times[name] for name in ("gate", "shared", "dispatch", "experts", "combine"))
    kernels = p + c + g + s + f
    if overlap == "shared-expert":
        hidden = min(s, d + b)
    elif overlap == "two-batch":
        # Times are sums over both halves, and so is what comes back.
        order = _prefill_s if shape.load.phase == "prefill" else _decode_s
        hidden = kernels + d + b - order(p, c + g, s, d, f, b)
    else:
        hidden = min(kernels, d + b)
    # The last transfer of the last half has nothing beside it.
    hidden *= 1 - 1 / (2 * moe_layers)
    return hidden * (1 - _taken(shape, cores))


def _decode_s(p: float, a: float, s: float, d: float, f: float, b: float) -> float:
    """Seconds of layers whose halves alternate in five stages.

    Stages of a half: projections (p); attention and gate (a); dispatch sent, shared experts (s);
    dispatch awaited, experts (f), combine sent; combine awaited. The other half is two stages
    behind: its attention runs beside a combine, its projections beside a dispatch.
    """
    return max(a, b) + max(s + p, d) + f


def _prefill_s(p: float, a: float, s: float, d: float, f: float, b: float) -> float:
    """Seconds of layers whose halves alternate in three stages.

    Stages of a half: all of attention, dispatch sent; dispatch awaited, experts, combine sent;
    shared experts, combine awaited. The other half follows at once: the last combine has only
    shared experts beside it. One transfer is on its way at a time.
    """
    a += p
    last = max(f + 2 * s, b + s, f + b, 2 * b)
    return (a + max(a, d) + max(f, d) + last) / 2


def _taken(shape: StepShape, cores: int | None) -> float:
    """Share of the cores that transfers hold, which kernels beside them lack.

    DeepEP's low-latency kernels, used in decode, hold none while tokens travel.
    """
    if cores is None or (shape.layout.dispatch == "deepep" and shape.load.phase == "decode"):
        return 0.0
    return min(1.0, DEFAULT_SMS / cores)


def _by_stage(priced: Iterable[tuple[Op, float, float]]) -> Mapping[str, float]:
    """[stage] seconds of the calls of layers, which come in their order.

    A transfer counts while its data travel: what its kernels take is beside nothing.
    """
    times: dict[str, float] = defaultdict(float)
    attending: set[str] = set()
    for op, time_s, held_s in priced:
        if op.in_layer:
            mixer = op.name.partition(".")[0]
            if isinstance(op.work, AttentionWork):
                attending.add(mixer)
            times[_stage(op, attending=mixer in attending)] += time_s - held_s
    return times


def _stage(op: Op, *, attending: bool) -> str:
    if not op.name.startswith("moe."):
        # Blocks without experts: their collectives are on the way of every kernel.
        if op.name.startswith("dense."):
            return "other"
        return "attention" if attending else "prepare"
    if op.stream == "shared":
        return "shared"
    if isinstance(op.work, CollectiveWork | TransferWork):
        return "combine" if op.name in _BEHIND_EXPERTS else "dispatch"
    return "gate" if op.name in _BEFORE_DISPATCH else "experts"
