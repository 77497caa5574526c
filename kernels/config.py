"""Configurations of the grouped GEMM: which kernel, which tiles, and for which experts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from moesim.errors import InputError
from moesim.kernels.tile_table import ANY_ROWS

__all__ = ["UNALIGNED", "GemmConfig", "Part"]


@dataclass(frozen=True)
class GemmConfig:
    """One way to compile a grouped GEMM.

    Attributes:
        kernel: ``tile``, the persistent kernel for large groups, or ``row``, the kernel for few
            rows with its operands swapped.
        block_m: Rows of tokens per tile.
        block_n: Rows of weights per tile.
        block_k: Columns of both per step.
        num_warps: Warps of a program.
        num_stages: Depth of the software pipeline.
        group_m: Row tiles that take their turns at the same weights (``tile``).
        split_k: Programs that share the columns of a tile (``row``).
        programs_per_core: Programs that fit on one streaming multiprocessor (``tile``).
    """

    kernel: Literal["tile", "row"]
    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    group_m: int = 8
    split_k: int = 1
    programs_per_core: int = 1

    def __post_init__(self) -> None:
        if self.kernel not in ("tile", "row"):
            raise InputError(
                "unknown kernel", field="kernel", found=self.kernel, allowed="tile, row"
            )
        for name in ("block_m", "block_n", "block_k", "num_warps"):
            value = getattr(self, name)
            if value < 1 or value & (value - 1):
                raise InputError(
                    "not a power of two", field=name, found=value, allowed="a power of two"
                )
        if self.block_n < 16 or self.block_k < 16 or self.block_m < 16:
            raise InputError(
                "tiles are too small for the matrix units",
                field="block_m",
                found=self.name,
                allowed="16 or more in every direction",
            )
        for name in ("num_stages", "group_m", "split_k", "programs_per_core"):
            if getattr(self, name) < 1:
                raise InputError("must be positive", field=name, found=getattr(self, name))
        if self.kernel == "tile" and self.split_k != 1:
            raise InputError(
                "only the row kernel splits columns",
                field="split_k",
                found=self.split_k,
                allowed="1",
            )

    @property
    def name(self) -> str:
        """A name that says all that changes the compiled code, e.g. ``tile-128x256x64-w8-s3``."""
        blocks = f"{self.block_m}x{self.block_n}x{self.block_k}"
        name = f"{self.kernel}-{blocks}-w{self.num_warps}-s{self.num_stages}"
        return name if self.split_k == 1 else f"{name}-k{self.split_k}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Part:
    """A configuration for the experts whose number of rows lies in a range.

    Attributes:
        config: How their rows are multiplied.
        fewest: Least rows.
        most: Most rows.
    """

    config: GemmConfig
    fewest: int = 1
    most: int = ANY_ROWS


UNALIGNED = GemmConfig("tile", 64, 64, 32, 8, 2)
"""For operands whose rows lie no multiple of 16 elements apart.

They are loaded one element at a time, through registers, and in a larger tile these would spill.
"""
