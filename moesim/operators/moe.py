"""Time of a fused expert layer from the histogram of tokens per expert.

A layer is a fixed launch, the sorting of token copies, two grouped GEMMs (gate and up, then down)
and the activations in between. Each GEMM takes the smooth maximum of three times:

- reading the weights of the active experts,
- arithmetic on tiles: every expert's tokens are padded to the kernel's tile, a tile costs a fixed
  number of rows more than it has (prologue, epilogue, weights through the cache), and a last wave
  of blocks that does not fill the cores takes as long as a full one,
- the way through one block along K, which more cores do not shorten.

Which tiles a kernel may use is an input (``tile_allowed``); it takes the fastest of those. The
idea that a wave model of few coefficients on the live histogram predicts such kernels within
percents is that of RaMP (arXiv 2604.26039).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Annotated, Self

import numpy as np
from pydantic import Field

from moesim.schema import Document

__all__ = [
    "TILES",
    "GemmParts",
    "MoeCoefficients",
    "MoeDevice",
    "MoeShapes",
    "gemm_parts",
    "gemm_sizes",
    "moe_time_s",
    "overhead_parts_s",
    "overhead_s",
    "padded_tiles",
    "smooth_maximum",
]

TILES = np.array([16, 32, 64, 128, 256])
"""Rows of a tile that kernels choose from: what Triton and CUTLASS configurations hold."""

BLOCK_COLUMNS = 128
"""Columns of a tile; the usual ones are 64 to 256, and the fitted costs absorb the difference."""

OUTPUT_BYTES = 2
"""Bytes per element of activations that leave a GEMM: bfloat16."""

Positive = Annotated[float, Field(gt=0)]


class MoeCoefficients(Document):
    """What distinguishes one kernel on one system; shares are of the device's specification."""

    launch_s: Positive
    """Fixed time of the layer's launches."""
    active_expert_s: Positive
    """Per expert that has tokens."""
    local_expert_s: Positive
    """Per expert that the device holds, with or without tokens."""
    copy_s: Positive
    """Per token copy on the device: sorting, permuting."""
    group_copy_s: Positive
    """Per token copy in the expert-parallel group, wherever its expert is."""
    weight_bandwidth_share: Positive
    """Of the memory bandwidth, reached when weights stream."""
    activation_bandwidth_share: Positive
    """Same for activations of the device's own copies; above 1 where caches serve them."""
    group_bandwidth_share: Positive
    """Same for buffers that hold all copies of the group; large where a kernel has none."""
    tile_rows: Positive
    """Rows at peak rate that any tile costs on top of its own."""
    row_cost: Positive
    """Rows at peak rate that a row of a tile costs: the inverse of the large-tile efficiency."""
    overlap_exponent: Positive
    """Of the smooth maximum; ∞ is perfect overlap, 1 none."""
    k_step_s: Positive
    """Latency per element of K within one block."""
    wave_weight: Positive
    """w: the share w / (1 + w) of the arithmetic is quantised to whole waves."""
    k_prologue: Positive
    """Elements of K that filling and draining the pipeline is worth."""
    k_prologue_memory: Positive
    """Same where weights are streamed."""
    small_bandwidth: Positive
    """Weight bandwidth of the untuned kernel for few tokens, relative to the tuned one."""
    large_bandwidth: Positive
    """Same for many tokens."""
    small_cost: Positive
    """Tile cost of the untuned kernel for few tokens, relative to the tuned one."""
    large_cost: Positive
    """Same for many tokens."""
    cache_penalty: Positive
    """Slow-down of the arithmetic per cache size that one expert's input fills."""

    def vector(self) -> np.ndarray:
        """The values in the order of the fields."""
        return np.array(list(self.model_dump().values()))

    @classmethod
    def of_vector(cls, values: np.ndarray) -> Self:
        """The inverse of :meth:`vector`."""
        return cls(**dict(zip(cls.model_fields, values.tolist(), strict=True)))


