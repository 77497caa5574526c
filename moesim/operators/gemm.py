"""Dense matrix multiplication [m, k] × [k, n] on one device.

A kernel cuts the result into tiles and gives each to a core; k may be split over several cores
whose sums are added afterwards. The time is

    host ⊔ (launch + quantisation + min over tilings of (compute ⊔ memory + reduction))

with ⊔ the smooth maximum (a^p + b^p)^(1/p) (``host``: p = 8). ``compute`` counts waves of tiles
over the cores; a tile pays a fixed time and per k step the larger of its arithmetic and of the
panels that it loads (A and B are re-read by every tile, mostly out of the L2 cache). ``memory``
counts each operand once. Which tiling a library takes is its own heuristic: ``tiling`` says
whether the best of a set describes it, or a fixed choice by m.

Tile and wave quantisation: NVIDIA, Matrix Multiplication Background User's Guide,
https://docs.nvidia.com/deeplearning/performance/dl-performance-matrix-multiplication/
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal, Self, get_args

import numpy as np
from pydantic import Field

from moesim.hardware import Device
from moesim.operators.fitted import Estimate, KernelFit
from moesim.operators.processor import Processor
from moesim.operators.systems import processor
from moesim.schema import Document

__all__ = [
    "FORMATS",
    "TILINGS",
    "GemmCoefficients",
    "GemmGeometry",
    "GemmKernel",
    "NumberFormat",
    "Tile",
    "Tiling",
    "gemm_bytes",
    "gemm_flops",
    "gemm_geometry",
    "gemm_seconds",
]

MMA_ROWS = 64
"""Rows of the smallest warp-group multiplication (PTX ISA, wgmma: m64nNk16); fewer are padded."""
HOST_EXPONENT = 8.0
"""Launches that run ahead of the device hide it or are hidden by it: nearly a plain maximum."""
AT_ONCE = 256
"""Rows whose tilings are compared together: their arrays stay in the cache of the processor."""
OUTPUT_BYTES = 2
PARTIAL_BYTES = 4
Tiling = Literal["split", "whole", "narrow", "dispatch"]
TILINGS: tuple[Tiling, ...] = get_args(Tiling)


@dataclass(frozen=True)
class NumberFormat:
    """How operands are stored.

    Attributes:
        input_bytes: Bytes per element of A, scales included.
        weight_bytes: Bytes per element of B.
        k_step: Elements of k that a tile takes at a time (128 bytes, one swizzled line).
        arithmetic: Format that the multiplication runs in.
    """

    input_bytes: float
    weight_bytes: float
    k_step: int
    arithmetic: str


FORMATS = {
    "bfloat16": NumberFormat(2, 2, 64, "bf16"),
    "fp8": NumberFormat(1, 1, 128, "fp8"),
    "fp8_block": NumberFormat(1, 1, 128, "fp8"),
    # 4 bits and one FP8 scale per 16 elements
    "nvfp4": NumberFormat(0.5625, 0.5625, 256, "fp4"),
    "sq": NumberFormat(1, 1, 128, "int8"),
    "int8_wo": NumberFormat(2, 1, 64, "bf16"),
    "int4_wo": NumberFormat(2, 0.5, 64, "bf16"),
}
"""By the names that the measured tables use."""


class Tile(Document):
    """A tile that a kernel may take where ``above_m`` < m ≤ ``up_to_m``."""

    rows: int = Field(gt=0)
    columns: int = Field(gt=0)
    splits: int = Field(default=1, gt=0)
    above_m: int = 0
    up_to_m: int | None = None


_COMMON = (
    *((16, 64), (16, 128), (32, 64), (32, 128), (64, 16), (64, 32), (64, 64), (64, 128)),
    *((64, 256), (128, 16), (128, 32), (128, 64), (128, 128), (128, 256), (256, 64), (256, 128)),
)
_SETS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "split": tuple((a, b, s) for a, b in _COMMON for s in (1, 2, 4, 8, 16, 32)),
    "whole": tuple((a, b, 1) for a, b in _COMMON),
    # DeepGEMM takes any multiple of 16 columns
    "narrow": tuple((a, b, 1) for a in (64, 128, 256) for b in range(16, 257, 16)),
}


class GemmCoefficients(Document):
    """What is fitted for one kernel."""

    launch_s: float = Field(ge=0)
    host_s: float = Field(ge=0)
    """Time per call that the host needs; hides shorter kernels."""
    tile_s: float = Field(ge=0)
    """Start and end of one tile."""
    compute_efficiency: float = Field(gt=0)
    """Share of the peak inside a tile."""
    core_bytes_per_s: float = Field(gt=0)
    """Rate at which one core loads panels, mostly from the L2 cache."""
    memory_efficiency: float = Field(gt=0)
    split_s: float = Field(ge=0)
    """Adding up the sums of a split k."""
    overlap_exponent: float = Field(ge=1)
    """Of the smooth maximum of compute and memory; 1 is their sum."""
    wave_quantisation: float = Field(ge=0, le=1)
    """1: the last wave takes as long as a full one; 0: cores share what is left evenly."""
    quantise_s_per_byte: float = Field(default=0, ge=0)
    """Converting A: per byte read and written."""
    row_s: float = Field(default=0, ge=0)
    """Converting A: per row."""
    misaligned_s: float = Field(default=0, ge=0)
    """Copying scales where m is no multiple of 4."""


class GemmKernel(KernelFit):
    """One kernel of an engine version on a system, with its fit.

    Attributes:
        dtype: A name out of ``FORMATS``.
        processor: Peaks in the arithmetic of that format.
        tiling: How the library takes its tiles.
        tiles: The choice by m; only for the tiling ``dispatch``.
        coefficients: What was fitted.
    """

    ORDER: ClassVar[tuple[str, ...]] = (
        *("dtype", "family", "system", "engine", "kernel", "version"),
    )

    dtype: str
    processor: Processor
    tiling: Tiling
    tiles: tuple[Tile, ...] = ()
    coefficients: GemmCoefficients

    def time(
        self, m: np.ndarray, n: np.ndarray, k: np.ndarray, batch: np.ndarray | int = 1
    ) -> Estimate:
        """Time of [m, k] × [k, n]; arguments as of :func:`gemm_seconds`, ``[rows]``."""
        return self.estimate(gemm_seconds(m, n, k, self, batch=batch))

    def on_device(self, device: Device) -> Self:
        """See :meth:`KernelFit.on_device`."""
        return self.model_copy(
            update={"processor": processor(device, FORMATS[self.dtype].arithmetic)}
        )


@dataclass(frozen=True)
class GemmGeometry:
    """What shapes and tilings alone decide; arrays ``[rows, tilings]`` or ``[rows, 1]``."""

    m: np.ndarray
    number: NumberFormat
    waves: np.ndarray
    """Tiles over cores, not rounded."""
    steps: np.ndarray
    tile_flops: np.ndarray
    """Of one k step, padded."""
    tile_bytes: np.ndarray
    memory_bytes: np.ndarray
    partial_bytes: np.ndarray
    is_split: np.ndarray
    allowed: np.ndarray
    quantised_bytes: np.ndarray


def gemm_flops(m: np.ndarray, n: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Arithmetic of the multiplication, FLOP: 2·m·n·k."""
    return 2.0 * np.asarray(m, float) * n * k


