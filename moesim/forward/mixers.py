"""Calls of the token mixers of one layer: attention in its kinds, and recurrences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from moesim.forward.layout import Sequences, StepLoad
from moesim.forward.work import (
    OUTPUT_BYTES,
    AttentionWork,
    GemmWork,
    MoveWork,
    ScanKind,
    ScanWork,
    Work,
)
from moesim.model.mixers import (
    CompressedAttention,
    GroupedQueryAttention,
    Indexer,
    LatentAttention,
    Mixer,
    Recurrence,
    StateHeads,
)
from moesim.operators.attention import ELEMENT_BYTES
from moesim.operators.streaming import Role, scan_work

__all__ = ["STATE_BYTES", "MixerContext", "cache_bytes_per_token", "mixer_calls", "state_bytes"]

STATE_BYTES = 4
"""Per element of a recurrent state: engines keep it in float32 (vLLM, ``mamba_ssm_cache_dtype``
of Qwen3-Next and Nemotron-H)."""

STATE_FLOPS = 6
"""Per state element and token: decay, outer product and sum, read-out (arXiv 2405.21060, eq. 1)."""

SCANS: Mapping[str, ScanKind] = {
    "gated-delta-net": "gdn",
    "kimi-delta-attention": "kda",
    "mamba2": "mamba2",
}
"""Recurrences by the name of their measured kernels."""

Calls = Iterator[tuple[str, Work]]


@dataclass(frozen=True)
class MixerContext:
    """What the calls of a mixer depend on besides its sizes.

    Attributes:
        hidden: Of the model.
        tp: Devices that share the heads.
        load: Sequences of the busiest group of those devices.
        gemm_dtype: Of the projections.
        kv_dtype: Of the cache.
    """

    hidden: int
    tp: int
    load: StepLoad
    gemm_dtype: str
    kv_dtype: str


def mixer_calls(mixer: Mixer, context: MixerContext) -> Calls:
    """Names and works of one layer's mixer on one device, in order."""
    if isinstance(mixer, GroupedQueryAttention):
        yield from _grouped(mixer, context)
    elif isinstance(mixer, LatentAttention):
        yield from _latent(mixer, context)
    elif isinstance(mixer, CompressedAttention):
        yield from _compressed(mixer, context)
    else:
        yield from _recurrence(mixer, context)


def cache_bytes_per_token(mixer: Mixer, tp: int, kv_dtype: str) -> float:
    """Bytes that a further token adds to the cache of one device, per layer.

    Key-value heads are cut over ``tp`` while there are enough; a latent is not cut.
    """
    elements = mixer.cache_elements_per_token
    if isinstance(mixer, GroupedQueryAttention):
        indexer = mixer.indexer.head_dim if mixer.indexer else 0
        elements = (elements - indexer) * max(1 / tp, 1 / mixer.kv_heads) + indexer
    return elements * ELEMENT_BYTES[kv_dtype]


def state_bytes(mixer: Mixer, tp: int, kv_dtype: str) -> float:
    """Bytes that a sequence takes on one device whatever its length, per layer."""
    if isinstance(mixer, Recurrence):
        return mixer.state_elements / tp * STATE_BYTES
    return mixer.state_elements * ELEMENT_BYTES[kv_dtype]


def _write(mixer: Mixer, context: MixerContext) -> MoveWork:
    """Rotary embedding and the new tokens' cache entries."""
    tokens = context.load.tokens
    elements = mixer.cache_elements_per_token
    written = cache_bytes_per_token(mixer, context.tp, context.kv_dtype)
    if isinstance(mixer, CompressedAttention):  # the window, besides the compressed entries
        elements += mixer.head_dim
        written += mixer.head_dim * ELEMENT_BYTES[context.kv_dtype]
    return MoveWork(tokens * (written + elements / context.tp * OUTPUT_BYTES))


