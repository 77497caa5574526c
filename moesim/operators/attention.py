"""Attention over a key-value cache: prefill (many queries) and decode (one query per sequence).

Both describe flash kernels (Dao, FlashAttention-2, arXiv:2307.08691): a core takes a block of
queries of one head and walks over blocks of keys. Causality and a sliding window decide which key
blocks a query block meets. The coefficients are those of one compiled kernel: engines compile one
per head dimension and cache format, and another with a window.

Prefill:  launch + balance(all blocks over the cores, the longest block) + moved bytes and tokens
Decode:   launch + min over splits of (waves of blocks ⊔ cache bytes / memory + merge)

In decode the keys of one sequence may be split over several cores (Flash-Decoding), whose partial
results are merged; the kernel's choice is taken to be the best one. Queries that share a
key-value head can share the reading of its cache (``heads_per_block``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import ClassVar, NamedTuple, Self

import numpy as np
from pydantic import Field

from moesim.hardware import Device
from moesim.operators.fitted import Estimate, KernelFit, Label
from moesim.operators.processor import Processor
from moesim.operators.systems import processor
from moesim.schema import Document

__all__ = [
    "ARITHMETIC",
    "DECODE_VARIANTS",
    "ELEMENT_BYTES",
    "PREFILL_VARIANTS",
    "AttentionCalls",
    "AttentionKernel",
    "AttentionShape",
    "DecodeBlocks",
    "DecodeCoefficients",
    "DecodeGeometry",
    "PrefillBlocks",
    "PrefillCoefficients",
    "PrefillGeometry",
    "attended_pairs",
    "attention_seconds",
    "decode_geometry",
    "decode_seconds",
    "decode_variant",
    "decode_variants",
    "key_blocks",
    "prefill_geometry",
    "prefill_seconds",
    "prefill_variant",
]

SPLITS = 2.0 ** np.arange(9)
PARTIAL_BYTES = 4
ELEMENT_BYTES = {"bfloat16": 2.0, "float16": 2.0, "fp8": 1.0, "fp8_block": 1.0}
ARITHMETIC = {"bfloat16": "bf16", "float16": "fp16", "fp8": "fp8", "fp8_block": "fp8"}
"""By the names that the measured tables use."""
MANY_HEADS = 32
"""TensorRT-LLM's kernel for shared key-value heads takes up to 32 query heads each; above, its
kernel for single heads runs (in the tables: the step in time between 32 and 48)."""
PREFILL_VARIANTS = ("full", "window")
DECODE_VARIANTS = tuple(
    f"{seen}, {heads}"
    for seen in PREFILL_VARIANTS
    for heads in ("1 head", f"2-{MANY_HEADS} heads", f"over {MANY_HEADS} heads")
)
LONG_S = 1e-3
"""Beyond about this time a kernel draws full power and its clock sinks."""


@dataclass(frozen=True)
class AttentionCalls:
    """Calls of attention kernels on one device; integer arrays ``[rows]``.

    Attributes:
        batch: Sequences.
        query_tokens: New tokens per sequence.
        past_tokens: Tokens in the cache before them.
        heads: Query heads.
        kv_heads: Key-value heads.
        window_tokens: Keys that a query sees at most; 0: all.
    """

    batch: np.ndarray
    query_tokens: np.ndarray
    past_tokens: np.ndarray
    heads: np.ndarray
    kv_heads: np.ndarray
    window_tokens: np.ndarray

    def take(self, rows: np.ndarray) -> Self:
        """Some of them."""
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self)})


class PrefillBlocks(NamedTuple):
    """How a prefill kernel cuts its work."""

    query_rows: int
    """Query rows of one block."""
    key_columns: int
    shares_heads: bool
    """Rows of a block come from all query heads of a key-value head."""


class DecodeBlocks(NamedTuple):
    """How a decode kernel cuts its work."""

    key_columns: int
    heads_per_block: int
    """Query heads that share one reading of the cache."""
    splits: bool


@dataclass(frozen=True)
class AttentionShape:
    """What one head stores and computes with.

    Attributes:
        key_dim: Elements of a query and a key.
        value_dim: Elements of a value.
        query_bytes: Per element of Q; the output takes 2.
        cache_bytes_per_token: Of one key-value head, keys and values.
    """

    key_dim: int
    value_dim: int
    query_bytes: float
    cache_bytes_per_token: float

    @classmethod
    def plain(cls, head_dim: int, dtype: str, kv_dtype: str) -> Self:
        """Keys and values of one size; formats as in ``ELEMENT_BYTES``."""
        cache_bytes = 2 * head_dim * ELEMENT_BYTES[kv_dtype]
        return cls(head_dim, head_dim, ELEMENT_BYTES[dtype], cache_bytes)


class PrefillCoefficients(Document):
    """What is fitted for one prefill kernel."""

    query_rows: int = Field(gt=0)
    key_columns: int = Field(gt=0)
    shares_heads: bool
    launch_s: float = Field(ge=0)
    block_s: float = Field(ge=0)
    """Start and end of a query block."""
    compute_efficiency: float = Field(gt=0)
    memory_efficiency: float = Field(gt=0)
    """Of moving Q and the output once, which nothing hides."""
    cache_efficiency: float = Field(gt=0)
    """Of moving K and V once: reading them, and converting and writing them where it is timed."""
    token_s: float = Field(ge=0)
    """Of each new token in what runs before the kernel (a core per token writes the cache)."""
    longest_share: float = Field(gt=0)
    """Of the longest block's time that no other block hides."""
    balance_exponent: float = Field(ge=1)
    slowdown: float = Field(ge=0)
    """By how much long kernels run slower (power)."""

    @property
    def blocks(self) -> PrefillBlocks:
        """Its blocks."""
        return PrefillBlocks(self.query_rows, self.key_columns, self.shares_heads)


