"""Choices that several verbs offer."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["CostOption", "DispatchOption", "EngineOption", "PhaseOption"]


class PhaseOption(StrEnum):
    """Kinds of step."""

    PREFILL = "prefill"
    DECODE = "decode"


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


class EngineOption(StrEnum):
    """Whose kernels run."""

    SGLANG = "sglang"
    TRTLLM = "trtllm"
    VLLM = "vllm"
