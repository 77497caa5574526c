"""Choices that several verbs offer."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

__all__ = [
    "FITTED",
    "CommOption",
    "CostOption",
    "DispatchOption",
    "EngineOption",
    "OverlapOption",
    "PhaseOption",
    "SlotsOption",
    "TransformOption",
    "cost_option",
]


class PhaseOption(StrEnum):
    """Kinds of step."""

    PREFILL = "prefill"
    DECODE = "decode"


class CommOption(StrEnum):
    """Forms of communication."""

    HOME_RANK = "home-rank"
    CHAIN = "chain"


class SlotsOption(StrEnum):
    """Expert slots of a device."""

    EQUAL = "equal"
    FREE_PER_LAYER = "free-per-layer"


class DispatchOption(StrEnum):
    """How tokens reach experts."""

    ALLREDUCE = "allreduce"
    ALLGATHER = "allgather"
    DEEPEP = "deepep"
    NVLINK = "nvlink"


class OverlapOption(StrEnum):
    """What runs beside what."""

    NONE = "none"
    SHARED_EXPERT = "shared-expert"
    TWO_BATCH = "two-batch"
    DUAL_MICROBATCH = "dual-microbatch"


class EngineOption(StrEnum):
    """Whose kernels run."""

    SGLANG = "sglang"
    TRTLLM = "trtllm"
    VLLM = "vllm"


TransformOption = Annotated[
    list[str] | None,
    typer.Option(
        "--transform",
        metavar="NAME:PARAMETERS",
        help="Change the model first, like prune:64; repeat for more (`moesim model transforms`).",
    ),
]
"""Pass it on as ``load_model(name, transforms=tuple(transform or ()))``."""

FITTED = "fitted"
"""What prices rest on unless something else is named."""


def cost_option(panel: str | None = None) -> Any:
    """``--cost``, for verbs that have panels of options; pass it on by ``cost_model(cost)``."""
    return typer.Option(
        "--cost",
        metavar="fitted|roofline|FILE[:KERNEL]",
        help="Kernels fitted to measurements, rooflines alone, or experts by kernels measured on "
        "your GPU (a file of moesim calibrate fit).",
        rich_help_panel=panel,
    )


CostOption = Annotated[str, cost_option()]
