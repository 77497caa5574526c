"""Rows sorted by expert: where each (token, choice) goes, by a counting sort without atomics.

Within an expert rows keep the order of the tokens, so the same routing gives the same rows, and the
same sums, every time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from moesim.errors import InputError
from moesim.kernels.work import Work

__all__ = ["Permutation", "permute", "permute_reference", "permute_work"]


@dataclass(frozen=True)
class Permutation:
    """Rows of a layer, sorted by expert.

    Attributes:
        counts: [E] int32 rows of each expert.
        token: [R] int32 token of each row, R = T·K; 0 behind the last group.
        row: [T, K] int32 row of each choice; −1 where the choice names no expert of this device.
        weight: [R] float32 router weight of each row; 0 behind the last group.
    """

    counts: torch.Tensor
    token: torch.Tensor
    row: torch.Tensor
    weight: torch.Tensor


def permute(ids: torch.Tensor, weights: torch.Tensor, experts: int) -> Permutation:
    """Sort the choices of all tokens by expert.

    Args:
        ids: [T, K] int32 expert of each choice; a number outside 0 … experts − 1 is an expert of
            another device and gets no row.
        weights: [T, K] float32 router weights.
        experts: Number of experts, E.

    Raises:
        InputError: If shapes or types do not fit.
    """
    _check(ids, weights, experts)
    return _by_torch(ids, weights, experts)


def permute_reference(ids: torch.Tensor, weights: torch.Tensor, experts: int) -> Permutation:
    """:func:`permute` in plain torch: a stable sort."""
    _check(ids, weights, experts)
    return _by_torch(ids, weights, experts)


def permute_work(tokens: int, top_k: int, experts: int) -> Work:
    """Least work of :func:`permute`: ids and weights read once, all arrays written once."""
    choices = tokens * top_k
    return Work(0.0, choices * (8 + 12) + 4 * experts)


def _by_torch(ids: torch.Tensor, weights: torch.Tensor, experts: int) -> Permutation:
    flat = ids.reshape(-1).long()
    known = (flat >= 0) & (flat < experts)
    key = torch.where(known, flat, experts)
    order = key.argsort(stable=True)
    rows = int(known.sum())
    counts = torch.bincount(key, minlength=experts + 1)[:experts]
    token = torch.zeros(flat.shape[0], dtype=torch.int32, device=ids.device)
    weight = torch.zeros(flat.shape[0], dtype=torch.float32, device=ids.device)
    token[:rows] = (order[:rows] // ids.shape[1]).int()
    weight[:rows] = weights.reshape(-1)[order[:rows]]
    row = torch.full((flat.shape[0],), -1, dtype=torch.int32, device=ids.device)
    row[order[:rows]] = torch.arange(rows, dtype=torch.int32, device=ids.device)
    return Permutation(counts.int(), token, row.reshape(ids.shape), weight)


def _check(ids: torch.Tensor, weights: torch.Tensor, experts: int) -> None:
    if ids.dim() != 2 or ids.dtype != torch.int32:
        raise InputError(
            "expert ids are needed per token and choice",
            field="ids",
            found=f"{tuple(ids.shape)} {ids.dtype}",
            allowed="[tokens, top_k] torch.int32",
        )
    if weights.shape != ids.shape or weights.dtype != torch.float32:
        raise InputError(
            "one weight per choice is needed",
            field="weights",
            found=f"{tuple(weights.shape)} {weights.dtype}",
            allowed=f"{tuple(ids.shape)} torch.float32",
        )
    if experts < 1:
        raise InputError("no experts", field="experts", found=experts, allowed="at least 1")
