"""Number formats of a step: what the model states, or what is asked for instead."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from moesim.errors import UsageError
from moesim.fitted_costs import expert_format
from moesim.hardware import Device
from moesim.model import ModelSpec
from moesim.operators.gemm import FORMATS
from moesim.operators.moe_kernels import ARITHMETIC, WEIGHT_BYTES

__all__ = ["Formats", "check_formats", "choose_formats"]


KV_FORMATS = ("bfloat16", "fp8")
KNOWN: tuple[Collection[str], ...] = (FORMATS, WEIGHT_BYTES, KV_FORMATS)
OPTIONS = ("--gemm-dtype", "--expert-dtype", "--kv-dtype")


@dataclass(frozen=True)
class Formats:
    """By the names that the measured tables use.

    Attributes:
        gemm: Of projections and dense layers.
        experts: Of routed experts.
        kv: Of the cache.
    """

    gemm: str
    experts: str
    kv: str


def choose_formats(
    model: ModelSpec,
    device: Device,
    *,
    gemm: str | None = None,
    experts: str | None = None,
    kv: str | None = None,
) -> Formats:
    """The model's own formats where none is asked for.

    Raises:
        UsageError: If a format is not known, or the device cannot compute in it.
    """
    chosen = Formats(
        gemm or _gemm_format(model),
        experts or expert_format(model, device),
        kv or "bfloat16",
    )
    check_formats(chosen, device)
    return chosen


def check_formats(
    formats: Formats, device: Device, options: tuple[str, str, str] = OPTIONS
) -> None:
    """Whether all three are known, and the device computes in them.

    Args:
        formats: What was chosen.
        device: That computes.
        options: What they were chosen by, to be named.

    Raises:
        UsageError: If not.
    """
    chosen = (formats.gemm, formats.experts, formats.kv)
    for option, value, allowed in zip(options, chosen, KNOWN, strict=True):
        if value not in allowed:
            raise UsageError(
                f"{option} {value!r} is no format we know\nfix: choose from {', '.join(allowed)}"
            )
    used = (FORMATS[formats.gemm].arithmetic, ARITHMETIC[formats.experts])
    for option, value, arithmetic in zip(options, chosen, used, strict=False):
        if arithmetic not in device.peak:
            raise UsageError(
                f"{device.name} has no {arithmetic} arithmetic, which {value} needs\n"
                f"fix: pass {option} bfloat16, or another --cluster"
            )


def _gemm_format(model: ModelSpec) -> str:
    """Checkpoints with FP8 activations hold their projections in FP8, all others in bfloat16."""
    if model.activation_bits != 8:
        return "bfloat16"
    return "fp8" if model.quantisation.method == "fp8" else "fp8_block"
