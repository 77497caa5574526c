"""The two GEMMs of a SwiGLU expert layer, for tokens that already lie with their experts.

    y[r] = scale[r] · (silu(x·W_gate) ⊙ (x·W_up)) · W_down

This is what a device of an expert-parallel group runs between dispatch and combine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from moesim.errors import InputError
from moesim.kernels.grouped_gemm import (
    FP8_TYPES,
    grouped_gemm,
    grouped_gemm_reference,
    grouped_gemm_work,
)
from moesim.kernels.launch import TileTables
from moesim.kernels.quantise import (
    BlockScales,
    quantise_rows,
    quantise_rows_reference,
    quantise_rows_work,
    quantise_weights,
)
from moesim.kernels.work import Work

__all__ = ["ExpertWeights", "expert_ffn", "expert_ffn_reference", "expert_ffn_work"]


@dataclass(frozen=True)
class ExpertWeights:
    """Weights of a layer's experts.

    Attributes:
        w13: [E, 2F, H], gate and up interleaved (:func:`grouped_gemm.interleave_gate_up`).
        w2: [E, H, F].
        w13_scale: [E, ⌈2F/128⌉, ⌈H/128⌉] float32, for fp8.
        w2_scale: [E, ⌈H/128⌉, ⌈F/128⌉] float32, for fp8.
    """

    w13: torch.Tensor
    w2: torch.Tensor
    w13_scale: torch.Tensor | None = None
    w2_scale: torch.Tensor | None = None

    @property
    def is_fp8(self) -> bool:
        """Whether the weights are fp8 with block scales."""
        return self.w13.dtype in FP8_TYPES

    def quantised(self, dtype: torch.dtype = torch.float8_e4m3fn) -> ExpertWeights:
        """The same in fp8 with 128 × 128 block scales."""
        w13, w13_scale = quantise_weights(self.w13, dtype)
        w2, w2_scale = quantise_weights(self.w2, dtype)
        return ExpertWeights(w13, w2, w13_scale, w2_scale)


def expert_ffn(
    x: torch.Tensor,
    weights: ExpertWeights,
    counts: torch.Tensor,
    *,
    gather: torch.Tensor | None = None,
    row_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run every expert on its rows.

    Args:
        x: [R, H] rows sorted by expert, or with ``gather`` [T, H] tokens. With fp8 weights the
            activations are quantised here, and the result is in the type of ``x``.
        weights: Of the layer.
        counts: [E] int32 rows of each expert.
        gather: [R] int32 row of ``x`` of each row.
        row_scale: [R] float32 the router's weight of each row.

    Returns:
        [R, H]; rows past the last group are not written.

    Raises:
        InputError: If shapes or types do not fit together.
    """
    rows = x.shape[0] if gather is None else gather.shape[0]
    tables = TileTables(counts, rows)
    if weights.is_fp8:
        x8, x_scale = quantise_rows(x, weights.w13.dtype)
        up_scales, down_scale = _scales(weights, x_scale)
        inner = grouped_gemm(
            x8,
            weights.w13,
            counts,
            gather=gather,
            gated=True,
            scales=up_scales,
            out_dtype=x.dtype,
            tables=tables,
        )
        inner8, inner_scale = quantise_rows(inner, weights.w2.dtype)
        down_scales = BlockScales(inner_scale, down_scale)
        return grouped_gemm(
            inner8,
            weights.w2,
            counts,
            row_scale=row_scale,
            scales=down_scales,
            out_dtype=x.dtype,
            tables=tables,
        )
    inner = grouped_gemm(x, weights.w13, counts, gather=gather, gated=True, tables=tables)
    return grouped_gemm(inner, weights.w2, counts, row_scale=row_scale, tables=tables)


def expert_ffn_reference(
    x: torch.Tensor,
    weights: ExpertWeights,
    counts: torch.Tensor,
    *,
    gather: torch.Tensor | None = None,
    row_scale: torch.Tensor | None = None,
    precision: torch.dtype = torch.float64,
) -> torch.Tensor:
    """:func:`expert_ffn` in plain torch, computed and returned in ``precision``.

    With fp8 weights the activations are rounded to fp8 as there; nothing else is rounded.
    """
    if not weights.is_fp8:
        inner = grouped_gemm_reference(
            x, weights.w13, counts, gather=gather, gated=True, precision=precision
        )
        return grouped_gemm_reference(
            inner, weights.w2.to(precision), counts, row_scale=row_scale, precision=precision
        )
    x8, x_scale = quantise_rows_reference(x, weights.w13.dtype)
    up_scales, down_scale = _scales(weights, x_scale)
    inner = grouped_gemm_reference(
        x8, weights.w13, counts, gather=gather, gated=True, scales=up_scales, precision=precision
    )
    inner8, inner_scale = quantise_rows_reference(inner, weights.w2.dtype)
    return grouped_gemm_reference(
        inner8,
        weights.w2,
        counts,
        row_scale=row_scale,
        scales=BlockScales(inner_scale, down_scale),
        precision=precision,
    )


def expert_ffn_work(
    histogram: Sequence[int] | np.ndarray,
    hidden: int,
    inter: int,
    *,
    dtype: torch.dtype = torch.bfloat16,
    source_rows: int | None = None,
) -> Work:
    """Least work of :func:`expert_ffn` as two GEMMs: the row between them is written and read.

    Args:
        histogram: [E] rows of each expert.
        hidden: Width of the model, H.
        inter: Width of an expert, F.
        dtype: Type of the weights.
        source_rows: Tokens that a gather reads from.
    """
    up = grouped_gemm_work(
        histogram, 2 * inter, hidden, dtype=dtype, gated=True, source_rows=source_rows
    )
    down = grouped_gemm_work(histogram, hidden, inter, dtype=dtype)
    total = up + down
    if dtype in FP8_TYPES:
        rows = int(np.asarray(histogram, dtype=np.int64).sum())
        total += quantise_rows_work(rows if source_rows is None else source_rows, hidden)
        total += quantise_rows_work(rows, inter)
    return total


def _scales(weights: ExpertWeights, x_scale: torch.Tensor) -> tuple[BlockScales, torch.Tensor]:
    """Scales of the first GEMM, and the weight scales of the second."""
    if weights.w13_scale is None or weights.w2_scale is None:
        raise InputError("fp8 weights need scales", field="weights.w13_scale", found="none")
    return BlockScales(x_scale, weights.w13_scale), weights.w2_scale
