"""What a grouped GEMM takes, from the histogram of rows per expert: a model of waves.

A configuration cuts the rows of every expert into tiles. Tiles run in waves over the cores, and a
wave takes as long as one tile; meanwhile the bytes of the active experts' weights and of the rows
come through memory. For one part of a configuration, with T tiles on S slots (cores × programs per
core) and Q steps over columns per tile:

    step    = max(2·bm·bn·bk / (share · core peak / programs per core), latency / (stages − 1))
    compute = ⌈T / S⌉ · (tile + Q · step)
    memory  = bytes / (reach · bandwidth)
    time    = launches · launch + (compute^p + memory^p)^(1/p)

Five coefficients belong to a configuration: ``share`` of the peak that its inner loop reaches,
``reach`` of the bandwidth, ``latency_s`` of a load, ``tile_s`` around the loop, ``launch_s``. A
choice by such a model from the histogram, instead of by the number of tokens, is the idea of RaMP
(arXiv 2604.26039).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from moesim.errors import InputError
from moesim.kernels.config import GemmConfig, Part

__all__ = ["Coefficients", "GemmShape", "Speeds", "moved_bytes", "part_seconds"]

HELD = 0.5
"""Share of the last-level cache up to which an expert's weights surely stay in it: GPUs from the
A100 on have it in two halves, each of which keeps what its own cores read (NVIDIA A100 whitepaper,
"A100 L2 Cache"). Measured on an H100 and an H200 of 50 MB: weights of 25 MB come at 7 TB/s from
the cache, those of 59 MB at the rate of a copy."""

OVERLAP = 4.0
"""Exponent p: the longer of compute and memory, and little more (assumed)."""


@dataclass(frozen=True)
class Coefficients:
    """Of one configuration.

    Attributes:
        share: Of a core's peak that the inner loop reaches when it waits for nothing.
        reach: Of the bandwidth that copies reach.
        latency_s: From the request of a step's operands to their arrival.
        tile_s: Beginning and end of a tile that the loop does not hide.
        launch_s: Of one kernel.
    """

    share: float
    reach: float
    latency_s: float
    tile_s: float
    launch_s: float

    def __post_init__(self) -> None:
        for name in ("share", "reach", "latency_s", "tile_s", "launch_s"):
            value = getattr(self, name)
            least = 1e-3 if name in ("share", "reach") else 0.0
            if not isinstance(value, int | float) or not least <= value < 10:
                raise InputError(
                    "no such coefficient", field=name, found=value, allowed=f"{least:g} to 10"
                )


@dataclass(frozen=True)
class Speeds:
    """A processor, for one type of operands.

    Attributes:
        cores: Streaming multiprocessors.
        flop_per_s: Dense peak of all cores.
        bytes_per_s: Memory bandwidth that a kernel can reach.
        cache_bytes: Last-level cache.
    """

    cores: int
    flop_per_s: float
    bytes_per_s: float
    cache_bytes: float

    def on(self, cores: int, bytes_per_s: float | None) -> Speeds:
        """A chip of the same kind with so many cores, and another bandwidth if it is known."""
        return replace(
            self,
            cores=cores,
            flop_per_s=self.flop_per_s * cores / self.cores,
            bytes_per_s=bytes_per_s or self.bytes_per_s,
        )


@dataclass(frozen=True)
class GemmShape:
    """A grouped GEMM without its rows.

    Attributes:
        n: Rows of an expert's weights.
        k: Columns of them.
        in_bytes: Per element of the operands, scales included.
        out_bytes: Per element of the result.
        gated: Whether SwiGLU halves the result's columns.
    """

    n: int
    k: int
    in_bytes: float = 2.0
    out_bytes: float = 2.0
    gated: bool = False


def part_seconds(
    part: Part,
    coefficients: Coefficients,
    histogram: np.ndarray,
    shape: GemmShape,
    speeds: Speeds,
) -> float:
    """Seconds of one part; without any rows it still costs its launches.

    Args:
        part: Configuration and the rows per expert that it is for.
        coefficients: Of the configuration.
        histogram: [E] rows of each expert.
        shape: Of the GEMM.
        speeds: Of the processor.
    """
    config = part.config
    own = histogram[(histogram >= part.fewest) & (histogram <= part.most)]
    row_tiles = int((-(-own // config.block_m)).sum())
    column_tiles = -(-shape.n // config.block_n)
    tiles = row_tiles * column_tiles * config.split_k
    launches = 2 if config.split_k == 1 else 3  # the tile table, the GEMM, the sum of its parts
    steps = ceil(ceil(shape.k / config.block_k) / config.split_k)
    waves = -(-tiles // (speeds.cores * config.programs_per_core))
    compute_s = waves * (coefficients.tile_s + steps * step_seconds(config, coefficients, speeds))
    moved = moved_bytes(config, own, shape, speeds)
    memory_s = moved / (coefficients.reach * speeds.bytes_per_s)
    longer = max(compute_s, memory_s)
    if longer == 0.0:
        return launches * coefficients.launch_s
    overlapped = longer * ((compute_s / longer) ** OVERLAP + (memory_s / longer) ** OVERLAP) ** (
        1 / OVERLAP
    )
    return launches * coefficients.launch_s + overlapped


def step_seconds(config: GemmConfig, coefficients: Coefficients, speeds: Speeds) -> float:
    """One step of the inner loop: arithmetic, or waiting where the pipeline is too shallow."""
    flops = 2.0 * config.block_m * config.block_n * config.block_k
    rate = speeds.flop_per_s / speeds.cores / config.programs_per_core * coefficients.share
    return max(flops / rate, coefficients.latency_s / max(1, config.num_stages - 1))


def moved_bytes(config: GemmConfig, own: np.ndarray, shape: GemmShape, speeds: Speeds) -> float:
    """Bytes through memory: weights once per group of row tiles that share them, rows once.

    The tile kernel's groups take their turns at the same weights; in the row kernel as many row
    tiles run at the same time as the cores have room for. What one group has read, the next finds
    in the cache if all of the expert's weights fit there. Parts of a sum go out and come in in
    float32.
    """
    rows, active = int(own.sum()), own[own > 0]
    together = float(config.group_m)
    if config.kernel == "row":
        column_tiles = -(-shape.n // config.block_n)
        slots = speeds.cores * config.programs_per_core
        together = max(1.0, slots / (column_tiles * config.split_k))
    groups = np.maximum(1.0, -(-active // config.block_m) / together)
    weight_bytes = shape.n * shape.k * shape.in_bytes
    lost = (weight_bytes / speeds.cache_bytes - HELD) / (1 - HELD)
    reads = float((1 + (groups - 1) * min(1.0, max(0.0, lost))).sum())
    width = shape.n // 2 if shape.gated else shape.n
    moved = reads * weight_bytes + rows * (shape.k * shape.in_bytes + width * shape.out_bytes)
    if config.split_k > 1:
        moved += 2 * config.split_k * rows * shape.n * 4
    return moved
