"""Choices that several verbs offer."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["CostOption", "EngineOption", "PhaseOption"]


class PhaseOption(StrEnum):
    """Kinds of step."""

    PREFILL = "prefill"
    DECODE = "decode"


class CostOption(StrEnum):
    """What prices rest on."""

    FITTED = "fitted"
    ROOFLINE = "roofline"


class EngineOption(StrEnum):
    """Whose kernels run."""

    SGLANG = "sglang"
    TRTLLM = "trtllm"
    VLLM = "vllm"
