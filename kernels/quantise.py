"""fp8 e4m3 in blocks of 128 with one float32 scale each, as DeepSeek-V3 trains and serves.

Activations have a scale per row and 128 columns (1 × 128), weights one per 128 × 128 block
(DeepSeek-V3 report, arXiv 2412.19437, section 3.3.2). A value is its fp8 element times its scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from moesim.kernels.work import Work

__all__ = [
    "BLOCK",
    "FP8_MAX",
    "BlockScales",
    "dequantise_rows",
    "dequantise_weights",
    "quantise_rows",
    "quantise_rows_reference",
    "quantise_rows_work",
    "quantise_weights",
]

BLOCK = 128
FP8_MAX = 448.0
"""Largest finite e4m3 (OCP 8-bit floating point specification, table 1)."""


@dataclass(frozen=True)
class BlockScales:
    """Scales of the two operands of a GEMM in fp8.

    Attributes:
        x: [rows of x, ⌈K/128⌉] float32.
        w: [E, ⌈N/128⌉, ⌈K/128⌉] float32.
    """

    x: torch.Tensor
    w: torch.Tensor


def quantise_rows(
    x: torch.Tensor, dtype: torch.dtype = torch.float8_e4m3fn
) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations in blocks of 1 × 128.

    Args:
        x: [R, K] any floating-point type.
        dtype: The fp8 type.

    Returns:
        The elements [R, K] and the scales [R, ⌈K/128⌉] float32.
    """
    return quantise_rows_reference(x, dtype)


def quantise_rows_reference(
    x: torch.Tensor, dtype: torch.dtype = torch.float8_e4m3fn
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`quantise_rows` in plain torch."""
    rows, k = x.shape
    blocks = _padded(x.float(), k).reshape(rows, -1, BLOCK)
    scale = _scale(blocks.abs().amax(dim=-1))
    elements = (blocks / scale[..., None]).reshape(rows, -1)[:, :k]
    return elements.clamp(-FP8_MAX, FP8_MAX).to(dtype), scale


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
    scale = _scale(blocks.abs().amax(dim=(2, 4)))
    elements = (blocks / scale[:, :, None, :, None]).reshape(padded.shape)[:, :n, :k]
    return elements.clamp(-FP8_MAX, FP8_MAX).to(dtype).contiguous(), scale


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


def _scale(largest: torch.Tensor) -> torch.Tensor:
    """Scale of blocks by their largest magnitude; 1 for a block of zeros."""
    return torch.where(largest > 0, largest / FP8_MAX, torch.ones_like(largest))
