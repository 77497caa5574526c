"""Grouped GEMM for experts with many rows: a persistent kernel over a tile table.

One program per streaming multiprocessor (or a few) strides over all tiles. Tiles are numbered so
that ``GROUP_M`` row tiles take their turns at one block of weights before the next block comes:
programs that run at the same time then read the same weights, and these stay in L2.

Operands come through tensor descriptors (TMA on Hopper and Blackwell) where the launcher says that
their strides allow it, and through pointers otherwise. Results leave through masked pointers:
a descriptor's store would overwrite the rows of the next expert, whose group begins where this one
ends and not at a tile.
"""

from __future__ import annotations

from moesim.kernels.language import jit, tl

__all__ = ["epilogue", "tile_kernel"]


@jit()
def epilogue(
    y,
    out,
    row_scale,
    row,
    row_end,
    column,
    n,
    stride_om,
    GATED: tl.constexpr,
    ROW_SCALE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Activation, router weight, masked store of ``y`` [BLOCK_M, BLOCK_N] float32.

    ``row`` and ``column`` are those of its first element, before the activation halves columns.
    """
    rows = row + tl.arange(0, BLOCK_M)
    inside = rows < row_end
    if GATED:
        # Neighbouring columns are gate and up of one output.
        gate, up = tl.split(tl.reshape(y, (BLOCK_M, BLOCK_N // 2, 2)))
        y = gate * tl.sigmoid(gate) * up
        columns = column // 2 + tl.arange(0, BLOCK_N // 2)
        width = n // 2
    else:
        columns = column + tl.arange(0, BLOCK_N)
        width = n
    if ROW_SCALE:
        y = y * tl.load(row_scale + rows, mask=inside, other=0.0)[:, None]
    # Rows times columns of a long prefill exceed 32 bits.
    to = out + rows.to(tl.int64)[:, None] * stride_om + columns[None, :]
    tl.store(to, y.to(out.dtype.element_ty), mask=inside[:, None] & (columns < width)[None, :])


@jit("capacity", "stride_xsk")
def tile_kernel(
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
    GROUP_M: tl.constexpr,
    X_DESCRIPTOR: tl.constexpr,
    W_DESCRIPTOR: tl.constexpr,
    GATHER: tl.constexpr,
    GATED: tl.constexpr,
    ROW_SCALE: tl.constexpr,
    BLOCK_SCALES: tl.constexpr,
    EVEN_K: tl.constexpr,
    UPCAST: tl.constexpr,
    FLATTEN: tl.constexpr,
):
    """See the module; strides are in elements, those of the last axes are 1.

    ``FLATTEN`` makes one loop of tiles and steps, so that a tile's first loads overlap the end of
    the one before.

    With ``X_DESCRIPTOR`` ``x`` is a descriptor of [R, K] in blocks [BLOCK_M, BLOCK_K], with
    ``W_DESCRIPTOR`` ``w`` one of [E, N, K] in blocks [1, BLOCK_N, BLOCK_K].
    """
    row_tiles = tl.load(used)
    column_tiles = tl.cdiv(n, BLOCK_N)
    k_steps = tl.cdiv(k, BLOCK_K)
    per_group = GROUP_M * column_tiles
    total = row_tiles * column_tiles
    # Nothing may be carried from tile to tile: Triton 3.6 gives the first step of a flattened loop
    # the values of the tile before (seen on an H200, where one step in every tile was wrong).
    for tile in tl.range(tl.program_id(0), total, tl.num_programs(0), flatten=FLATTEN):
        first = tile // per_group * GROUP_M
        members = tl.minimum(row_tiles - first, GROUP_M)
        column = tile % per_group // members * BLOCK_N
        place = first + tile % per_group % members
        expert = tl.load(tiles + place)
        row = tl.load(tiles + capacity + place)
        row_end = tl.load(tiles + 2 * capacity + place)

        rows = row + tl.arange(0, BLOCK_M)
        inside = rows < row_end
        columns = column + tl.arange(0, BLOCK_N)
        source = rows
        if GATHER:
            source = tl.load(gather + rows, mask=inside, other=0)
        w_base = expert.to(tl.int64) * stride_we
        if BLOCK_SCALES:
            x_scales = x_scale + source.to(tl.int64) * stride_xsm
            w_scales = w_scale + expert.to(tl.int64) * stride_wse + column // 128 * stride_wsn
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for step in range(k_steps):
            at = step * BLOCK_K
            ks = at + tl.arange(0, BLOCK_K)
            if X_DESCRIPTOR:
                a = x.load([row, at])
            else:
                a_at = x + source.to(tl.int64)[:, None] * stride_xm + ks[None, :]
                a_mask = inside[:, None] if EVEN_K else inside[:, None] & (ks < k)[None, :]
                a = tl.load(a_at, mask=a_mask, other=0.0)
            if W_DESCRIPTOR:
                b = w.load([expert, column, at]).reshape(BLOCK_N, BLOCK_K)
            else:
                b_at = w + w_base + columns.to(tl.int64)[:, None] * stride_wn + ks[None, :]
                b_mask = (columns < n)[:, None]
                b_mask = b_mask if EVEN_K else b_mask & (ks < k)[None, :]
                b = tl.load(b_at, mask=b_mask, other=0.0)
            if UPCAST:
                a, b = a.to(tl.float32), b.to(tl.float32)
            if BLOCK_SCALES:
                # BLOCK_K is 128 and BLOCK_N divides it: one weight scale per step.
                a_s = tl.load(x_scales + step * stride_xsk, mask=inside, other=0.0)
                b_s = tl.load(w_scales + step)
                acc += tl.dot(a, b.T) * (a_s * b_s)[:, None]
            else:
                acc = tl.dot(a, b.T, acc)
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