def gemm_bytes(
    m: np.ndarray, n: np.ndarray, k: np.ndarray, number: NumberFormat, batch: np.ndarray | int = 1
) -> np.ndarray:
    """Bytes that must move: A and B read once, the result written once."""
    m, n, k = (np.asarray(x, float) for x in (m, n, k))
    return batch * (m * k * number.input_bytes + n * k * number.weight_bytes + m * n * OUTPUT_BYTES)


def tile_set(tiling: Tiling, tiles: tuple[Tile, ...] = ()) -> tuple[Tile, ...]:
    """The tiles of a tiling."""
    if tiling == "dispatch":
        return tiles
    return tuple(Tile(rows=a, columns=b, splits=s) for a, b, s in _SETS[tiling])


def gemm_geometry(
    m: np.ndarray,
    n: np.ndarray,
    k: np.ndarray,
    dtype: str,
    tiles: tuple[Tile, ...],
    processor: Processor,
    batch: np.ndarray | int = 1,
) -> GemmGeometry:
    """Count tiles, steps and bytes.

    Args:
        m: Rows of A, ``[rows]``.
        n: Columns of B, ``[rows]``.
        k: Shared dimension, ``[rows]``.
        dtype: A name out of ``FORMATS``.
        tiles: What the kernel may take.
        processor: For the number of cores.
        batch: Independent multiplications in one launch.
    """
    return _geometry((m, n, k, batch), dtype, _tile_table(tiles), processor)


@lru_cache(maxsize=256)
def _kernel_tiles(tiling: Tiling, tiles: tuple[Tile, ...]) -> np.ndarray:
    """The table of a kernel's tiles, made once."""
    return _tile_table(tile_set(tiling, tiles))


