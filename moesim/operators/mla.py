"""Multi-head latent attention (MLA): its attention kernel, and the module around it.

Sizes and the two forms: DeepSeek-V2, arXiv:2405.04434, section 2.1. *Expanded*: keys and values of
every head are computed from the latent and attention runs over them as over any heads. *Absorbed*:
the key and value projections are moved to the query and the output, and all heads attend to the
latent itself, one key-value head of ``kv_lora + rope`` elements whose first ``kv_lora`` are the
value. Decode is absorbed; prefill may be either.

A module is: projections down, projections up (or the per-head products of the absorbed form),
attention, output projection.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
from pydantic import Field

from moesim.hardware import Device
from moesim.operators.attention import (
    ARITHMETIC,
    ELEMENT_BYTES,
    AttentionCalls,
    AttentionShape,
    DecodeCoefficients,
    PrefillCoefficients,
    attention_seconds,
)
from moesim.operators.fitted import Estimate, KernelFit
from moesim.operators.gemm import FORMATS, HOST_EXPONENT, gemm_bytes, gemm_flops
from moesim.operators.processor import Processor
from moesim.operators.systems import processor
from moesim.schema import Document

__all__ = [
    "DEEPSEEK_V3",
    "MlaKernel",
    "MlaSizes",
    "ModuleCoefficients",
    "Projections",
    "absorbed_head",
    "expanded_head",
    "mla_head",
    "mla_seconds",
    "module_seconds",
    "projections",
    "with_kv_heads",
]

ROWS = 64
"""Rows that a matrix multiplication pads to (wgmma, see moesim.operators.gemm)."""


@dataclass(frozen=True)
class MlaSizes:
    """Sizes of a latent attention, as ``config.json`` names them.

    Attributes:
        hidden: hidden_size.
        q_lora: q_lora_rank.
        kv_lora: kv_lora_rank.
        nope: qk_nope_head_dim.
        rope: qk_rope_head_dim.
        value: v_head_dim.
    """

    hidden: int
    q_lora: int
    kv_lora: int
    nope: int
    rope: int
    value: int


DEEPSEEK_V3 = MlaSizes(7168, 1536, 512, 128, 64, 128)
"""https://huggingface.co/deepseek-ai/DeepSeek-V3/blob/main/config.json"""


class ModuleCoefficients(Document):
    """What is fitted for a module besides its attention kernel."""

    host_s: float = Field(ge=0)
    """Time per call that the host needs; hides shorter modules."""
    projection_efficiency: float = Field(gt=0)
    """Share of the peak in the projections."""
    projection_memory_efficiency: float = Field(gt=0)
    norm_s: float = Field(ge=0)
    """Norms, rotary embedding and cache writes, per token."""


class MlaKernel(KernelFit):
    """One kernel or module of an engine version on a system, with its fit.

    Attributes:
        dtype: Of queries and arithmetic, a name out of ``ELEMENT_BYTES``.
        kv_dtype: Of the cached latent.
        gemm_dtype: Of a module's weights; empty for a kernel.
        absorbed: Which form.
        processor: Peaks in the arithmetic of ``dtype``.
        gemm_processor: Peaks in that of ``gemm_dtype``.
        attention: Coefficients of the attention kernel.
        module: Those of what is around it.
    """

    ORDER: ClassVar[tuple[str, ...]] = (
        *("dtype", "kv_dtype", "gemm_dtype", "family", "system", "engine", "kernel", "version"),
    )

    dtype: str
    kv_dtype: str
    gemm_dtype: str = ""
    absorbed: bool
    processor: Processor
    gemm_processor: Processor | None = None
    attention: PrefillCoefficients | DecodeCoefficients
    module: ModuleCoefficients | None = None

    def time(self, calls: AttentionCalls) -> Estimate:
        """Time of every call, ``[rows]``; heads are those on this device."""
        return self.estimate(mla_seconds(calls, self))

    def on_device(self, device: Device) -> Self:
        """See :meth:`KernelFit.on_device`."""
        gemm = None
        if self.gemm_dtype:
            gemm = processor(device, FORMATS[self.gemm_dtype].arithmetic)
        own = processor(device, ARITHMETIC[self.dtype])
        return self.model_copy(update={"processor": own, "gemm_processor": gemm})


@dataclass(frozen=True)
class Projections:
    """The matrix multiplications of a module; arrays ``[rows, projections]``."""

    flops: np.ndarray
    """Padded to whole tiles of rows."""
    memory_bytes: np.ndarray
    tokens: np.ndarray
    """``[rows]``"""