class DecodeCoefficients(Document):
    """What is fitted for one decode kernel."""

    key_columns: int = Field(gt=0)
    heads_per_block: int = Field(gt=0)
    splits: bool
    launch_s: float = Field(ge=0)
    block_s: float = Field(ge=0)
    core_bytes_per_s: float = Field(gt=0)
    """Cache bytes that one block can work off."""
    memory_efficiency: float = Field(gt=0)
    merge_s: float = Field(ge=0)
    head_s: float = Field(ge=0)
    """Per query head of each sequence."""
    overlap_exponent: float = Field(ge=1)
    blocks_per_core: float = Field(gt=0)

    @property
    def blocks(self) -> DecodeBlocks:
        """Its blocks."""
        return DecodeBlocks(self.key_columns, self.heads_per_block, self.splits)


class AttentionKernel(KernelFit):
    """One compiled kernel of an engine version on a system, with its fit.

    Attributes:
        dtype: Of queries and arithmetic, a name out of ``ELEMENT_BYTES``.
        kv_dtype: Of the cache.
        head_dim: Elements of a head.
        variant: As :func:`decode_variant` and :func:`prefill_variant` name it.
        processor: Peaks in the arithmetic of ``dtype``.
        coefficients: Of a prefill or a decode kernel.
    """

    ORDER: ClassVar[tuple[str, ...]] = (
        *("dtype", "kv_dtype", "seen", "family", "system", "engine", "kernel", "head_dim"),
        *("variant", "version"),
    )
    DERIVED: ClassVar[tuple[str, ...]] = ("seen", "family")

    dtype: str
    kv_dtype: str
    head_dim: int
    variant: str
    processor: Processor
    coefficients: PrefillCoefficients | DecodeCoefficients

    @property
    def seen(self) -> str:
        """``full`` or ``window``: what a query sees."""
        return self.variant.partition(",")[0]

    @property
    def head(self) -> AttentionShape:
        """Sizes of its heads."""
        return AttentionShape.plain(self.head_dim, self.dtype, self.kv_dtype)

    @classmethod
    def wanted(cls, device: Device, labels: Mapping[str, Label]) -> dict[str, Label]:
        """Adds ``seen``, which the variant tells; see :meth:`KernelFit.wanted`."""
        known = super().wanted(device, labels)
        if "variant" in labels:
            known["seen"] = str(labels["variant"]).partition(",")[0]
        return known

    def time(self, calls: AttentionCalls) -> Estimate:
        """Time of every call, ``[rows]``."""
        return self.estimate(attention_seconds(calls, self.head, self.coefficients, self.processor))

    def on_device(self, device: Device) -> Self:
        """See :meth:`KernelFit.on_device`."""
        return self.model_copy(update={"processor": processor(device, ARITHMETIC[self.dtype])})


