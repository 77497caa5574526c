"""fp8 e4m3 in blocks of 128 with one float32 scale each, as DeepSeek-V3 trains and serves.

Activations have a scale per row and 128 columns (1 × 128), weights one per 128 × 128 block
(DeepSeek-V3 report, arXiv 2412.19437, section 3.3.2). A value is its fp8 element times its scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from moesim.kernels.language import INTERPRETED, jit, runs_triton, tl, triton
from moesim.kernels.targets import check_type, target_of
from moesim.kernels.work import Work

__all__ = [
    "BLOCK",
    "BlockScales",
    "dequantise_rows",
    "dequantise_weights",
    "quantise_rows",
    "quantise_rows_reference",
    "quantise_rows_work",
    "quantise_weights",
]

BLOCK = 128
ROWS_PER_PROGRAM = 32


@dataclass(frozen=True)
class BlockScales:
    """Scales of the two operands of a GEMM in fp8.

    Attributes:
        x: [rows of x, ⌈K/128⌉] float32.
        w: [E, ⌈N/128⌉, ⌈K/128⌉] float32.
    """

    x: torch.Tensor
    w: torch.Tensor


@jit("rows")
def quantise_rows_kernel(
    x,
    elements,
    scales,
    rows,
    k,
    stride_x,
    most,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ROUND_FIRST: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    mask = (row < rows)[:, None] & (column < k)[None, :]
    wide = row.to(tl.int64)[:, None]
    block = tl.load(x + wide * stride_x + column[None, :], mask=mask, other=0.0).to(tl.float32)
    largest = tl.max(tl.abs(block), 1)
    scale = tl.where(largest > 0, largest / most, 1.0)
    # A quotient may exceed the largest value by a rounding error.
    value = tl.minimum(tl.maximum(block / scale[:, None], -most), most)
    if ROUND_FIRST:
        # The interpreter loses the carry of a mantissa that rounds up to the next power of two:
        # round to e4m3's three bits here (ties to even), in steps of 2⁻⁹ below its least normal.
        bits = value.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000
        fine = (value + 1.5 * 2.0**14) - 1.5 * 2.0**14
        value = tl.where(tl.abs(value) < 2.0**-6, fine, bits.to(tl.float32, bitcast=True))
    to = elements + wide * k + column[None, :]
    tl.store(to, value.to(elements.dtype.element_ty), mask=mask)
    tl.store(scales + tl.program_id(1).to(tl.int64) * rows + row, scale, mask=row < rows)


def quantise_rows(
    x: torch.Tensor, dtype: torch.dtype = torch.float8_e4m3fn
) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations in blocks of 1 × 128.

    Args:
        x: [R, K] any floating-point type.
        dtype: The fp8 type.

    Returns:
        The elements [R, K] and the scales [R, ⌈K/128⌉] float32. On a GPU the scales of one block
        of columns lie side by side, so that a GEMM reads those of its rows in one access.
    """
    if not runs_triton(x):
        return quantise_rows_reference(x, dtype)
    check_type(dtype, target_of(x.device))
    rows, k = x.shape
    x = x if x.stride(1) == 1 else x.contiguous()
    elements = torch.empty(rows, k, dtype=dtype, device=x.device)
    scales = torch.empty(-(-k // BLOCK), rows, dtype=torch.float32, device=x.device)
    if elements.numel():
        with torch.cuda.device_of(x):
            quantise_rows_kernel[(triton.cdiv(rows, ROWS_PER_PROGRAM), scales.shape[0])](
                x,
                elements,
                scales,
                rows,
                k,
                x.stride(0),
                torch.finfo(dtype).max,
                ROWS=ROWS_PER_PROGRAM,
                BLOCK_K=BLOCK,
                ROUND_FIRST=INTERPRETED,
                num_warps=4,
            )
    return elements, scales.T


def quantise_rows_reference(
    x: torch.Tensor, dtype: torch.dtype = torch.float8_e4m3fn
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`quantise_rows` in plain torch."""
    rows, k = x.shape
    blocks = _padded(x.float(), k).reshape(rows, -(-k // BLOCK), BLOCK)
    scale = _scale(blocks.abs().amax(dim=-1), dtype)
    elements = (blocks / scale[..., None]).flatten(1)[:, :k]
    return _rounded(elements, dtype), scale


def quantise_weights(
    w: torch.Tensor, dtype: torch.dtype = torch.float8_e4m3fn
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights in blocks of 128 × 128; done once, so in plain torch everywhere.

    Args:
        w: [E, N, K] any floating-point type, gate and up already interleaved.
        dtype: The fp8 type.

    Returns:
        The elements [E, N, K] and the scales [E, ⌈N/128⌉, ⌈K/128⌉] float32.
    """
    experts, n, k = w.shape
    padded = _padded(_padded(w.float(), k).transpose(1, 2), n).transpose(1, 2)
    high, wide = padded.shape[1] // BLOCK, padded.shape[2] // BLOCK
    blocks = padded.reshape(experts, high, BLOCK, wide, BLOCK)
    scale = _scale(blocks.abs().amax(dim=(2, 4)), dtype)
    elements = (blocks / scale[:, :, None, :, None]).reshape(padded.shape)[:, :n, :k]
    return _rounded(elements, dtype), scale


def dequantise_rows(x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[R, K] values of activations in blocks of 1 × 128."""
    wide = scale.repeat_interleave(BLOCK, dim=1)[:, : x.shape[1]]
    return x.to(dtype) * wide.to(dtype)


def dequantise_weights(w: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[E, N, K] values of weights in blocks of 128 × 128."""
    wide = scale.repeat_interleave(BLOCK, dim=1)[:, : w.shape[1]]
    wide = wide.repeat_interleave(BLOCK, dim=2)[:, :, : w.shape[2]]
    return w.to(dtype) * wide.to(dtype)


def quantise_rows_work(rows: int, k: int, in_bytes: int = 2) -> Work:
    """Least work of :func:`quantise_rows`: a maximum and a product per element."""
    return Work(2.0 * rows * k, rows * (k * (in_bytes + 1) + 4 * -(-k // BLOCK)))


def _padded(x: torch.Tensor, size: int) -> torch.Tensor:
    return torch.nn.functional.pad(x, (0, -size % BLOCK))


def _scale(largest: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Scale that brings the largest magnitude of a block to that of the type; 1 for zeros."""
    return torch.where(largest > 0, largest / torch.finfo(dtype).max, torch.ones_like(largest))


def _rounded(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """To fp8; a quotient may exceed the largest value by a rounding error."""
    most = torch.finfo(dtype).max
    return x.clamp(-most, most).to(dtype).contiguous()