def _per_head(heads: int, tp: int) -> int:
    """Heads on one device; those that do not divide are held several times."""
    return max(1, heads // tp)


def _grouped(mixer: GroupedQueryAttention, context: MixerContext) -> Calls:
    load, tp = context.load, context.tp
    heads, kv_heads = mixer.heads // tp, _per_head(mixer.kv_heads, tp)
    gate = {"none": 0, "head": heads, "element": heads * mixer.value_head_dim}[mixer.output_gate]
    value = 0 if mixer.keys_are_values else kv_heads * mixer.value_head_dim
    columns = heads * mixer.head_dim + kv_heads * mixer.head_dim + value + gate
    yield "qkv", GemmWork(load.tokens, columns, context.hidden, context.gemm_dtype)
    if mixer.indexer is not None:
        yield from _indexer(mixer.indexer, context)
    yield "cache_write", _write(mixer, context)
    window = min(mixer.window_tokens or 2**62, mixer.sparse_tokens or 2**62)
    for group in load.groups:
        yield (
            f"{group.phase}_attention",
            AttentionWork(
                phase=group.phase,
                sequences=group.count,
                query_tokens=group.new_tokens,
                past_tokens=group.cached_tokens,
                heads=heads,
                kv_heads=kv_heads,
                key_dim=mixer.head_dim,
                value_dim=mixer.value_head_dim,
                cache_elements=mixer.head_dim + mixer.value_head_dim,
                dtype="bfloat16",
                kv_dtype=context.kv_dtype,
                window_tokens=window if window < 2**62 else 0,
            ),
        )
    yield (
        "output",
        GemmWork(load.tokens, context.hidden, heads * mixer.value_head_dim, context.gemm_dtype),
    )


def _latent(mixer: LatentAttention, context: MixerContext) -> Calls:
    """MLA: absorbed in decode, expanded in prefill (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""
    load, tp, dtype = context.load, context.tp, context.gemm_dtype
    tokens, hidden, heads = load.tokens, context.hidden, mixer.heads // tp
    latent = mixer.kv_rank + mixer.rope_head_dim
    key = mixer.nope_head_dim + mixer.rope_head_dim
    if mixer.query_rank is None:
        yield "down", GemmWork(tokens, heads * key + latent, hidden, dtype)
    else:
        # Queries and latent come from one matrix that every device holds whole.
        yield "down", GemmWork(tokens, mixer.query_rank + latent, hidden, dtype)
        yield "query_up", GemmWork(tokens, heads * key, mixer.query_rank, dtype)
    if mixer.indexer is not None:
        yield from _indexer(mixer.indexer, context)
    yield "cache_write", _write(mixer, context)
    decode = sum(group.tokens for group in load.groups if group.phase == "decode")
    for group in load.groups:
        yield from _latent_group(mixer, context, group, heads)
    if decode:
        yield "value_up", GemmWork(decode, mixer.value_head_dim, mixer.kv_rank, "bfloat16", heads)
    output = heads * mixer.value_head_dim
    if mixer.output_gate:
        yield "gate", GemmWork(tokens, output, hidden, dtype)
    yield "output", GemmWork(tokens, hidden, output, dtype)


def _latent_group(
    mixer: LatentAttention, context: MixerContext, group: Sequences, heads: int
) -> Calls:
    latent = mixer.kv_rank + mixer.rope_head_dim
    key = mixer.nope_head_dim + mixer.rope_head_dim
    absorbed = group.phase == "decode"
    if absorbed:
        yield (
            "query_absorb",
            GemmWork(group.tokens, mixer.kv_rank, mixer.nope_head_dim, "bfloat16", heads),
        )
    else:
        # Keys and values of cached tokens are expanded too.
        seen = group.count * (group.cached_tokens + group.new_tokens)
        columns = heads * (mixer.nope_head_dim + mixer.value_head_dim)
        yield "latent_up", GemmWork(seen, columns, mixer.kv_rank, context.gemm_dtype)
    yield (
        f"{group.phase}_attention",
        AttentionWork(
            phase=group.phase,
            sequences=group.count,
            query_tokens=group.new_tokens,
            past_tokens=group.cached_tokens,
            heads=heads,
            kv_heads=1 if absorbed else heads,
            key_dim=latent if absorbed else key,
            value_dim=mixer.kv_rank if absorbed else mixer.value_head_dim,
            cache_elements=latent if absorbed else key + mixer.value_head_dim,
            dtype="bfloat16",
            kv_dtype=context.kv_dtype if absorbed else "bfloat16",
            window_tokens=mixer.sparse_tokens or 0,
            latent=absorbed,
            expanded=not absorbed,
        ),
    )


def _indexer(indexer: Indexer, context: MixerContext) -> Calls:
    """The scorer that picks cached tokens; it scores all of them, in FP8 (DeepSeek-V3.2-Exp)."""
    tokens, width = context.load.tokens, indexer.heads * indexer.head_dim
    yield "indexer_query", GemmWork(tokens, width, indexer.query_width, context.gemm_dtype)
    own = indexer.head_dim + (indexer.heads if indexer.weighs_heads else 0)
    yield "indexer_key", GemmWork(tokens, own, context.hidden, "bfloat16")
    for group in context.load.groups:
        yield (
            f"indexer_{group.phase}",
            AttentionWork(
                phase=group.phase,
                sequences=group.count,
                query_tokens=group.new_tokens,
                past_tokens=group.cached_tokens,
                heads=indexer.heads,
                kv_heads=1,
                key_dim=indexer.head_dim,
                value_dim=0,
                cache_elements=indexer.head_dim,
                dtype="fp8",
                kv_dtype="fp8",
            ),
        )


def _compressed(mixer: CompressedAttention, context: MixerContext) -> Calls:
    """DeepSeek-V4: a short window, and entries that hold ``compression`` tokens each."""
    load, tp, dtype = context.load, context.tp, context.gemm_dtype
    tokens, hidden, heads = load.tokens, context.hidden, mixer.heads // tp
    halves = 2 if mixer.indexer else 1
    pressed = 2 * halves * mixer.head_dim if mixer.compression else 0
    yield "down", GemmWork(tokens, mixer.query_rank + mixer.head_dim + pressed, hidden, dtype)
    yield "query_up", GemmWork(tokens, heads * mixer.head_dim, mixer.query_rank, dtype)
    if mixer.indexer is not None:
        yield from _indexer(mixer.indexer, context)
    yield "cache_write", _write(mixer, context)
    parts = [("window", mixer.window_tokens, 1)]
    if mixer.compression:
        parts.append(("compressed", mixer.sparse_tokens or 0, mixer.compression))
    for group in load.groups:
        for name, window, stride in parts:
            yield (
                f"{group.phase}_attention_{name}",
                AttentionWork(
                    phase=group.phase,
                    sequences=group.count,
                    query_tokens=group.new_tokens,
                    past_tokens=group.cached_tokens,
                    heads=heads,
                    kv_heads=1,
                    key_dim=mixer.head_dim,
                    value_dim=mixer.head_dim,
                    cache_elements=mixer.head_dim,  # the key is the value
                    dtype="bfloat16",
                    kv_dtype=context.kv_dtype,
                    window_tokens=window,
                    stride=stride,
                    latent=True,
                ),
            )
    groups = _per_head(mixer.output_groups, tp)
    width = heads * mixer.head_dim // groups
    yield "output_down", GemmWork(tokens, mixer.output_rank, width, dtype, groups)
    yield "output", GemmWork(tokens, hidden, groups * mixer.output_rank, dtype)


def _recurrence(mixer: Recurrence, context: MixerContext) -> Calls:
    """Projections as one product, and the state: read and written once per sequence."""
    load, tp = context.load, context.tp
    columns = max(1, mixer.matrix_parameters // (context.hidden * tp))
    yield "projections", GemmWork(load.tokens, columns, context.hidden, context.gemm_dtype)
    for group in load.groups:
        if mixer.state_heads is not None and mixer.kind in SCANS:
            yield from _scans(SCANS[mixer.kind], mixer.state_heads, group, tp)
            continue
        state = mixer.state_elements / tp
        moved = 2 * group.count * state * STATE_BYTES
        # Inputs and outputs of the scan: about the projections' columns, in and out.
        moved += group.tokens * columns * OUTPUT_BYTES
        yield f"{group.phase}_state", MoveWork(moved, STATE_FLOPS * group.tokens * state, 2)


def _scans(kind: ScanKind, heads: StateHeads, group: Sequences, tp: int) -> Calls:
    """The convolution, the recurrence and the gated norm of its result; heads are cut over ``tp``.

    Bytes and FLOPs are those of :mod:`moesim.operators.streaming`, one call at a time.
    """
    own = heads.model_copy(
        update={
            "key_heads": _per_head(heads.key_heads, tp),
            "value_heads": _per_head(heads.value_heads, tp),
        }
    )
    roles: tuple[Role, ...] = ("convolution", "recurrence")
    for role in roles:
        work = scan_work(role, np.array([group.count]), np.array([group.new_tokens]), own)
        yield (
            f"{group.phase}_{role}",
            ScanWork(
                bytes=float(work.moved_bytes[0]),
                flops=float(work.flops[0]),
                kind=kind,
                role=role,
                phase=group.phase,
                sequences=group.count,
                query_tokens=group.new_tokens,
                heads=own,
            ),
        )
    values = group.tokens * own.value_heads * own.value_dim
    # Result and gate are read, the normed product is written.
    yield f"{group.phase}_gated_norm", MoveWork(3.0 * values * OUTPUT_BYTES, 8.0 * values)