@dataclass(frozen=True)
class MoeDevice:
    """What the physics needs of a device; each a number, or ``[rows]`` to mix devices.

    Attributes:
        memory_bytes_per_s: Of its memory.
        peak_flop_per_s: Dense, in the arithmetic of the experts.
        cores: Streaming multiprocessors.
        cache_bytes: Last-level cache.
    """

    memory_bytes_per_s: np.ndarray
    peak_flop_per_s: np.ndarray
    cores: np.ndarray
    cache_bytes: np.ndarray


@dataclass(frozen=True)
class MoeShapes:
    """Expert layers, all arrays ``[rows]`` unless said otherwise.

    Counts may be fractions: means over draws of the same process.

    Attributes:
        hidden: Elements of a token.
        width: Elements between the two GEMMs on this device.
        input_matrices: 2 for gated experts (gate and up), 1 for plain ones.
        weight_bytes: Per weight element, scales included.
        activation_bytes: Per element of a GEMM's input.
        local_experts: Experts that the device holds.
        group_copies: Token copies in the whole expert-parallel group.
        active: Experts of the device that have tokens.
        copies: Token copies on the device.
        squared_copies: Σ over experts of tokens².
        tiles: ``[tiles, rows]`` Σ over experts of ⌈tokens / tile⌉, for each of ``TILES``.
        tile_allowed: ``[tiles, rows]`` bool, which of them the kernel may choose.
        variant: 0 where the kernel is tuned for the shape, 1 and 2 for its untuned configurations
            for few and for many tokens.
    """

    hidden: np.ndarray
    width: np.ndarray
    input_matrices: np.ndarray
    weight_bytes: np.ndarray
    activation_bytes: np.ndarray
    local_experts: np.ndarray
    group_copies: np.ndarray
    active: np.ndarray
    copies: np.ndarray
    squared_copies: np.ndarray
    tiles: np.ndarray
    tile_allowed: np.ndarray
    variant: np.ndarray

    def take(self, rows: np.ndarray) -> MoeShapes:
        """The rows of a mask or an index array."""
        names = [field.name for field in fields(self)]
        return replace(self, **{name: getattr(self, name)[..., rows] for name in names})


def padded_tiles(slot_tokens: np.ndarray) -> np.ndarray:
    """Σ over experts of ⌈tokens / tile⌉ for each of ``TILES``.

    Args:
        slot_tokens: ``[..., s]`` tokens of each expert.

    Returns:
        ``[tiles, ...]``.
    """
    return np.stack([np.ceil(slot_tokens / tile).sum(axis=-1) for tile in TILES])


def moe_time_s(shapes: MoeShapes, device: MoeDevice, of: MoeCoefficients) -> np.ndarray:
    """Seconds of each expert layer, ``[rows]``."""
    gemms = (gemm_parts(shapes, device, of, *gemm) for gemm in gemm_sizes(shapes))
    gemms_s = sum(smooth_maximum(of.overlap_exponent, *gemm.parts_s()) for gemm in gemms)
    return overhead_s(shapes, device, of) + gemms_s


def overhead_s(shapes: MoeShapes, device: MoeDevice, of: MoeCoefficients) -> np.ndarray:
    """Everything but the GEMMs, ``[rows]`` seconds: linear in experts and copies."""
    return sum(overhead_parts_s(shapes, device, of).values(), np.zeros(len(shapes.hidden)))


def overhead_parts_s(
    shapes: MoeShapes, device: MoeDevice, of: MoeCoefficients
) -> dict[str, np.ndarray]:
    """The parts of :func:`overhead_s` by the coefficient that each goes with."""
    between = shapes.input_matrices * shapes.width
    read = shapes.activation_bytes * (shapes.hidden + shapes.width)
    written = OUTPUT_BYTES * (between + shapes.hidden)
    group_bytes = OUTPUT_BYTES * (between + shapes.width + shapes.hidden)
    memory = device.memory_bytes_per_s
    return {
        "launch_s": np.broadcast_to(of.launch_s, shapes.hidden.shape),
        "active_expert_s": of.active_expert_s * shapes.active,
        "local_expert_s": of.local_expert_s * shapes.local_experts,
        "copy_s": of.copy_s * shapes.copies,
        "group_copy_s": of.group_copy_s * shapes.group_copies,
        "activation_bandwidth_share": shapes.copies
        * (read + written)
        / (memory * of.activation_bandwidth_share),
        "group_bandwidth_share": shapes.group_copies
        * group_bytes
        / (memory * of.group_bandwidth_share),
    }


