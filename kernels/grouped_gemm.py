"""Grouped GEMM: rows sorted by expert, times the weights of the expert that each belongs to.

    out[r] = scale[r] · act(x[gather[r]] · w[e(r)]ᵀ)      e(r): the expert whose group holds row r

The groups are ragged, and any of them may be empty. ``act`` is the identity or SwiGLU over
interleaved gate and up weights. Sums are in float32 and in a fixed order: the same inputs give the
same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from moesim.errors import InputError
from moesim.kernels.choose import choose_for_rows, shape_of
from moesim.kernels.config import Part
from moesim.kernels.language import runs_triton
from moesim.kernels.launch import Operands, TileTables, launch
from moesim.kernels.quantise import BlockScales, dequantise_rows, dequantise_weights
from moesim.kernels.targets import chip_of, target_of
from moesim.kernels.work import Work, element_bytes

__all__ = [
    "FP8_TYPES",
    "grouped_gemm",
    "grouped_gemm_reference",
    "grouped_gemm_work",
    "interleave_gate_up",
    "swiglu",
]

FP8_TYPES = (torch.float8_e4m3fn, torch.float8_e4m3fnuz)


def grouped_gemm(
    x: torch.Tensor,
    w: torch.Tensor,
    counts: torch.Tensor,
    *,
    gather: torch.Tensor | None = None,
    gated: bool = False,
    row_scale: torch.Tensor | None = None,
    scales: BlockScales | None = None,
    out_dtype: torch.dtype | None = None,
    tables: TileTables | None = None,
    parts: Sequence[Part] | None = None,
) -> torch.Tensor:
    """Multiply the rows of every expert by its weights.

    On a GPU this launches the Triton kernels; on a CPU it runs a loop of torch products, one per
    expert with rows.

    Args:
        x: [R, K] rows sorted by expert; with ``gather`` [T, K] rows in any order.
        w: [E, N, K]; with ``gated`` rows 2j and 2j + 1 of an expert are those of gate j and up j.
        counts: [E] int32 rows of each expert, in the order of the groups; Σ counts ≤ R. Rows past
            the last group belong to no expert, and nothing is written there.
        gather: [R] int32 row of ``x`` that each row of the result reads.
        gated: Apply SwiGLU; the result has N/2 columns.
        row_scale: [R] float32 factor of each row of the result: the router's weight.
        scales: Scales of ``x`` and ``w``, for fp8 and only for it.
        out_dtype: Type of the result; that of ``x``, and bfloat16 for fp8.
        tables: Tile tables of these counts, to share them between calls.
        parts: Configurations, for experts by their rows, as :func:`moesim.kernels.choose.choose`
            finds them for a histogram that the host knows. By default they are chosen for so many
            rows, once, and the live counts say on the device which expert goes to which.

    Returns:
        [R, N], or [R, N/2] with ``gated``.

    Raises:
        InputError: If shapes or types do not fit together; the message names the argument.
    """
    _check(x, w, counts, gather, gated, row_scale, scales)
    out_dtype = out_dtype or (torch.bfloat16 if x.dtype in FP8_TYPES else x.dtype)
    if not runs_triton(x, w, counts, gather, row_scale):
        return _by_torch(x, w, counts, gather, gated, row_scale, scales, None).to(out_dtype)
    if w.stride(2) != 1:
        raise InputError(
            "the columns of an expert's weights must lie side by side",
            field="w",
            found=f"strides {w.stride()}",
            fix="call w.contiguous() once, when the weights are loaded",
        )
    rows = x.shape[0] if gather is None else gather.shape[0]
    n = w.shape[1] // 2 if gated else w.shape[1]
    out = torch.empty(rows, n, dtype=out_dtype, device=x.device)
    if out.numel() == 0 or x.shape[1] == 0:
        return out.zero_()
    operands = Operands(
        x=x if x.stride(1) == 1 else x.contiguous(),
        w=w,
        out=out,
        gather=None if gather is None else gather.contiguous(),
        row_scale=None if row_scale is None else row_scale.contiguous(),
        scales=scales,
        gated=gated,
    )
    if parts is None:
        shape, name = shape_of(w.shape[1], w.shape[2], x.dtype, out_dtype, gated)
        target = target_of(x.device).name
        chip = chip_of(x.device)
        parts = choose_for_rows(rows, w.shape[0], shape, name, target, chip).parts
    launch(operands, tables or TileTables(counts, rows), parts)
    return out


def grouped_gemm_reference(
    x: torch.Tensor,
    w: torch.Tensor,
    counts: torch.Tensor,
    *,
    gather: torch.Tensor | None = None,
    gated: bool = False,
    row_scale: torch.Tensor | None = None,
    scales: BlockScales | None = None,
    precision: torch.dtype = torch.float64,
) -> torch.Tensor:
    """:func:`grouped_gemm` in plain torch, computed and returned in ``precision``.

    Rows past the last group are zero.
    """
    _check(x, w, counts, gather, gated, row_scale, scales)
    return _by_torch(x, w, counts, gather, gated, row_scale, scales, precision)


def grouped_gemm_work(
    histogram: Sequence[int] | np.ndarray,
    n: int,
    k: int,
    *,
    dtype: torch.dtype = torch.bfloat16,
    gated: bool = False,
    source_rows: int | None = None,
) -> Work:
    """Least work of :func:`grouped_gemm`.

    Args:
        histogram: [E] rows of each expert.
        n: Rows of an expert's weights.
        k: Columns of them.
        dtype: Type of ``x`` and ``w``.
        gated: Whether SwiGLU halves the result's columns.
        source_rows: Rows of ``x`` where a gather reads some more than once.

    Returns:
        FLOPs of the products alone; bytes of the weights of experts with rows, of the rows read
        and of the rows written.
    """
    counts = np.asarray(histogram, dtype=np.int64)
    rows, active = int(counts.sum()), int((counts > 0).sum())
    size = element_bytes(dtype)
    out_size = 2 if dtype in FP8_TYPES else size
    read_rows = rows if source_rows is None else min(rows, source_rows)
    moved = (
        active * n * k * size + read_rows * k * size + rows * (n // 2 if gated else n) * out_size
    )
    if dtype in FP8_TYPES:
        moved += 4 * (active * -(-n // 128) * -(-k // 128) + read_rows * -(-k // 128))
    return Work(2.0 * rows * n * k, float(moved))


def interleave_gate_up(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """[E, F, H] weights of gate and up as [E, 2F, H], row by row in turn.

    A tile of any even number of rows then holds both halves of its outputs, and in the tensor
    cores' result they are neighbours in one thread's registers.
    """
    experts, f, h = gate.shape
    return torch.stack((gate, up), dim=2).reshape(experts, 2 * f, h)


def swiglu(y: torch.Tensor) -> torch.Tensor:
    """[..., 2F] with gate and up interleaved → [..., F]: silu(gate) · up."""
    return torch.nn.functional.silu(y[..., 0::2]) * y[..., 1::2]


def _by_torch(
    x: torch.Tensor,
    w: torch.Tensor,
    counts: torch.Tensor,
    gather: torch.Tensor | None,
    gated: bool,
    row_scale: torch.Tensor | None,
    scales: BlockScales | None,
    precision: torch.dtype | None,
) -> torch.Tensor:
    """A product per expert, in the inputs' own type where ``precision`` is None."""
    dtype = precision or (torch.float32 if x.dtype in FP8_TYPES else x.dtype)
    rows = x.shape[0] if gather is None else gather.shape[0]
    out = torch.zeros(rows, w.shape[1] // 2 if gated else w.shape[1], dtype=dtype, device=x.device)
    start = 0
    for expert, count in enumerate(counts.tolist()):
        if count == 0:
            continue
        part = slice(start, start + count)
        start += count
        index = part if gather is None else gather[part].long()
        left, right = x[index], w[expert]
        if scales is None:
            left, right = left.to(dtype), right.to(dtype)
        else:
            left = dequantise_rows(left, scales.x[index], dtype)
            right = dequantise_weights(right[None], scales.w[expert][None], dtype)[0]
        y = left @ right.T
        if gated:
            y = swiglu(y)
        out[part] = y if row_scale is None else y * row_scale[part, None].to(dtype)
    return out


def _check(
    x: torch.Tensor,
    w: torch.Tensor,
    counts: torch.Tensor,
    gather: torch.Tensor | None,
    gated: bool,
    row_scale: torch.Tensor | None,
    scales: BlockScales | None,
) -> None:
    """What can be checked without reading a device's memory."""
    if x.dim() != 2 or w.dim() != 3 or x.shape[1] != w.shape[2]:
        raise InputError(
            "x and w do not fit together",
            field="x",
            found=f"x {tuple(x.shape)}, w {tuple(w.shape)}",
            allowed="x [rows, K] and w [experts, N, K]",
        )
    experts, n, k = w.shape
    rows = x.shape[0] if gather is None else gather.shape[0]
    if w.dtype != x.dtype:
        raise InputError("x and w differ in type", field="w", found=w.dtype, allowed=str(x.dtype))
    if counts.shape != (experts,) or counts.dtype != torch.int32:
        raise InputError(
            "one count per expert is needed",
            field="counts",
            found=f"{tuple(counts.shape)} {counts.dtype}",
            allowed=f"({experts},) torch.int32",
        )
    if gated and n % 2:
        raise InputError("gate and up rows come in pairs", field="w", found=f"N = {n}")
    for name, tensor, dtype in (
        ("gather", gather, torch.int32),
        ("row_scale", row_scale, torch.float32),
    ):
        if tensor is not None and (tensor.shape != (rows,) or tensor.dtype != dtype):
            raise InputError(
                "one value per row is needed",
                field=name,
                found=f"{tuple(tensor.shape)} {tensor.dtype}",
                allowed=f"({rows},) {dtype}",
            )
    if (scales is not None) != (x.dtype in FP8_TYPES):
        raise InputError(
            "fp8 comes with scales of 1 × 128 and 128 × 128 blocks, and nothing else does",
            field="scales",
            found="none" if scales is None else f"scales of {x.dtype}",
        )
    if scales is not None:
        _check_scales(scales, x.shape[0], experts, n, k)


def _check_scales(scales: BlockScales, rows: int, experts: int, n: int, k: int) -> None:
    high, wide = -(-n // 128), -(-k // 128)
    for name, tensor, shape in (
        ("scales.x", scales.x, (rows, wide)),
        ("scales.w", scales.w, (experts, high, wide)),
    ):
        if tensor.shape != shape or tensor.dtype != torch.float32:
            raise InputError(
                "one scale per block is needed",
                field=name,
                found=f"{tuple(tensor.shape)} {tensor.dtype}",
                allowed=f"{shape} torch.float32",
            )
