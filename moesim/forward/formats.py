"""Number formats of a step: what the model states, or what is asked for instead."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.errors import UsageError
from moesim.fitted_costs import expert_format
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
        experts or expert_format(model, device),
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