def prefill_variant(window_tokens: int) -> str:
    """Compiled variant of a prefill kernel: ``window`` or ``full``."""
    return PREFILL_VARIANTS[int(window_tokens > 0)]


def decode_variant(heads: int, kv_heads: int, window_tokens: int) -> str:
    """Compiled variant of a decode kernel: what is seen, and how many heads share a cache."""
    return DECODE_VARIANTS[int(decode_variants(heads, kv_heads, window_tokens))]


def decode_variants(
    heads: np.ndarray | int, kv_heads: np.ndarray | int, window_tokens: np.ndarray | int
) -> np.ndarray:
    """Codes into ``DECODE_VARIANTS`` of decode calls, ``[rows] int32``."""
    share = np.asarray(heads) / np.asarray(kv_heads)
    few = np.where(share > MANY_HEADS, 2, np.where(share > 1, 1, 0))
    return ((np.asarray(window_tokens) > 0) * 3 + few).astype(np.int32)


@dataclass(frozen=True)
class PrefillGeometry:
    """What shapes and blocks decide; arrays ``[rows]``."""

    blocks: np.ndarray
    mean_key_blocks: np.ndarray
    most_key_blocks: np.ndarray
    key_block_flops: float
    query_bytes: np.ndarray
    """Q and the output."""
    cache_bytes: np.ndarray
    """K and V, those before the new tokens included."""
    tokens: np.ndarray
    """New tokens of all sequences."""


@dataclass(frozen=True)
class DecodeGeometry:
    """What shapes and splits decide; arrays ``[rows, splits]`` or ``[rows, 1]``."""

    blocks: np.ndarray
    key_blocks: np.ndarray
    """Of one block."""
    key_block_bytes: float
    cache_bytes: np.ndarray
    merged_bytes: np.ndarray
    is_split: np.ndarray
    allowed: np.ndarray
    heads: np.ndarray


def attended_pairs(query_tokens: int, past_tokens: int, window_tokens: int = 0) -> int:
    """Pairs of query and key of one head: causal, with at most ``window_tokens`` keys if above 0.

    A query at position p meets the keys 0…p, or the last ``window_tokens`` of them.
    """
    positions = past_tokens + np.arange(1, query_tokens + 1, dtype=np.int64)
    met = np.minimum(positions, window_tokens) if window_tokens > 0 else positions
    return int(met.sum())


def key_blocks(
    query_tokens: float,
    past_tokens: float,
    window_tokens: float,
    span: float,
    key_columns: int,
) -> tuple[float, float]:
    """Mean and largest number of key blocks that a query block meets.

    Args:
        query_tokens: New tokens of the sequence.
        past_tokens: Tokens in the cache before them.
        window_tokens: Keys that a query sees at most; 0: all.
        span: Query tokens of one block (below one if heads fill it).
        key_columns: Keys of one block.
    """
    first = np.arange(np.ceil(query_tokens / span)) * span
    end = past_tokens + np.minimum(first + span, query_tokens)
    seen = window_tokens if window_tokens > 0 else np.inf
    begin = np.maximum(past_tokens + first + 1 - seen, 0)
    met = np.ceil(end / key_columns) - np.floor(begin / key_columns)
    return float(met.mean()), float(met.max())


def prefill_geometry(
    calls: AttentionCalls, shape: AttentionShape, blocks: PrefillBlocks
) -> PrefillGeometry:
    """Count blocks and bytes of new tokens."""
    rows, columns, shares = blocks
    b, q, past, h, kv, window = _floats(calls)
    span = rows / np.where(shares, h / kv, 1.0)
    # Few distinct sequences, many rows: walk over the blocks of each once.
    keys, inverse = np.unique(np.stack([q, past, window, span], 1), axis=0, return_inverse=True)
    met = np.array([key_blocks(*key, columns) for key in map(_four, keys)]).reshape(-1, 2)
    mean, most = met[inverse.ravel()].T
    elements = shape.key_dim * shape.query_bytes + shape.value_dim * 2
    return PrefillGeometry(
        blocks=b * np.where(shares, kv, h) * np.ceil(q / span),
        mean_key_blocks=mean,
        most_key_blocks=most,
        key_block_flops=2.0 * rows * columns * (shape.key_dim + shape.value_dim),
        query_bytes=b * q * h * elements,
        cache_bytes=b * (past + q) * kv * shape.cache_bytes_per_token,
        tokens=b * q,
    )


