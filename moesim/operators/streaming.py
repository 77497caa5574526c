"""Small kernels and linear attention: work that streams through a device once.

Quantising, short convolutions, recurrences (gated delta rule, Kimi delta attention, Mamba-2) and
hyper-connections read and write each element once and do little arithmetic. Their time is

    launch + (bytes / memory ⊔ items / cores ⊔ steps ⊔ FLOPs / peak)

with ⊔ the smooth maximum: what is moved, independent pieces of work (rows, or the chunks of every
channel and head) that cores take one after the other, steps that must follow each other (the
chunks of a sequence), and arithmetic. How much each of them weighs in a kernel is fitted.

Work of a chunked delta rule: Yang et al., Gated Delta Networks, arXiv:2412.06464, section 3.3;
sizes of Mamba-2's convolution: Dao and Gu, arXiv:2405.21060, section 7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import Field

from moesim.hardware import Device
from moesim.model.mixers import StateHeads
from moesim.operators.deepep import p_norm
from moesim.operators.fitted import Estimate, KernelFit, Label
from moesim.operators.processor import Processor
from moesim.operators.systems import processor
from moesim.schema import Document

__all__ = [
    "CHUNKS",
    "Role",
    "StreamCoefficients",
    "StreamKernel",
    "StreamWork",
    "convolution_work",
    "delta_rule_work",
    "hyper_connection_work",
    "quantise_work",
    "role_of",
    "scan_work",
    "stream_seconds",
]

Role = Literal["convolution", "recurrence"]

CHUNKS = (64, 512)
"""Tokens that a kernel works on at a time: recurrences of flash-linear-attention take 64;
TensorRT-LLM's convolution costs the same up to 512 (in the tables)."""
ELEMENT_BYTES, STATE_BYTES = 2, 4
"""Of activations in bfloat16, and of a recurrent state in float32."""


@dataclass(frozen=True)
class StreamWork:
    """What a call does; arrays ``[rows]``.

    Attributes:
        moved_bytes: Read and written, each element once.
        lanes: Independent sequences of work: rows, or channels and heads of all sequences.
        length: Tokens of each, which are worked on in chunks.
        flops: Arithmetic.
    """

    moved_bytes: np.ndarray
    lanes: np.ndarray
    length: np.ndarray
    flops: np.ndarray

    def take(self, rows: np.ndarray) -> Self:
        """Some of the calls."""
        return type(self)(
            self.moved_bytes[rows], self.lanes[rows], self.length[rows], self.flops[rows]
        )


class StreamCoefficients(Document):
    """What is fitted for one kernel."""

    chunk_tokens: int = Field(gt=0)
    launch_s: float = Field(ge=0)
    memory_efficiency: float = Field(gt=0)
    """Share of the bandwidth; above 1 where caches serve."""
    item_s: float = Field(ge=0)
    """Time of a core per chunk of a lane."""
    step_s: float = Field(ge=0)
    compute_efficiency: float = Field(gt=0)
    overlap_exponent: float = Field(ge=1)


class StreamKernel(KernelFit):
    """One kernel of an engine version on a system, with its fit.

    Attributes:
        dtype: Of its result, where the tables name it.
        phase: ``context``, ``generation`` or ``verify``, where kernels differ by it.
        stage: ``pre`` or ``post`` of a hyper-connection.
        processor: Peaks in bfloat16.
        coefficients: What was fitted.
    """

    ESSENTIAL: ClassVar[tuple[str, ...]] = ("phase", "stage")
    ORDER: ClassVar[tuple[str, ...]] = (
        *("role", "dtype", "family", "system", "engine", "kernel", "version"),
    )
    DERIVED: ClassVar[tuple[str, ...]] = ("family", "role")

    dtype: str = ""
    phase: str = ""
    stage: str = ""
    processor: Processor
    coefficients: StreamCoefficients

    @property
    def role(self) -> Role:
        """``convolution`` or ``recurrence`` by the kernel's name; see :func:`role_of`."""
        return role_of(self.kernel)

    @classmethod
    def wanted(cls, device: Device, labels: Mapping[str, Label]) -> dict[str, Label]:
        """Adds ``role``, which a kernel's name tells; see :meth:`KernelFit.wanted`."""
        known = super().wanted(device, labels)
        if "kernel" in labels:
            known["role"] = role_of(str(labels["kernel"]))
        return known

    def time(self, work: StreamWork) -> Estimate:
        """Time of every call, ``[rows]``."""
        return self.estimate(stream_seconds(work, self.coefficients, self.processor))

    def on_device(self, device: Device) -> Self:
        """See :meth:`KernelFit.on_device`."""
        return self.model_copy(update={"processor": processor(device, "bf16")})


