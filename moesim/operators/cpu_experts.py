"""Seconds of an expert layer on a CPU, from the rows of every expert.

What is modelled: for each active expert in turn, ``down(silu(gate(x)) * up(x))`` by the matrix
library, as a server does that leaves experts in host memory (kTransformers, HybriMoE; Chen et al.
2025, Zhong et al. 2025). Weights are read once per active expert.

    layer  = call_s + Σ over active experts of expert(rows)
    expert = expert_s + (weights ^ p + arithmetic ^ p) ^ (1/p) + activations

``p`` is the smooth maximum between the sum (p = 1, nothing overlaps) and the larger of the two
(p → ∞, the textbook roofline). A matrix library has two kernels: one for few rows that streams the
weights as they are, its arithmetic slow, and one that first copies them into the order of its
registers (packing), which pays when many rows use them. Up to ``few_rows`` the first one runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from moesim.errors import InputError
from moesim.schema import Document

__all__ = [
    "CpuExpertCoefficients",
    "CpuExpertFit",
    "CpuExpertProfile",
    "CpuExpertTime",
    "ExpertShape",
    "Residency",
    "cpu_experts_s",
    "smooth_maximum",
]

Residency = Literal["memory", "cache"]
"""Where weights come from: expert layers of a whole model come from memory."""

ELEMENT_BYTES: dict[str, int] = {"fp32": 4, "bf16": 2, "int8": 1}


class CpuExpertCoefficients(Document):
    """What is fitted of one (machine, threads, matrix library, number type)."""

    dtype: Literal["fp32", "bf16", "int8"]
    call_s: float = Field(ge=0)
    """Fixed time of one call for a layer."""
    expert_s: float = Field(ge=0)
    """Fixed time of one active expert: dispatching its matrix products."""
    memory_bytes_per_s: float = Field(gt=0)
    """Weights from memory, as the kernel for few rows reads them."""
    cache_bytes_per_s: float | None = Field(default=None, gt=0)
    """Weights from the last-level cache; None where that was not measured."""
    few_rows: int = Field(ge=0)
    """Most rows of an expert for which the kernel without packing runs; 0 if there is none."""
    few_rows_flop_per_s: float = Field(gt=0)
    """Arithmetic of the kernel for few rows."""
    flop_per_s: float = Field(gt=0)
    """Arithmetic of the kernel for many rows."""
    pack_bytes_per_s: float | None = Field(default=None, gt=0)
    """Weights packed per second by the kernel for many rows, wherever they come from; None where
    there is one kernel, whose packing is part of the other two rates."""
    activation_bytes_per_s: float = Field(gt=0)
    """Input, intermediate and output, written and read."""
    overlap_exponent: float = Field(ge=1)
    """Exponent p of the smooth maximum."""


class CpuExpertFit(Document):
    """Coefficients of one number type, and how they came about."""

    system: str
    engine: str
    version: str
    kernel: str
    rows: int = Field(ge=1)
    """Points that were fitted on."""
    at_bound: tuple[str, ...] = ()
    """Coefficients that ended on a bound."""
    undetermined: tuple[str, ...] = ()
    """Coefficients that the points do not determine: twice or half of them changes no time by
    1 %."""
    coefficients: CpuExpertCoefficients


class CpuExpertProfile(Document):
    """A measured CPU: what a simulation of experts on it needs, and where that comes from."""

    schema_id: ClassVar[str] = "moesim.cpu-experts/1"

    system: str
    processor: str
    threads: int = Field(ge=1)
    clock: str
    read_bytes_per_s: float | None = Field(default=None, gt=0)
    copy_bytes_per_s: float | None = Field(default=None, gt=0)
    """A copy within memory; each byte counts once."""
    fits: tuple[CpuExpertFit, ...] = Field(min_length=1)
    intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """By number type the 10th and 90th percentile of measured over predicted, on shapes that the
    fit had not seen: together an 80 % interval. Missing where too little was measured."""
    versions: dict[str, str]
    load_average: tuple[float, ...] = ()
    """While it was measured; a busy machine has less bandwidth to give."""
    date: str
    command: str
    notes: tuple[str, ...] = ()

    def fit(self, dtype: str) -> CpuExpertFit:
        """The fit of a number type.

        Raises:
            InputError: If it was not measured.
        """
        for fit in self.fits:
            if fit.coefficients.dtype == dtype:
                return fit
        raise InputError(
            f"{self.system} was not measured with this number type",
            field="dtype",
            found=dtype,
            allowed=", ".join(fit.coefficients.dtype for fit in self.fits),
            fix="choose one of these, or measure again",
        )


@dataclass(frozen=True)
class ExpertShape:
    """One expert's matrices.

    Attributes:
        hidden: Width of the residual stream; a number or an array that broadcasts.
        inter: Width of the expert, likewise.
        matrices: 3 for gate, up and down; 2 for up and down.
        dtype: Number type of the weights (``fp32``, ``bf16``, ``int8``).
    """

    hidden: int | np.ndarray
    inter: int | np.ndarray
    matrices: int = 3
    dtype: str = "bf16"

    @property
    def weights(self) -> float | np.ndarray:
        """Weights of one expert."""
        return self.matrices * np.multiply(self.hidden, self.inter, dtype=np.float64)

    @property
    def weight_bytes(self) -> float | np.ndarray:
        """Bytes of one expert's weights."""
        return self.weights * ELEMENT_BYTES[self.dtype]

    @property
    def row_flops(self) -> float | np.ndarray:
        """Arithmetic of one row; a multiply-add counts two."""
        return 2.0 * self.weights

    @property
    def row_bytes(self) -> float | np.ndarray:
        """Activation bytes of one row: input, each intermediate and its product twice, output.

        An int8 expert has 32-bit accumulators between its matrices.
        """
        wide = 4 if self.dtype == "int8" else ELEMENT_BYTES[self.dtype]
        intermediates = 2.0 * self.matrices * np.asarray(self.inter, np.float64)
        return wide * (2.0 * np.asarray(self.hidden, np.float64) + intermediates)


