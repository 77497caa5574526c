"""Number formats of a step: what the model states, or what is asked for instead."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.errors import UsageError
from moesim.hardware import Device
from moesim.model import ModelSpec
from moesim.operators.gemm import FORMATS
from moesim.operators.moe_kernels import ARITHMETIC, WEIGHT_BYTES

__all__ = ["Formats", "choose_formats"]


KV_FORMATS = ("bfloat16", "fp8")


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
        experts or _expert_format(model, device),
        kv or "bfloat16",
    )
    for option, value, allowed in (
        ("--gemm-dtype", chosen.gemm, FORMATS),
        ("--expert-dtype", chosen.experts, WEIGHT_BYTES),
        ("--kv-dtype", chosen.kv, KV_FORMATS),
    ):
        if value not in allowed:
            raise UsageError(
                f"{option} {value!r} is no format we know\nfix: choose from {', '.join(allowed)}"
            )
    for option, arithmetic in (
        ("--gemm-dtype", FORMATS[chosen.gemm].arithmetic),
        ("--expert-dtype", ARITHMETIC[chosen.experts]),
    ):
        if arithmetic not in device.peak:
            raise UsageError(
                f"{device.name} has no {arithmetic} arithmetic, which {model.name} would use\n"
                f"fix: pass {option} bfloat16, or another --cluster"
            )
    return chosen


def _gemm_format(model: ModelSpec) -> str:
    """Checkpoints with FP8 activations hold their projections in FP8, all others in bfloat16."""
    if model.activation_bits != 8:
        return "bfloat16"
    return "fp8" if model.quantisation.method == "fp8" else "fp8_block"


def _expert_format(model: ModelSpec, device: Device) -> str:
    method, bits = model.quantisation.method, model.quantisation.weight_bits
    named = {"fp8-block": "fp8_block", "fp8": "fp8", "mxfp8": "fp8_block", "nvfp4": "nvfp4"}
    if method in named:
        return named[method]
    if method in ("mxfp4", "fp4"):
        # Blackwell multiplies MXFP4 weights with MXFP8 activations; others widen the weights.
        return "w4a8_mxfp4_mxfp8" if "fp4" in device.peak else "w4a16_mxfp4"
    if bits == 4:
        return "int4_wo"
    return "fp8" if bits == 8 else "bfloat16"
