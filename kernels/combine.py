"""Rows of experts back to tokens: the sum over a token's choices, in their order.

No atomics: one program sums the rows of a token in float32 from the first choice to the last, so
that the result does not depend on which expert finished first.
"""

from __future__ import annotations

import torch

from moesim.errors import InputError
from moesim.kernels.work import Work, element_bytes

__all__ = ["combine", "combine_reference", "combine_work"]


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
    return combine_reference(y, row, torch.float32).to(y.dtype)


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
