"""Grouped GEMM for experts with few rows: operands swapped, columns split over programs.

The matrix units want 64 or more rows of their first operand. Here these are rows of weights, and
the tokens, 16 or 32 of them, are columns of the product, so that little of it is padding. Such a
product is bound by the bytes of the weights: each expert's are read once, and ``SPLIT_K`` programs
share a tile where there are too few tiles to keep all of memory busy. Each leaves its part of the
sum in float32, and a second kernel adds them in a fixed order.
"""

from __future__ import annotations

from moesim.kernels.language import jit, tl
from moesim.kernels.tile_kernel import epilogue

__all__ = ["row_kernel", "sum_kernel"]


@jit("capacity", "stride_xsk")
def row_kernel(
    x,
    w,
    out,
    gather,
    row_scale,
    x_scale,
    w_scale,
    tiles,
    used,
    capacity,
    n,
    k,
    stride_xm,
    stride_we,
    stride_wn,
    stride_om,
    stride_xsm,
    stride_xsk,
    stride_wse,
    stride_wsn,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    GATHER: tl.constexpr,
    GATED: tl.constexpr,
    ROW_SCALE: tl.constexpr,
    BLOCK_SCALES: tl.constexpr,
    EVEN_K: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One program per tile and split.

    With ``SPLIT_K`` > 1 ``out`` is [SPLIT_K, capacity · BLOCK_M, N] float32 in the order of the
    tiles, and the epilogue is left to :func:`sum_kernel`.
    """
    column_tiles = tl.cdiv(n, BLOCK_N)
    program = tl.program_id(0)
    split = program % SPLIT_K
    column = program // SPLIT_K % column_tiles * BLOCK_N
    row_tile = program // (SPLIT_K * column_tiles)
    # The grid holds as many tiles as any counts could need.
    if row_tile < tl.load(used):
        expert = tl.load(tiles + row_tile)
        row = tl.load(tiles + capacity + row_tile)
        row_end = tl.load(tiles + 2 * capacity + row_tile)
        rows = row + tl.arange(0, BLOCK_M)
        inside = rows < row_end
        columns = column + tl.arange(0, BLOCK_N)
        source = rows
        if GATHER:
            source = tl.load(gather + rows, mask=inside, other=0)
        ks = tl.arange(0, BLOCK_K)
        w_base = w + expert.to(tl.int64) * stride_we
        w_at = w_base + columns.to(tl.int64)[:, None] * stride_wn + ks[None, :]
        x_at = x + source.to(tl.int64)[:, None] * stride_xm + ks[None, :]
        k_steps = tl.cdiv(k, BLOCK_K)
        own_steps = tl.cdiv(k_steps, SPLIT_K)
        acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
        for step in range(split * own_steps, tl.minimum((split + 1) * own_steps, k_steps)):
            at = step * BLOCK_K
            w_mask = (columns < n)[:, None]
            x_mask = inside[:, None]
            if not EVEN_K:
                w_mask = w_mask & (ks < k - at)[None, :]
                x_mask = x_mask & (ks < k - at)[None, :]
            a = tl.load(w_at + at, mask=w_mask, other=0.0, eviction_policy="evict_first")
            b = tl.load(x_at + at, mask=x_mask, other=0.0)
            if UPCAST:
                a, b = a.to(tl.float32), b.to(tl.float32)
            if BLOCK_SCALES:
                b_s = tl.load(
                    x_scale + source.to(tl.int64) * stride_xsm + step * stride_xsk,
                    mask=inside,
                    other=0.0,
                )
                a_s = tl.load(
                    w_scale + expert.to(tl.int64) * stride_wse + column // 128 * stride_wsn + step
                )
                acc += tl.dot(a, b.T) * (a_s * b_s)[None, :]
            else:
                acc = tl.dot(a, b.T, acc)
        if SPLIT_K == 1:
            epilogue(
                acc.T,
                out,
                row_scale,
                row,
                row_end,
                column,
                n,
                stride_om,
                GATED,
                ROW_SCALE,
                BLOCK_M,
                BLOCK_N,
            )
        else:
            place = (split.to(tl.int64) * capacity + row_tile) * BLOCK_M + tl.arange(0, BLOCK_M)
            to = out + place[:, None] * n + columns[None, :]
            tl.store(to, acc.T, mask=inside[:, None] & (columns < n)[None, :])


@jit("capacity")
def sum_kernel(
    partial,
    out,
    row_scale,
    tiles,
    used,
    capacity,
    n,
    stride_om,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT_K: tl.constexpr,
    GATED: tl.constexpr,
    ROW_SCALE: tl.constexpr,
):
    """Add the parts of every tile, first to last, and finish it."""
    column_tiles = tl.cdiv(n, BLOCK_N)
    program = tl.program_id(0)
    column = program % column_tiles * BLOCK_N
    row_tile = program // column_tiles
    if row_tile < tl.load(used):
        row = tl.load(tiles + capacity + row_tile)
        row_end = tl.load(tiles + 2 * capacity + row_tile)
        rows = row + tl.arange(0, BLOCK_M)
        columns = column + tl.arange(0, BLOCK_N)
        mask = (rows < row_end)[:, None] & (columns < n)[None, :]
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for split in tl.static_range(SPLIT_K):
            tile = row_tile.to(tl.int64) + split * capacity
            place = tile * BLOCK_M + tl.arange(0, BLOCK_M)
            acc += tl.load(partial + place[:, None] * n + columns[None, :], mask=mask, other=0.0)
        epilogue(
            acc,
            out,
            row_scale,
            row,
            row_end,
            column,
            n,
            stride_om,
            GATED,
            ROW_SCALE,
            BLOCK_M,
            BLOCK_N,
        )
