"""Communication beside computation: what of a step's calls is hidden behind others.

A layer's attention (a), dispatch (d), experts (f) and combine (b) follow one another for one set of
tokens. Engines hide transfers in three ways:

- ``shared-expert``: shared experts run beside the transfers of the layer (vLLM, TensorRT-LLM).
- ``two-batch``: the batch is cut in two. Kernels of the halves alternate, a₁ a₂ f₁ f₂, and a half's
  transfer runs beside the kernel of the other (SGLang's two-batch overlap), so that a layer takes
  max(a, d) + max(f, d) + max(f, b) + max(a, b) for both halves.
- ``dual-microbatch``: so too, in stages fine enough that a transfer never waits for one kernel
  alone (DeepSeek-V3, arXiv 2412.19437, section 3.4: decode in five stages): the longer of all
  kernels and all transfers of a layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import ceil
from typing import Literal, get_args

from moesim.forward.calls import StepShape
from moesim.forward.layout import Sequences, StepLoad
from moesim.forward.work import CollectiveWork, Op, TransferWork
from moesim.operators.comm_fits import DEFAULT_SMS

__all__ = ["OVERLAPS", "Overlap", "halves", "hidden_s", "micro_batch"]

Overlap = Literal["none", "shared-expert", "two-batch", "dual-microbatch"]

OVERLAPS: tuple[Overlap, ...] = get_args(Overlap)

_BEHIND_EXPERTS = ("moe.combine", "moe.reduce_scatter", "moe.all_reduce", "moe.tp_all_gather")


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
    overlap: Overlap, priced: Iterable[tuple[Op, float]], shape: StepShape, cores: int | None
) -> float:
    """Seconds of a step's calls that run beside others.

    Args:
        overlap: How.
        priced: Calls with seconds over all layers; those of layers are of both halves.
        shape: Of the step.
        cores: Of the device, some of which transfers occupy.

    Returns:
        What the sum of all calls is to be shortened by.
    """
    moe_layers = len(shape.model.moe_layers)
    if overlap == "none" or not moe_layers or (halves(overlap) and shape.half is None):
        return 0.0
    times = _by_stage(priced)
    a = times["attention"] * moe_layers / shape.model.layers
    s, d, f, b = (times[name] for name in ("shared", "dispatch", "experts", "combine"))
    if overlap == "shared-expert":
        hidden = min(s, d + b)
    elif overlap == "two-batch":
        # Sums are over both halves, so half of each maximum's arguments is a half's time.
        a += s
        hidden = a + d + f + b - (max(a, d) + max(f, d) + max(f, b) + max(a, b)) / 2
    else:
        hidden = min(a + s + f, d + b)
    # The last transfer of the last half has nothing beside it.
    hidden *= 1 - 1 / (2 * moe_layers)
    return hidden * (1 - _taken(shape, cores))


def _taken(shape: StepShape, cores: int | None) -> float:
    """Share of the cores that transfers hold, which kernels beside them lack.

    DeepEP's low-latency kernels, used in decode, hold none while tokens travel.
    """
    if cores is None or (shape.layout.dispatch == "deepep" and shape.load.phase == "decode"):
        return 0.0
    return min(1.0, DEFAULT_SMS / cores)


def _by_stage(priced: Iterable[tuple[Op, float]]) -> Mapping[str, float]:
    """[stage] seconds of the calls of layers."""
    times: dict[str, float] = defaultdict(float)
    for op, time_s in priced:
        if op.in_layer:
            times[_stage(op)] += time_s
    return times


def _stage(op: Op) -> str:
    if not op.name.startswith("moe."):
        # Blocks without experts: their collectives are on the way of every kernel.
        return "other" if op.name.startswith("dense.") else "attention"
    if op.stream == "shared":
        return "shared"
    if isinstance(op.work, CollectiveWork | TransferWork):
        return "combine" if op.name in _BEHIND_EXPERTS else "dispatch"
    return "experts"
