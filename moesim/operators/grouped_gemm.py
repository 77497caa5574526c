"""Seconds of grouped products of experts, from the rows of every expert, for any kernel.

What is measured here is one call for all experts of a device: a grouped GEMM, or a whole expert
layer of gate and up, SwiGLU and down. Two ways of running it are told apart. A serial kernel takes
one expert after the other (a loop over a matrix library, or everything on a CPU); a parallel one
spreads the tiles of all experts over the cores:

    serial    call_s + Σ over active experts of [expert_s + norm(weights, arithmetic)] + rows
    parallel  call_s + active · expert_s + norm(Σ weights, Σ arithmetic) + rows

``norm(a, b) = (aᵖ + bᵖ)^(1/p)`` is the smooth maximum between the sum (p = 1, nothing overlaps)
and the larger (p → ∞, the roofline; Williams et al. 2009). The arithmetic of an expert is that of
whole tiles: its rows are padded to ``tile_rows``. ``rows`` are inputs and outputs over a bandwidth.
A library that takes one expert after the other has two kernels, as in
:mod:`moesim.operators.cpu_experts`: up to ``few_rows`` one that reads weights as they are and
computes slowly, beyond one that packs them first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from moesim.operators.cpu_experts import smooth_maximum
from moesim.schema import Document

__all__ = [
    "GroupedCoefficients",
    "GroupedFit",
    "GroupedFits",
    "GroupedWork",
    "grouped_s",
    "grouped_work",
]

ROW_INTERMEDIATES = 2.0
"""Times that an element between two products is moved: written, and read again."""


class GroupedCoefficients(Document):
    """What is fitted of one kernel on one machine."""

    serial: bool
    """Whether experts run one after the other."""
    call_s: float = Field(ge=0)
    """Fixed time of one call."""
    expert_s: float = Field(ge=0)
    """Fixed time of one active expert."""
    weight_bytes_per_s: float = Field(gt=0)
    """Weights from memory."""
    flop_per_s: float = Field(gt=0)
    """Arithmetic on whole tiles."""
    row_bytes_per_s: float = Field(gt=0)
    """Inputs and outputs."""
    few_rows: int = Field(default=0, ge=0)
    """Most rows of an expert that the kernel without packing takes; 0 if there is one kernel."""
    few_rows_flop_per_s: float | None = Field(default=None, gt=0)
    """Arithmetic of the kernel for few rows."""
    pack_bytes_per_s: float | None = Field(default=None, gt=0)
    """Weights packed per second by the kernel for many rows."""
    tile_rows: int = Field(ge=1)
    """An expert's rows are padded to a multiple of it."""
    overlap_exponent: float = Field(ge=1)
    """Exponent p of the smooth maximum."""


class GroupedFit(Document):
    """Coefficients of one kernel, and how they came about."""

    system: str
    kernel: str
    op: str
    dtype: str
    rows: int = Field(ge=1)
    """Measured calls that were fitted on."""
    at_bound: tuple[str, ...] = ()
    """Coefficients that ended on a bound."""
    interval: tuple[float, float]
    """10th and 90th percentile of measured over predicted, on what the fit had not seen."""
    held_out: Literal["model", "case"]
    """What that was: all cases of a model at once, or where there are fewer than three models,
    cases one by one."""
    coefficients: GroupedCoefficients


class GroupedFits(Document):
    """All fits of one measured file, with where they come from."""

    schema_id: ClassVar[str] = "moesim.grouped-gemm/1"

    system: str
    device: str
    processor: str
    clock: str
    source: str
    date: str
    versions: dict[str, str]
    cores: int | None = Field(default=None, ge=1)
    """Multiprocessors of the GPU, as its driver says."""
    memory_bytes: float | None = Field(default=None, gt=0)
    """Memory of the GPU, as its driver says."""
    copy_bytes_per_s: float | None = Field(default=None, gt=0)
    """A large copy, bytes read and written, in the same run."""
    dense_flop_per_s: float | None = Field(default=None, gt=0)
    """A large square product, in the same run."""
    fits: tuple[GroupedFit, ...] = Field(min_length=1)


@dataclass(frozen=True)
class GroupedWork:
    """Calls as arrays.

    Attributes:
        rows: [N, E] rows of each expert, 0 where there is none.
        expert_bytes: [N] weights of one expert.
        row_flops: [N] arithmetic of one row.
        row_bytes: [N] of one row's input, intermediates and output.
    """

    rows: np.ndarray
    expert_bytes: np.ndarray
    row_flops: np.ndarray
    row_bytes: np.ndarray

    def take(self, chosen: np.ndarray) -> GroupedWork:
        """Some of them."""
        return GroupedWork(
            self.rows[chosen],
            self.expert_bytes[chosen],
            self.row_flops[chosen],
            self.row_bytes[chosen],
        )


def grouped_work(
    rows: np.ndarray,
    columns: np.ndarray,
    depth: np.ndarray,
    width: np.ndarray,
    element_bytes: np.ndarray,
) -> GroupedWork:
    """Grouped products, or whole gated expert layers.

    Args:
        rows: [N, E] rows of each expert.
        columns: [N] of the product; of the second one in a layer.
        depth: [N] elements that it sums over; of the first one in a layer.
        width: [N] elements between the two products of a layer, 0 for one product.
        element_bytes: [N] of operands.
    """
    weights = np.where(width > 0, 3 * depth * width, columns * depth)
    between = ROW_INTERMEDIATES * 3 * width
    row_bytes = element_bytes * (depth + columns + between)
    return GroupedWork(rows, weights * element_bytes, 2 * weights, row_bytes)


def grouped_s(coefficients: GroupedCoefficients, work: GroupedWork) -> np.ndarray:
    """[N] seconds of calls."""
    c = coefficients
    active = work.rows > 0
    tiled = np.ceil(work.rows / c.tile_rows) * c.tile_rows
    few = active & (work.rows <= c.few_rows)
    read_s = active * (work.expert_bytes / c.weight_bytes_per_s)[:, None]
    if c.pack_bytes_per_s is not None:
        read_s = read_s + (active & ~few) * (work.expert_bytes / c.pack_bytes_per_s)[:, None]
    rate = np.where(few, c.few_rows_flop_per_s or c.flop_per_s, c.flop_per_s)
    compute_s = tiled * work.row_flops[:, None] / rate
    if c.serial:
        both_s = smooth_maximum(read_s, compute_s, c.overlap_exponent).sum(1)
    else:
        both_s = smooth_maximum(read_s.sum(1), compute_s.sum(1), c.overlap_exponent)
    rows_s = work.rows.sum(1) * work.row_bytes / c.row_bytes_per_s
    return c.call_s + active.sum(1) * c.expert_s + both_s + rows_s
