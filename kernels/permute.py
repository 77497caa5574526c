"""Rows sorted by expert: where each (token, choice) goes, by a counting sort without atomics.

Within an expert rows keep the order of the tokens, so the same routing gives the same rows, and the
same sums, every time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from moesim.errors import InputError
from moesim.kernels.language import jit, runs_triton, tl, triton
from moesim.kernels.work import Work

BLOCK = 64
"""Choices per program: every one is compared with every other one before it."""
SCAN_BLOCKS, SCAN_EXPERTS = 128, 32

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


@jit("choices")
def count_kernel(ids, block_counts, choices, experts, BLOCK: tl.constexpr, EXPERTS: tl.constexpr):
    """Choices of each expert in each block of choices: ``block_counts`` [blocks, E]."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    expert = tl.load(ids + at, mask=at < choices, other=-1)
    known = (expert >= 0) & (expert < experts)
    own = tl.histogram(tl.where(known, expert, 0), EXPERTS, mask=known)
    every = tl.arange(0, EXPERTS)
    to = block_counts + tl.program_id(0).to(tl.int64) * experts + every
    tl.store(to, own, mask=every < experts)


@jit("blocks")
def scan_kernel(
    block_counts,
    block_starts,
    counts,
    blocks,
    experts,
    BLOCKS: tl.constexpr,
    EXPERTS: tl.constexpr,
):
    """Per expert: the choices in the blocks before each block, ``block_starts``, and in all."""
    expert = tl.program_id(0) * EXPERTS + tl.arange(0, EXPERTS)
    before = tl.zeros((EXPERTS,), dtype=tl.int32)
    for first in range(0, blocks, BLOCKS):
        block = first + tl.arange(0, BLOCKS)
        at = block.to(tl.int64)[:, None] * experts + expert[None, :]
        mask = (block < blocks)[:, None] & (expert < experts)[None, :]
        own = tl.load(block_counts + at, mask=mask, other=0)
        tl.store(block_starts + at, before[None, :] + tl.cumsum(own, 0) - own, mask=mask)
        before += tl.sum(own, 0)
    tl.store(counts + expert, before, mask=expert < experts)


@jit("choices")
def place_kernel(
    ids,
    weights,
    block_starts,
    counts,
    token,
    row,
    weight,
    choices,
    experts,
    TOP_K: tl.constexpr,
    BLOCK: tl.constexpr,
    EXPERTS: tl.constexpr,
):
    """Each choice to its row: behind the experts, the blocks and the choices before it."""
    every = tl.arange(0, EXPERTS)
    count = tl.load(counts + every, mask=every < experts, other=0)
    first_row = tl.cumsum(count, 0) - count
    here = tl.arange(0, BLOCK)
    at = tl.program_id(0) * BLOCK + here
    expert = tl.load(ids + at, mask=at < choices, other=-1)
    known = (expert >= 0) & (expert < experts)
    safe = tl.where(known, expert, 0)
    same = (expert[:, None] == expert[None, :]) & (here[None, :] < here[:, None])
    rank = tl.sum(same.to(tl.int32), 1)
    start = tl.load(
        block_starts + tl.program_id(0).to(tl.int64) * experts + safe, mask=known, other=0
    )
    place = tl.gather(first_row, safe, 0) + start + rank
    tl.store(row + at, tl.where(known, place, -1), mask=at < choices)
    tl.store(token + place, at // TOP_K, mask=known)
    tl.store(weight + place, tl.load(weights + at, mask=known, other=0.0), mask=known)


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
    if not runs_triton(ids, weights):
        return _by_torch(ids, weights, experts)
    choices, device = ids.numel(), ids.device
    counts = torch.zeros(experts, dtype=torch.int32, device=device)
    # Rows without a choice must name a token that there is, because a GEMM may gather them.
    token = torch.zeros(choices, dtype=torch.int32, device=device)
    weight = torch.zeros(choices, dtype=torch.float32, device=device)
    row = torch.empty(ids.shape, dtype=torch.int32, device=device)
    if choices:
        ids, weights = ids.contiguous(), weights.contiguous()
        blocks, padded = triton.cdiv(choices, BLOCK), max(16, triton.next_power_of_2(experts))
        block_counts = torch.empty(blocks, experts, dtype=torch.int32, device=device)
        block_starts = torch.empty_like(block_counts)
        with torch.cuda.device_of(ids):
            count_kernel[(blocks,)](
                ids, block_counts, choices, experts, BLOCK=BLOCK, EXPERTS=padded, num_warps=4
            )
            scan_kernel[(triton.cdiv(experts, SCAN_EXPERTS),)](
                block_counts,
                block_starts,
                counts,
                blocks,
                experts,
                BLOCKS=SCAN_BLOCKS,
                EXPERTS=SCAN_EXPERTS,
                num_warps=4,
            )
            place_kernel[(blocks,)](
                ids,
                weights,
                block_starts,
                counts,
                token,
                row,
                weight,
                choices,
                experts,
                TOP_K=ids.shape[1],
                BLOCK=BLOCK,
                EXPERTS=padded,
                num_warps=4,
            )
    return Permutation(counts, token, row, weight)


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
