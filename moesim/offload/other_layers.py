"""Seconds of a step outside its routed experts, from the calls that the whole model makes."""

from __future__ import annotations

import numpy as np

from moesim.forward.calls import StepShape, step_ops
from moesim.forward.formats import Formats
from moesim.forward.layout import Layout, StepLoad
from moesim.forward.work import ExpertWork
from moesim.hardware import Device
from moesim.model import ModelSpec
from moesim.workload import Phase

__all__ = ["other_seconds"]

FORMATS = Formats("bfloat16", "bfloat16", "bfloat16")
"""Engines that offload quantise the routed experts and leave the rest as it is."""


def other_seconds(
    model: ModelSpec, device: Device, phase: Phase, batch: int, context: np.ndarray
) -> np.ndarray:
    """Attention, dense layers, shared experts, router, head: rooflines and one launch per call.

    Args:
        model: Sizes.
        device: One device, which holds all of this.
        phase: See :meth:`moesim.forward.layout.StepLoad.of`.
        batch: Sequences.
        context: [C] cached tokens of each sequence in decode, new ones in prefill.

    Returns:
        [C] seconds per MoE layer. Between the least and the largest context it is interpolated.
    """
    ends = np.unique([context.min(), context.max()])
    seconds = [_step_s(model, device, phase, batch, int(end)) for end in ends]
    return np.interp(context, ends, seconds) / len(model.moe_layers)


def _step_s(model: ModelSpec, device: Device, phase: Phase, batch: int, context: int) -> float:
    load = StepLoad.of(phase, batch, context)
    no_experts = np.zeros((1, 1, model.experts))
    shape = StepShape(model, Layout(), load, FORMATS, no_experts)
    peak, bandwidth = device.peak_flop_per_s("bf16"), device.memory_bytes_per_s
    launch_s = device.launch_overhead_s or 0.0
    return sum(
        (max(op.work.flops / peak, op.work.bytes / bandwidth) + launch_s) * op.layers
        for op in step_ops(shape)
        if not isinstance(op.work, ExpertWork)
    )