def prefill_seconds(g: PrefillGeometry, c: PrefillCoefficients, processor: Processor) -> np.ndarray:
    """Seconds of causal attention of new tokens, ``[rows]``."""
    unit_s = g.key_block_flops / (processor.core_flop_per_s * c.compute_efficiency)
    shared_s = g.blocks / processor.cores * (g.mean_key_blocks * unit_s + c.block_s)
    longest_s = c.longest_share * (g.most_key_blocks * unit_s + c.block_s)
    p = c.balance_exponent
    compute_s = (shared_s**p + longest_s**p) ** (1 / p)
    compute_s = compute_s * (1 + c.slowdown * compute_s / (compute_s + LONG_S))
    moved_s = g.query_bytes / c.memory_efficiency + g.cache_bytes / c.cache_efficiency
    moved_s = moved_s / processor.memory_bytes_per_s
    return c.launch_s + compute_s + moved_s + c.token_s * g.tokens


def decode_geometry(
    calls: AttentionCalls, shape: AttentionShape, blocks: DecodeBlocks
) -> DecodeGeometry:
    """Count blocks and bytes of one query per sequence; it meets its own key too."""
    columns, per_block, splits = blocks
    b, q, past, h, kv, window = (array[:, None] for array in _floats(calls))
    cached = past + q
    tokens = np.where(window > 0, np.minimum(cached, window), cached)
    split = SPLITS if splits else SPLITS[:1]
    total = np.ceil(tokens / columns)
    each = np.ceil(total / split)
    used = np.ceil(total / each)
    return DecodeGeometry(
        blocks=b * kv * np.ceil(h / kv / per_block) * used,
        key_blocks=each,
        key_block_bytes=columns * shape.cache_bytes_per_token,
        cache_bytes=b * kv * tokens * shape.cache_bytes_per_token,
        merged_bytes=np.where(used > 1, 2 * b * h * used * shape.value_dim * PARTIAL_BYTES, 0.0),
        is_split=used > 1,
        allowed=split <= total,
        heads=b * h,
    )


def decode_seconds(g: DecodeGeometry, c: DecodeCoefficients, processor: Processor) -> np.ndarray:
    """Seconds of attention of one new token per sequence, ``[rows]``."""
    waves = g.blocks / (processor.cores * c.blocks_per_core)
    # Blocks start as others end: between a full last wave and none.
    waves = (np.maximum(waves, 1) + np.ceil(waves)) / 2
    core_s = waves * (c.block_s + g.key_blocks * g.key_block_bytes / c.core_bytes_per_s)
    memory_s = g.cache_bytes / (processor.memory_bytes_per_s * c.memory_efficiency)
    p = c.overlap_exponent
    total_s = (core_s**p + memory_s**p) ** (1 / p)
    total_s = total_s + np.where(g.is_split, c.merge_s, 0.0)
    total_s = total_s + g.merged_bytes / processor.memory_bytes_per_s
    best_s = np.where(g.allowed, total_s, np.inf).min(axis=1)
    return c.launch_s + best_s + c.head_s * g.heads[:, 0]


def attention_seconds(
    calls: AttentionCalls,
    shape: AttentionShape,
    c: PrefillCoefficients | DecodeCoefficients,
    processor: Processor,
) -> np.ndarray:
    """Seconds of every call, ``[rows]``: prefill or decode as the coefficients say."""
    if isinstance(c, PrefillCoefficients):
        return prefill_seconds(prefill_geometry(calls, shape, c.blocks), c, processor)
    return decode_seconds(decode_geometry(calls, shape, c.blocks), c, processor)


def _four(row: np.ndarray) -> tuple[float, float, float, float]:
    a, b, c, d = row.tolist()
    return a, b, c, d


def _floats(calls: AttentionCalls) -> list[np.ndarray]:
    """The arrays in order, as numbers of one length."""
    names = [f.name for f in fields(AttentionCalls)]
    arrays = np.broadcast_arrays(*(np.atleast_1d(getattr(calls, name)) for name in names))
    return [np.asarray(array, float) for array in arrays]