def gemm_sizes(shapes: MoeShapes) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Columns and depth of the two grouped GEMMs: into the experts' width, and out of it."""
    return (
        (shapes.input_matrices * shapes.width, shapes.hidden),
        (shapes.hidden, shapes.width),
    )


@dataclass(frozen=True)
class GemmParts:
    """What one grouped GEMM takes, arrays ``[rows]``.

    Attributes:
        memory_s: Reading weights.
        compute_s: Arithmetic on tiles.
        latency_s: The way through one block.
        tile_share: Share of ``compute_s`` that tiles cost whatever their rows.
        row_share: Share that the rows of tiles cost.
        cache_share: Share that inputs beyond the cache cost.
        full: How much more whole waves are than waves, relative to the blocks counted.
    """

    memory_s: np.ndarray
    compute_s: np.ndarray
    latency_s: np.ndarray
    tile_share: np.ndarray
    row_share: np.ndarray
    cache_share: np.ndarray
    full: np.ndarray

    def parts_s(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The three times that overlap."""
        return self.memory_s, self.compute_s, self.latency_s


def gemm_parts(
    shapes: MoeShapes,
    device: MoeDevice,
    of: MoeCoefficients,
    columns: np.ndarray,
    depth: np.ndarray,
) -> GemmParts:
    """One grouped GEMM of ``[tokens, depth] × [depth, columns]`` per expert."""
    bandwidth = of.weight_bandwidth_share * np.array([1, of.small_bandwidth, of.large_bandwidth])
    cost = np.array([1, of.small_cost, of.large_cost])
    weights = shapes.active * columns * depth * shapes.weight_bytes
    memory_s = weights * (1 + of.k_prologue_memory / depth)
    memory_s = memory_s / (device.memory_bytes_per_s * bandwidth[shapes.variant])

    blocks_across = np.ceil(columns / BLOCK_COLUMNS)
    waves = shapes.tiles * (blocks_across / device.cores)
    quantised = of.wave_weight / (1 + of.wave_weight)
    # Whole waves count as such, but a fraction of a block (a mean over draws) is no whole wave.
    full = np.minimum(np.ceil(waves - 1e-9), waves * device.cores)
    tile_rows = (of.tile_rows + of.row_cost * TILES)[:, None]
    # Waves of blocks, each a tile of rows by BLOCK_COLUMNS on one core.
    blocks = (1 - quantised) * waves + quantised * full
    by_tile = np.where(shapes.tile_allowed, blocks * tile_rows, np.inf)
    best = by_tile.argmin(axis=0)
    every = np.arange(len(best))
    tiled = by_tile[best, every]
    # An expert whose input outgrows the cache has it read again for every block across.
    filled = shapes.squared_copies * depth * shapes.activation_bytes / device.cache_bytes
    again = of.cache_penalty * of.row_cost * filled * blocks_across / device.cores
    rows = tiled + again
    flops = rows * device.cores * BLOCK_COLUMNS * (depth + of.k_prologue) * 2
    compute_s = flops / device.peak_flop_per_s * cost[shapes.variant]

    latency_s = of.k_step_s * depth * np.minimum(1, shapes.active)
    some = np.maximum(rows, 1e-30)
    of_tile = of.tile_rows / tile_rows[best, 0]
    chosen = np.maximum(blocks[best, every], 1e-30)
    return GemmParts(
        memory_s=memory_s,
        compute_s=compute_s,
        latency_s=latency_s,
        tile_share=tiled * of_tile / some,
        row_share=tiled * (1 - of_tile) / some,
        cache_share=again / some,
        full=(full[best, every] - waves[best, every]) / chosen,
    )


def smooth_maximum(exponent: float, *parts: np.ndarray) -> np.ndarray:
    """(Σ partᵖ)^(1/p), scaled by the largest so that no power overflows."""
    largest = np.maximum(np.maximum.reduce(parts), 1e-15)
    total = sum(((part / largest) ** exponent for part in parts), np.zeros_like(largest))
    return largest * total ** (1 / exponent)
