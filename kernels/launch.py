"""From tensors to kernel launches: tile tables, descriptors, grids, workspaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from moesim.errors import InputError
from moesim.kernels.config import UNALIGNED, GemmConfig, Part
from moesim.kernels.language import INTERPRETED
from moesim.kernels.quantise import BLOCK, BlockScales
from moesim.kernels.targets import Target, check_type, chip_of, target_of
from moesim.kernels.tile_table import TileTable, tile_table

__all__ = ["Operands", "TileTables", "launch"]

ALIGNMENT = 16
"""Elements. Triton takes a stride for aligned if it is a multiple of 16, and only then loads 16
bytes at once; a descriptor's base and strides are multiples of 16 bytes (cuTensorMapEncodeTiled).
"""


@dataclass(frozen=True)
class Operands:
    """Tensors of one grouped GEMM, checked, with their last axes contiguous."""

    x: torch.Tensor
    w: torch.Tensor
    out: torch.Tensor
    gather: torch.Tensor | None
    row_scale: torch.Tensor | None
    scales: BlockScales | None
    gated: bool


class TileTables:
    """Tile tables of one set of counts, each made once: both GEMMs of a layer share them.

    Args:
        counts: [E] int32 rows of each expert.
        rows: Rows of all experts, at least Σ counts.
    """

    def __init__(self, counts: torch.Tensor, rows: int) -> None:
        self.counts = counts
        self.rows = rows
        self._made: dict[tuple[int, int, int], TileTable] = {}

    def get(self, part: Part) -> TileTable:
        """The table of a part."""
        key = (part.config.block_m, part.fewest, part.most)
        if key not in self._made:
            self._made[key] = tile_table(
                self.counts, self.rows, key[0], fewest=part.fewest, most=part.most
            )
        return self._made[key]


def launch(operands: Operands, tables: TileTables, parts: Sequence[Part]) -> None:
    """Run the kernels of all parts; together they fill the rows of all experts.

    Operands that are not aligned run :data:`moesim.kernels.config.UNALIGNED` instead.

    Raises:
        InputError: If a configuration cannot run these operands.
        UsageError: If the device cannot multiply their type.
    """
    target = target_of(operands.x.device)
    check_type(operands.x.dtype, target)
    check_parts(parts)
    aligned = _aligned(operands)
    if operands.scales is not None:
        if not aligned:
            raise InputError(
                "fp8 operands must be aligned",
                field="x",
                found=f"strides of x {operands.x.stride()}, of w {operands.w.stride()}",
                allowed=f"K and the distance of rows multiples of {ALIGNMENT}",
                fix="pad K",
            )
        for part in parts:
            check_block_scales(part.config)
    if not aligned:
        parts = (Part(UNALIGNED),)
    with torch.cuda.device_of(operands.x):  # type: ignore[no-untyped-call]
        for part in parts:
            run = _run_tile if part.config.kernel == "tile" else _run_row
            run(operands, tables.get(part), part.config, target)


def check_parts(parts: Sequence[Part]) -> None:
    """Refuse parts that leave out an expert or multiply it twice.

    Raises:
        InputError: Naming the first gap or overlap.
    """
    following = 1
    for part in sorted(parts, key=lambda part: part.fewest):
        if part.fewest != following:
            raise InputError(
                "the parts of a configuration leave a gap or overlap",
                field="parts",
                found=f"fewest {part.fewest}",
                allowed=f"fewest {following}",
            )
        following = part.most + 1
    if following != 2**31:
        raise InputError(
            "the parts of a configuration end too early",
            field="parts",
            found=f"most {following - 1}",
            allowed="no limit in the last part",
        )


def check_block_scales(config: GemmConfig) -> None:
    """Refuse tiles that do not fit blocks of scales.

    Raises:
        InputError: Naming the configuration.
    """
    if config.block_k != BLOCK or BLOCK % config.block_n:
        raise InputError(
            "fp8 needs one scale per step",
            field="block_k",
            found=config.name,
            allowed=f"block_k = {BLOCK}, and a block_n that divides {BLOCK}",
        )


def _run_tile(operands: Operands, table: TileTable, config: GemmConfig, target: Target) -> None:
    from moesim.kernels.tile_kernel import tile_kernel

    x, w = operands.x, operands.w
    describe = target.descriptors and config != UNALIGNED
    describe_x = describe and operands.gather is None and _describable(x)
    describe_w = describe and _describable(w)
    block_x, block_w = [config.block_m, config.block_k], [1, config.block_n, config.block_k]
    column_tiles = -(-w.shape[1] // config.block_n)
    programs = chip_of(x.device).cores * config.programs_per_core
    tile_kernel[(min(programs, table.capacity * column_tiles),)](
        _descriptor(x, block_x) if describe_x else x,
        _descriptor(w, block_w) if describe_w else w,
        operands.out,
        **_common(operands, table, config),
        GROUP_M=config.group_m,
        X_DESCRIPTOR=describe_x,
        W_DESCRIPTOR=describe_w,
        GATED=operands.gated,
        ROW_SCALE=operands.row_scale is not None,
        # In bf16 up to 8 % faster; with scales per step 7 to 24 % slower (H200, Triton 3.6).
        FLATTEN=operands.scales is None,
        stride_om=operands.out.stride(0),
    )


def _run_row(operands: Operands, table: TileTable, config: GemmConfig, target: Target) -> None:
    from moesim.kernels.row_kernel import row_kernel, sum_kernel

    split = config.split_k
    n = operands.w.shape[1]
    tiles = table.capacity * -(-n // config.block_n)
    out = operands.out
    if split > 1:
        shape = (split, table.capacity * config.block_m, n)
        out = torch.empty(shape, dtype=torch.float32, device=out.device)
    row_kernel[(tiles * split,)](
        operands.x,
        operands.w,
        out,
        **_common(operands, table, config),
        SPLIT_K=split,
        GATED=operands.gated and split == 1,
        ROW_SCALE=operands.row_scale is not None and split == 1,
        stride_om=operands.out.stride(0),
    )
    if split > 1:
        sum_kernel[(tiles,)](
            out,
            operands.out,
            operands.row_scale,
            table.tiles,
            table.used,
            table.capacity,
            n,
            operands.out.stride(0),
            BLOCK_M=config.block_m,
            BLOCK_N=config.block_n,
            SPLIT_K=split,
            GATED=operands.gated,
            ROW_SCALE=operands.row_scale is not None,
            num_warps=4,
        )


def _common(operands: Operands, table: TileTable, config: GemmConfig) -> dict[str, Any]:
    """Arguments that both kernels take."""
    x, w, scales = operands.x, operands.w, operands.scales
    k = w.shape[2]
    x_strides, w_strides = (0, 0), (0, 0)
    if scales is not None:
        x_strides = (scales.x.stride(0), scales.x.stride(1))
        w_strides = (scales.w.stride(0), scales.w.stride(1))
    return {
        "gather": operands.gather,
        "row_scale": operands.row_scale,
        "x_scale": None if scales is None else scales.x,
        "w_scale": None if scales is None else scales.w,
        "tiles": table.tiles,
        "used": table.used,
        "capacity": table.capacity,
        "n": w.shape[1],
        "k": k,
        "stride_xm": x.stride(0),
        "stride_we": w.stride(0),
        "stride_wn": w.stride(1),
        "stride_xsm": x_strides[0],
        "stride_xsk": x_strides[1],
        "stride_wse": w_strides[0],
        "stride_wsn": w_strides[1],
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "GATHER": operands.gather is not None,
        "BLOCK_SCALES": scales is not None,
        "EVEN_K": k % config.block_k == 0,
        "UPCAST": INTERPRETED and x.dtype == torch.bfloat16,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }


def _aligned(operands: Operands) -> bool:
    """Whether rows of both operands begin where wide loads can."""
    x, w = operands.x, operands.w
    outer = (*x.stride()[:-1], *w.stride()[:-1], w.shape[2])
    pointers = (x.data_ptr(), w.data_ptr())
    return all(value % ALIGNMENT == 0 for value in (*outer, *pointers))


def _describable(tensor: torch.Tensor) -> bool:
    """Whether the copy engine can read an aligned tensor: rows must not overlap."""
    strides = tensor.stride()
    lengths = tensor.shape
    return all(0 < length < 2**31 for length in lengths) and all(
        strides[axis] >= strides[axis + 1] * lengths[axis + 1] for axis in range(len(lengths) - 1)
    )


def _descriptor(tensor: torch.Tensor, block: list[int]) -> Any:
    """A descriptor made on the host and passed by value: no memory of its own on the device."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor.from_tensor(tensor, block)