def _tile_table(tiles: tuple[Tile, ...]) -> np.ndarray:
    """``[5, tilings]`` rows, columns, splits, and the least and largest m."""
    return np.array(
        [
            (t.rows, t.columns, t.splits, t.above_m, np.inf if t.up_to_m is None else t.up_to_m)
            for t in tiles
        ],
        float,
    ).T


def _geometry(
    shapes: tuple[np.ndarray | int, ...], dtype: str, table: np.ndarray, processor: Processor
) -> GemmGeometry:
    """:func:`gemm_geometry` of m, n, k and batch by a table of tiles."""
    number = FORMATS[dtype]
    columns = [np.asarray(x, float)[:, None] for x in np.broadcast_arrays(*shapes)]
    m_, n_, k_, batch_ = columns
    high, wide, splits, above, up_to = table
    steps = np.ceil(k_ / number.k_step / splits)
    is_split = np.broadcast_to(splits > 1, steps.shape)
    count = batch_ * np.ceil(m_ / high) * np.ceil(n_ / wide) * splits
    panels = high * number.input_bytes + wide * number.weight_bytes
    return GemmGeometry(
        m=columns[0],
        number=number,
        waves=count / processor.cores,
        steps=steps,
        tile_flops=2.0 * np.maximum(high, MMA_ROWS) * wide * number.k_step,
        tile_bytes=panels * number.k_step,
        memory_bytes=gemm_bytes(m_, n_, k_, number, batch_),
        partial_bytes=np.where(is_split, batch_ * splits * m_ * n_ * PARTIAL_BYTES, 0.0),
        is_split=is_split,
        allowed=(m_ > above) & (m_ <= up_to) & (~is_split | (steps >= 2)),
        quantised_bytes=batch_ * m_ * k_ * (2 + number.input_bytes),
    )


def tiling_seconds(geometry: GemmGeometry, c: GemmCoefficients, processor: Processor) -> np.ndarray:
    """Seconds on the device with every tiling, ``[rows, tilings]``; inf where not allowed."""
    g = geometry
    waves = np.maximum(1.0, g.waves + c.wave_quantisation * (np.ceil(g.waves) - g.waves))
    step_s = np.maximum(
        g.tile_flops / (processor.core_flop_per_s * c.compute_efficiency),
        g.tile_bytes / c.core_bytes_per_s,
    )
    compute_s = waves * (c.tile_s + g.steps * step_s)
    # Partial sums stay in the L2 cache where they fit: a third of their bytes counts.
    moved = g.memory_bytes + g.partial_bytes / 3
    memory_s = moved / (processor.memory_bytes_per_s * c.memory_efficiency)
    p = c.overlap_exponent
    total_s = (compute_s**p + memory_s**p) ** (1 / p) + np.where(g.is_split, c.split_s, 0.0)
    return np.where(g.allowed, total_s, np.inf)


def geometry_seconds(
    geometry: GemmGeometry, c: GemmCoefficients, processor: Processor
) -> np.ndarray:
    """Seconds of one call with the best tiling, ``[rows]``."""
    g = geometry
    device_s = c.launch_s + tiling_seconds(g, c, processor).min(axis=1)
    device_s = (
        device_s
        + (
            c.quantise_s_per_byte * g.quantised_bytes
            + c.row_s * g.m
            + c.misaligned_s * (g.m % 4 != 0)
        ).ravel()
    )
    return (c.host_s**HOST_EXPONENT + device_s**HOST_EXPONENT) ** (1 / HOST_EXPONENT)


def gemm_seconds(
    m: np.ndarray,
    n: np.ndarray,
    k: np.ndarray,
    kernel: GemmKernel,
    processor: Processor | None = None,
    batch: np.ndarray | int = 1,
) -> np.ndarray:
    """Seconds of [m, k] × [k, n].

    Args:
        m: Rows of A, ``[rows]``.
        n: Columns of B, ``[rows]``.
        k: Shared dimension, ``[rows]``.
        kernel: The fitted kernel.
        processor: Another device than the one that it was fitted on.
        batch: Independent multiplications in one launch.

    Returns:
        ``[rows]`` seconds.
    """
    device = processor or kernel.processor
    table = _kernel_tiles(kernel.tiling, kernel.tiles)
    shapes = np.broadcast_arrays(*(np.atleast_1d(x) for x in (m, n, k, batch)))
    seconds = np.empty(shapes[0].shape)
    for begin in range(0, len(seconds), AT_ONCE):
        part = slice(begin, begin + AT_ONCE)
        geometry = _geometry(tuple(x[part] for x in shapes), kernel.dtype, table, device)
        seconds[part] = geometry_seconds(geometry, kernel.coefficients, device)
    return seconds
