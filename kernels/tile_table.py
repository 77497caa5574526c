"""The tile table: counts of experts → the row tiles that a grouped GEMM works through.

One small kernel writes it on the device, so that no count is ever read back to the host. The table
may be cut by rows per expert: one table for experts with few rows, another for the rest, and each
goes to the kernel that suits it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from moesim.errors import InputError
from moesim.kernels.language import jit, runs_triton, tl, triton
from moesim.kernels.work import Work

__all__ = ["MOST_EXPERTS", "TileTable", "tile_table", "tile_table_reference", "tile_table_work"]

MOST_EXPERTS = 1024
ANY_ROWS = 2**31 - 1


@dataclass(frozen=True)
class TileTable:
    """Row tiles in the order of the experts; what follows the last tile is undefined.

    Attributes:
        tiles: [3, capacity] int32: expert, first row, and the row behind the last, of each tile.
        used: [1] int32 number of tiles.
        block_m: Rows of a full tile.
    """

    tiles: torch.Tensor
    used: torch.Tensor
    block_m: int

    @property
    def capacity(self) -> int:
        """Most tiles that the table can hold, whatever the counts are."""
        return self.tiles.shape[1]


@jit("rows", "capacity", "fewest", "most")
def tile_table_kernel(
    counts,
    tiles,
    used,
    experts,
    rows,
    capacity,
    fewest,
    most,
    BLOCK_M: tl.constexpr,
    EXPERTS: tl.constexpr,
):
    expert = tl.arange(0, EXPERTS)
    count = tl.load(counts + expert, mask=expert < experts, other=0)
    first_row = tl.cumsum(count, 0) - count
    own = tl.where((count >= fewest) & (count <= most), (count + BLOCK_M - 1) // BLOCK_M, 0)
    first_tile = tl.cumsum(own, 0) - own
    tl.store(used, tl.minimum(tl.sum(own, 0), capacity))
    longest = tl.max(own, 0)
    for step in range(0, longest):
        place = first_tile + step
        here = (step < own) & (place < capacity)
        begin = first_row + step * BLOCK_M
        # Counts that promise more rows than there are must not reach behind the result.
        end = tl.minimum(tl.minimum(begin + BLOCK_M, first_row + count), rows)
        tl.store(tiles + place, expert, mask=here)
        tl.store(tiles + capacity + place, begin, mask=here)
        tl.store(tiles + 2 * capacity + place, end, mask=here)


def tile_table(
    counts: torch.Tensor,
    rows: int,
    block_m: int,
    *,
    fewest: int = 1,
    most: int = ANY_ROWS,
) -> TileTable:
    """List the row tiles of the experts whose number of rows lies in a range.

    Args:
        counts: [E] int32 rows of each expert.
        rows: Rows of all experts, at least Σ counts.
        block_m: Rows of a full tile, a power of two.
        fewest: Experts with fewer rows are left out.
        most: Experts with more rows are left out.

    Raises:
        InputError: If there are too many experts.
    """
    experts = counts.shape[0]
    if not 1 <= experts <= MOST_EXPERTS:
        raise InputError(
            "too many experts for one table",
            field="counts",
            found=experts,
            allowed=f"1 to {MOST_EXPERTS}",
        )
    capacity = _capacity(experts, rows, block_m, most)
    if not runs_triton(counts):
        return tile_table_reference(counts, rows, block_m, fewest=fewest, most=most)
    tiles = torch.empty(3, capacity, dtype=torch.int32, device=counts.device)
    used = torch.empty(1, dtype=torch.int32, device=counts.device)
    tile_table_kernel[(1,)](
        counts.contiguous(),
        tiles,
        used,
        experts,
        rows,
        capacity,
        fewest,
        most,
        BLOCK_M=block_m,
        EXPERTS=triton.next_power_of_2(experts),
        num_warps=4,
    )
    return TileTable(tiles, used, block_m)


def tile_table_reference(
    counts: torch.Tensor,
    rows: int,
    block_m: int,
    *,
    fewest: int = 1,
    most: int = ANY_ROWS,
) -> TileTable:
    """:func:`tile_table` in plain Python; what follows the last tile is zero."""
    experts = counts.shape[0]
    table = torch.zeros(3, _capacity(experts, rows, block_m, most), dtype=torch.int32)
    place, first_row = 0, 0
    for expert, count in enumerate(counts.tolist()):
        if fewest <= count <= most:
            for begin in range(first_row, first_row + count, block_m):
                end = min(begin + block_m, first_row + count, rows)
                table[:, place] = torch.tensor([expert, begin, end])
                place += 1
        first_row += count
    used = torch.tensor([place], dtype=torch.int32)
    return TileTable(table.to(counts.device), used.to(counts.device), block_m)


def tile_table_work(experts: int, tiles: int) -> Work:
    """Least work of :func:`tile_table`: counts read, tiles written."""
    return Work(0.0, 4.0 * experts + 12.0 * tiles + 4.0)


def _capacity(experts: int, rows: int, block_m: int, most: int) -> int:
    """Most tiles that any counts can give.

    Every expert with rows may end in a tile that is not full, and an expert within the range has
    at most ⌈most / block_m⌉ tiles.
    """
    active = min(experts, rows)
    by_rows = active + (rows - active) // block_m
    return max(1, min(by_rows, active * -(-min(most, rows) // block_m)))