def expanded_head(
    query_bytes: float, cache_bytes: float, sizes: MlaSizes = DEEPSEEK_V3
) -> AttentionShape:
    """A head of the expanded form; every query head has its key-value head.

    Args:
        query_bytes: Per element of the query.
        cache_bytes: Per element of keys and values.
        sizes: Of the model.
    """
    key = sizes.nope + sizes.rope
    return AttentionShape(key, sizes.value, query_bytes, (key + sizes.value) * cache_bytes)


def absorbed_head(
    query_bytes: float, cache_bytes: float, sizes: MlaSizes = DEEPSEEK_V3
) -> AttentionShape:
    """The one key-value head of the absorbed form; keys and values share their bytes."""
    latent = sizes.kv_lora + sizes.rope
    return AttentionShape(latent, sizes.kv_lora, query_bytes, latent * cache_bytes)


def projections(
    tokens: np.ndarray,
    heads: np.ndarray,
    dtype: str,
    absorbed: bool,
    sizes: MlaSizes = DEEPSEEK_V3,
) -> Projections:
    """Count the module's matrix multiplications.

    Args:
        tokens: New tokens of all sequences, ``[rows]``.
        heads: Heads on this device, ``[rows]``.
        dtype: Of the weights, a name out of ``moesim.operators.gemm.FORMATS``; the per-head
            products of the absorbed form stay in bfloat16.
        absorbed: Which form.
        sizes: Of the model.
    """
    s = sizes
    t, h = np.asarray(tokens, float), np.asarray(heads, float)
    one = np.ones_like(h)
    # columns, shared dimension, how many
    dense = [
        (one * (s.q_lora + s.kv_lora + s.rope), one * s.hidden),
        (h * (s.nope + s.rope), one * s.q_lora),
        (one * s.hidden, h * s.value),
    ]
    per_head = [(s.kv_lora, s.nope), (s.value, s.kv_lora)] if absorbed else []
    if not absorbed:
        dense.append((h * (s.nope + s.value), one * s.kv_lora))
    padded = np.ceil(t / ROWS) * ROWS
    flops = [gemm_flops(padded, n, k) for n, k in dense]
    moved = [gemm_bytes(t, n, k, FORMATS[dtype]) for n, k in dense]
    # Relative to the weights' format, arithmetic in bfloat16 costs the ratio of the peaks: two.
    slower = 2.0 if FORMATS[dtype].arithmetic != "bf16" else 1.0
    flops += [slower * h * gemm_flops(padded, one * n, one * k) for n, k in per_head]
    moved += [gemm_bytes(t, one * n, one * k, FORMATS["bfloat16"], h) for n, k in per_head]
    return Projections(np.stack(flops, 1), np.stack(moved, 1), t)


def module_seconds(
    attention_s: np.ndarray, p: Projections, c: ModuleCoefficients, processor: Processor
) -> np.ndarray:
    """Seconds of a module, ``[rows]``.

    Args:
        attention_s: Of its attention kernel, all fixed times of the module included.
        p: Its projections.
        c: Coefficients.
        processor: Peaks in the format of the weights.
    """
    compute_s = p.flops / (processor.peak_flop_per_s * c.projection_efficiency)
    memory_s = p.memory_bytes / (processor.memory_bytes_per_s * c.projection_memory_efficiency)
    device_s = attention_s + np.hypot(compute_s, memory_s).sum(axis=1) + c.norm_s * p.tokens
    return (c.host_s**HOST_EXPONENT + device_s**HOST_EXPONENT) ** (1 / HOST_EXPONENT)


def mla_head(dtype: str, kv_dtype: str, absorbed: bool) -> AttentionShape:
    """Sizes of a head; expanded keys and values come in the format of the queries.

    Args:
        dtype: Of the queries, a name out of ``ELEMENT_BYTES``.
        kv_dtype: Of the cached latent.
        absorbed: Which form.
    """
    query_bytes = ELEMENT_BYTES[dtype]
    if absorbed:
        return absorbed_head(query_bytes, ELEMENT_BYTES[kv_dtype])
    return expanded_head(query_bytes, query_bytes)


def with_kv_heads(calls: AttentionCalls, absorbed: bool) -> AttentionCalls:
    """The same calls with the key-value heads of the form."""
    return replace(calls, kv_heads=np.ones_like(calls.heads) if absorbed else calls.heads)


def mla_seconds(calls: AttentionCalls, kernel: MlaKernel) -> np.ndarray:
    """Seconds of a fitted kernel or module, ``[rows]``."""
    k = kernel
    head = mla_head(k.dtype, k.kv_dtype, k.absorbed)
    own = with_kv_heads(calls, k.absorbed)
    seconds = attention_seconds(own, head, k.attention, k.processor)
    if k.module is None or k.gemm_processor is None:
        return seconds
    tokens = calls.batch * calls.query_tokens
    around = projections(tokens, calls.heads, k.gemm_dtype, k.absorbed)
    return module_seconds(seconds, around, k.module, k.gemm_processor)