@dataclass(frozen=True)
class CpuExpertTime:
    """Seconds of expert layers, by what they are spent on.

    Attributes:
        fixed_s: [...] calls and dispatch.
        memory_s: [...] weights and activations.
        compute_s: [...] arithmetic.
        total_s: [...] all of it, as far as it overlaps.
    """

    fixed_s: np.ndarray
    memory_s: np.ndarray
    compute_s: np.ndarray
    total_s: np.ndarray


def cpu_experts_s(
    coefficients: CpuExpertCoefficients,
    expert_rows: np.ndarray,
    shape: ExpertShape,
    in_cache: np.ndarray | bool = False,
) -> CpuExpertTime:
    """Seconds of expert layers.

    Args:
        coefficients: Of the machine and number type.
        expert_rows: [..., E] rows of each expert; 0 for one that is not active.
        shape: Its numbers broadcast against ``[...]``.
        in_cache: [...] whether the weights are in the last-level cache already.

    Returns:
        Seconds of shape [...]; NaN where the weights are in a cache that was not measured.
    """
    c = coefficients
    rows = np.asarray(expert_rows, np.float64)
    active = rows > 0
    few = active & (rows <= c.few_rows)
    weight_bytes = np.asarray(shape.weight_bytes, np.float64)[..., None]
    row_flops = np.asarray(shape.row_flops, np.float64)[..., None]
    row_bytes = np.asarray(shape.row_bytes, np.float64)

    cache = np.nan if c.cache_bytes_per_s is None else c.cache_bytes_per_s
    source = np.where(in_cache, cache, c.memory_bytes_per_s)[..., None]
    read_s = weight_bytes / source
    pack_bytes_per_s = np.inf if c.pack_bytes_per_s is None else c.pack_bytes_per_s
    pack_s = np.where(few, 0.0, weight_bytes / pack_bytes_per_s)
    weights_s = np.where(active, read_s + pack_s, 0.0)
    compute_s = rows * row_flops / np.where(few, c.few_rows_flop_per_s, c.flop_per_s)
    both_s = smooth_maximum(weights_s, compute_s, c.overlap_exponent).sum(-1)

    activation_s = rows.sum(-1) * row_bytes / c.activation_bytes_per_s
    fixed_s = c.call_s + active.sum(-1) * c.expert_s
    return CpuExpertTime(
        fixed_s,
        weights_s.sum(-1) + activation_s,
        compute_s.sum(-1),
        fixed_s + both_s + activation_s,
    )


def smooth_maximum(first: np.ndarray, second: np.ndarray, exponent: float) -> np.ndarray:
    """The p-norm of two non-negative arrays, without overflow."""
    larger, smaller = np.maximum(first, second), np.minimum(first, second)
    share = np.divide(smaller, larger, out=np.zeros_like(larger), where=larger > 0)
    return np.where(larger > 0, larger * (1 + share**exponent) ** (1 / exponent), larger)