def role_of(kernel: str) -> Role:
    """``convolution`` for the short convolution before a recurrence, else ``recurrence``."""
    return "convolution" if "conv1d" in kernel else "recurrence"


def stream_seconds(w: StreamWork, c: StreamCoefficients, device: Processor) -> np.ndarray:
    """Seconds of every call, ``[rows]``."""
    memory_s = w.moved_bytes / (device.memory_bytes_per_s * c.memory_efficiency)
    chunks = np.ceil(w.length / c.chunk_tokens)
    items_s = w.lanes * chunks * (c.item_s / device.cores)
    compute_s = w.flops / (device.peak_flop_per_s * c.compute_efficiency)
    parts = (memory_s, items_s, chunks * c.step_s, compute_s)
    return c.launch_s + p_norm(c.overlap_exponent, *parts)


def quantise_work(m: np.ndarray, k: np.ndarray, *, writes: bool) -> StreamWork:
    """Scales of an [m, k] matrix, or the matrix in 8 bits.

    Args:
        m: Rows (tokens).
        k: Columns.
        writes: The quantised matrix is written, not the scales alone.
    """
    elements = np.asarray(m, float) * k
    zero = np.zeros_like(elements)
    bytes_each = ELEMENT_BYTES + (1 if writes else 0)
    return StreamWork(elements * bytes_each, np.asarray(m, float) + zero, zero + 1, zero)


def convolution_work(
    batch: np.ndarray, query_tokens: np.ndarray, channels: np.ndarray, width: np.ndarray
) -> StreamWork:
    """A causal convolution over the tokens of each channel, its state of ``width`` − 1 included."""
    b, q, c, w = (np.asarray(x, float) for x in (batch, query_tokens, channels, width))
    moved = b * c * (2 * q + 2 * (w - 1)) * ELEMENT_BYTES
    return StreamWork(moved, b * c, q + 0 * moved, 2 * b * q * c * w)


def delta_rule_work(
    batch: np.ndarray,
    query_tokens: np.ndarray,
    key_heads: np.ndarray,
    key_dim: np.ndarray,
    value_heads: np.ndarray,
    value_dim: np.ndarray,
) -> StreamWork:
    """A gated delta rule: every value head keeps a [key_dim, value_dim] state per sequence.

    Queries, keys, values, results and the state are moved once. In chunks of C tokens, a token
    costs about 2·C·(key + value) FLOPs within its chunk, and 6·key·value with the state.
    """
    b, q, hk, dk, hv, dv = (
        np.asarray(x, float)
        for x in (batch, query_tokens, key_heads, key_dim, value_heads, value_dim)
    )
    tokens = b * q
    moved = tokens * (2 * hk * dk + 2 * hv * dv) * ELEMENT_BYTES
    moved = moved + 2 * b * hv * dk * dv * STATE_BYTES
    inside = np.minimum(q, CHUNKS[0])
    flops = tokens * hv * (2 * inside * (dk + dv) + 6 * dk * dv)
    return StreamWork(moved, b * hv, q + 0 * moved, flops)


def scan_work(
    role: Role, batch: np.ndarray, query_tokens: np.ndarray, heads: StateHeads
) -> StreamWork:
    """A layer's recurrence, or the convolution before it, ``[rows]``."""
    if role == "convolution":
        width = np.array(heads.convolution_width)
        return convolution_work(batch, query_tokens, np.array(heads.channels), width)
    sizes = (heads.key_heads, heads.key_dim, heads.value_heads, heads.value_dim)
    return delta_rule_work(batch, query_tokens, *map(np.array, sizes))


def hyper_connection_work(
    tokens: np.ndarray, hidden: np.ndarray, streams: np.ndarray
) -> StreamWork:
    """Mixing the residual streams of every token: they are read and written, and one more."""
    t, h, n = (np.asarray(x, float) for x in (tokens, hidden, streams))
    moved = t * h * (2 * n + 1) * ELEMENT_BYTES
    return StreamWork(moved, t, 1 + 0 * moved, 2 * t * h * n * (n + 2))
