"""Rows of experts back to tokens: the sum over a token's choices, in their order.

No atomics: one program sums the rows of a token in float32 from the first choice to the last, so
that the result does not depend on which expert finished first.
"""

from __future__ import annotations

import torch

from moesim.errors import InputError
from moesim.kernels.language import jit, runs_triton, tl, triton
from moesim.kernels.work import Work, element_bytes

__all__ = ["combine", "combine_reference", "combine_work"]


@jit()
def combine_kernel(
    y,
    row,
    out,
    hidden,
    stride_y,
    TOP_K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < hidden
    acc = tl.zeros((BLOCK,), dtype=tl.float32)
    for choice in tl.static_range(TOP_K):
        place = tl.load(row + token.to(tl.int64) * TOP_K + choice)
        at = y + place.to(tl.int64) * stride_y + column
        acc += tl.load(at, mask=inside & (place >= 0), other=0.0).to(tl.float32)
    to = out + token.to(tl.int64) * hidden + column
    tl.store(to, acc.to(out.dtype.element_ty), mask=inside)


def combine(y: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    """Sum the rows of every token.

    Args:
        y: [R, H] rows, already times the router's weight.
        row: [T, K] int32 row of each choice; −1 for none.

    Returns:
        [T, H] in the type of ``y``.

    Raises:
        InputError: If shapes or types do not fit.
    """
    _check(y, row)
    if not runs_triton(y, row):
        return combine_reference(y, row, torch.float32).to(y.dtype)
    tokens, hidden = row.shape[0], y.shape[1]
    out = torch.empty(tokens, hidden, dtype=y.dtype, device=y.device)
    if out.numel():
        y = y if y.stride(1) == 1 else y.contiguous()
        block = min(1024, triton.next_power_of_2(hidden))
        with torch.cuda.device_of(y):
            combine_kernel[(tokens, triton.cdiv(hidden, block))](
                y,
                row.contiguous(),
                out,
                hidden,
                y.stride(0),
                TOP_K=row.shape[1],
                BLOCK=block,
                num_warps=4,
            )
    return out


def combine_reference(
    y: torch.Tensor, row: torch.Tensor, precision: torch.dtype = torch.float64
) -> torch.Tensor:
    """:func:`combine` in plain torch, computed and returned in ``precision``."""
    _check(y, row)
    out = torch.zeros(row.shape[0], y.shape[1], dtype=precision, device=y.device)
    for choice in range(row.shape[1]):
        index = row[:, choice].long()
        here = index >= 0
        out[here] += y[index[here]].to(precision)
    return out


def combine_work(
    tokens: int, top_k: int, hidden: int, *, dtype: torch.dtype = torch.bfloat16
) -> Work:
    """Least work of :func:`combine`: every row read once, every token written once."""
    size = element_bytes(dtype)
    return Work(
        float(tokens * top_k * hidden),
        float(tokens * (top_k + 1) * hidden * size + tokens * top_k * 4),
    )


def _check(y: torch.Tensor, row: torch.Tensor) -> None:
    if y.dim() != 2 or row.dim() != 2 or row.dtype != torch.int32:
        raise InputError(
            "rows and their places do not fit",
            field="row",
            found=f"y {tuple(y.shape)}, row {tuple(row.shape)} {row.dtype}",
            allowed="y [rows, H], row [tokens, top_k] torch.int32",
        )
