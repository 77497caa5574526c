"""Choices that several verbs offer."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

__all__ = [
    "CommOption",
    "CostOption",
    "DispatchOption",
    "EngineOption",
    "OverlapOption",
    "PhaseOption",
    "SlotsOption",
    "TransformOption",
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


class CostOption(StrEnum):
    """What prices rest on."""

    FITTED = "fitted"
    ROOFLINE = "roofline"


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
