"""Which workloads a measurement times: drawn once from a seed, in an order whose start is fair.

Widths follow the experts of published models on a logarithmic scale (DeepSeek-V2-Lite 2048 × 1408,
Qwen3-30B-A3B 2048 × 768, OLMoE 2048 × 1024, gpt-oss 2880 × 2880), rows per expert those of decode
and short prefill. Every shape is measured at several loads and in every number type; loads cycle
over shapes, so that the first part of the plan holds every shape when time runs out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.calibrate.measurements import Workload
from moesim.operators.cpu_experts import ExpertShape, Residency

__all__ = ["PlanLimits", "plan_workloads"]

HIDDEN = (512, 4096, 128)
INTER = (256, 2816, 64)
"""Least and largest width, and what it is a multiple of."""

MOST_ROWS = 512
MOST_EXPERTS = 16
SKEW = 1.0
"""Zipf exponent of the rows of experts in every third load; the others are even."""

CACHE_SHARE = 0.5
"""Share of the layers small enough for the cache that are measured with their weights in it."""

COPY_BYTES = (2**18, 2**20, 2**22, 2**24, 2**26)


@dataclass(frozen=True)
class PlanLimits:
    """What one call may be, so that many fit into the time.

    Attributes:
        shapes: Distinct (hidden, inter).
        loads: Loads of each shape and number type.
        dtypes: Number types.
        call_bytes: Most bytes of weights in one call.
        call_flops: Most arithmetic in one call.
        cache_bytes: Most bytes of weights that count as in the cache.
        copies: Kinds of transfers to time.
    """

    shapes: int = 24
    loads: int = 5
    dtypes: tuple[str, ...] = ("fp32", "bf16", "int8")
    call_bytes: float = 128e6
    call_flops: float = 6e9
    cache_bytes: float = 8e6
    copies: tuple[str, ...] = ("read", "copy")


def plan_workloads(limits: PlanLimits, seed: int) -> tuple[Workload, ...]:
    """The plan: transfers first, then expert layers."""
    rng = np.random.default_rng(seed)
    shapes: dict[tuple[int, int], None] = {}
    while len(shapes) < limits.shapes:
        shapes[_width(rng, *HIDDEN), _width(rng, *INTER)] = None
    transfers = [
        Workload.model_validate({"kind": kind, "moved_bytes": size})
        for kind in limits.copies
        for size in COPY_BYTES
    ]
    experts = []
    for load in range(limits.loads):
        for hidden, inter in shapes:
            for dtype in limits.dtypes:
                rows = _rows(rng, limits, ExpertShape(hidden, inter, dtype=dtype), load)
                in_cache = bool(rng.random() < CACHE_SHARE)
                experts.append(_experts(limits, dtype, hidden, inter, rows, in_cache))
    return tuple(transfers + experts)


def _experts(
    limits: PlanLimits, dtype: str, hidden: int, inter: int, rows: tuple[int, ...], in_cache: bool
) -> Workload:
    weight_bytes = len(rows) * float(ExpertShape(hidden, inter, dtype=dtype).weight_bytes)
    residency: Residency = "cache" if in_cache and weight_bytes <= limits.cache_bytes else "memory"
    return Workload(
        kind="experts",
        dtype=dtype,
        hidden=hidden,
        inter=inter,
        expert_rows=rows,
        residency=residency,
    )


def _width(rng: np.random.Generator, low: int, high: int, step: int) -> int:
    value = np.exp(rng.uniform(np.log(low), np.log(high)))
    return int(np.clip(round(value / step) * step, low, high))


def _rows(
    rng: np.random.Generator, limits: PlanLimits, shape: ExpertShape, load: int
) -> tuple[int, ...]:
    """Rows of each active expert, within the limits of a call."""
    most_experts = max(1, int(limits.call_bytes / float(shape.weight_bytes)))
    most_rows = max(1, int(limits.call_flops / float(shape.row_flops)))
    experts = _log_uniform(rng, min(MOST_EXPERTS, most_experts))
    rows = _log_uniform(rng, max(1, min(MOST_ROWS, most_rows // experts)))
    if load % 3 != 2:
        return (rows,) * experts
    share = np.arange(1, experts + 1) ** -SKEW
    return tuple(int(r) for r in np.maximum(1, np.rint(share / share.mean() * rows)))


def _log_uniform(rng: np.random.Generator, most: int) -> int:
    """A whole number from 1 to ``most``, each doubling as likely as the next."""
    return int(min(most, np.floor(np.exp(rng.uniform(0, np.log(most + 1))))))
