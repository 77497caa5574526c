"""From configuration fields to mixers: grouped-query, latent, compressed attention.

Each reader takes the fields and the number of layers and returns groups of layers that are built
alike. Recurrences are read in :mod:`moesim.model.recurrences`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from moesim.model.fields import Fields
from moesim.model.mixers import (
    CompressedAttention,
    GroupedQueryAttention,
    Indexer,
    LatentAttention,
    Mixer,
)

__all__ = [
    "AttentionStyle",
    "compressed_attention",
    "gemma_attention",
    "grouped_query_attention",
    "latent_attention",
    "layers_of",
    "mimo_attention",
    "minimax_m3_attention",
]

Mixers = tuple[Mixer, ...]

LAYER_KINDS = (
    "full_attention",
    "sliding_attention",
    "chunked_attention",
    "linear_attention",
    "attention",
    "mamba",
    "conv",
)
WIDE_BLOCK_TOKENS = 128
"""DeepSeek-V4 presses 4 tokens into an entry and lets an indexer pick, or 128 and reads all."""


@dataclass(frozen=True)
class AttentionStyle:
    """What an architecture fixes and its configurations do not say.

    Attributes:
        query_key_norm: Norm over each head, over the whole projection, or none.
        bias: Biases on query, key and value, on all four projections, or by ``attention_bias``.
        output_gate: A gate per head or per element of the output.
        sinks: One learned sink per head.
    """

    query_key_norm: Literal["none", "head", "projection"] = "none"
    bias: Literal["none", "qkv", "all", "by-field"] = "none"
    output_gate: Literal["none", "head", "element"] = "none"
    sinks: bool = False


def layers_of(kinds: Sequence[object], *wanted: object) -> tuple[int, ...]:
    """Indices at which one of the wanted kinds stands."""
    return tuple(index for index, kind in enumerate(kinds) if kind in wanted)


def head_size(fields: Fields, heads: int) -> int:
    """``head_dim``, or the hidden size over the heads where that is left out."""
    if (stated := fields.optional_size("head_dim", "attention_head_dim")) is not None:
        return stated
    hidden = fields.size("hidden_size", "d_model")
    if hidden % heads:
        raise fields.error(
            "the hidden size does not divide by the heads, and head_dim is not stated",
            "num_attention_heads",
            found=heads,
        )
    return hidden // heads


def _grouped(
    fields: Fields,
    layers: tuple[int, ...],
    style: AttentionStyle,
    *,
    window_tokens: int | None = None,
    heads: int | None = None,
) -> GroupedQueryAttention:
    hidden = fields.size("hidden_size", "d_model")
    if heads is None:
        heads = fields.size("num_attention_heads", "n_heads")
    kv_heads = fields.size("num_key_value_heads", "kv_n_heads", "num_attention_groups")
    if heads % kv_heads:
        raise fields.error(
            "the heads do not divide by the key-value heads",
            "num_key_value_heads",
            found=f"{kv_heads} for {heads} heads",
        )
    head_dim = head_size(fields, heads)
    value_dim = fields.optional_size("v_head_dim") or head_dim
    projections = heads * head_dim + kv_heads * (head_dim + value_dim)
    extra = {
        "none": 0,
        "head": 2 * head_dim,
        "projection": (heads + kv_heads) * head_dim,
    }[style.query_key_norm]
    bias = style.bias
    if bias == "by-field":
        stated = fields.flag("attention_bias", "use_bias", default=False)
        bias = "all" if stated else "none"
    extra += {"none": 0, "qkv": projections, "all": projections + hidden}[bias]
    extra += heads if style.sinks else 0
    return GroupedQueryAttention(
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        value_head_dim=value_dim,
        window_tokens=window_tokens,
        output_gate=style.output_gate,
        extra_parameters=extra,
    )


def grouped_query_attention(
    fields: Fields, layers: Sequence[int], style: AttentionStyle, *, full: Sequence[int] = ()
) -> Mixers:
    """Grouped-query attention in ``layers``, split by window where the configuration says so.

    Args:
        fields: The configuration of the language model.
        layers: The layers to describe.
        style: What the architecture fixes.
        full: Layers without a window where ``layer_types`` is not stated but a window is.
    """
    count = fields.size("num_hidden_layers", "n_layers", "num_layers", maximum=4096)
    types = fields.values.get("layer_types")
    # Lists may run on over the MTP modules that follow the model (Step 3).
    kinds = fields.texts("layer_types", allowed=LAYER_KINDS)
    if kinds is not None and len(kinds) < count:
        raise fields.error("shorter than the model", "layer_types", found=f"{len(types or [])}")
    window = None
    if fields.flag("use_sliding_window", default=True):
        window = fields.optional_size("sliding_window", "attention_chunk_size")
        context = fields.optional_size("max_position_embeddings", maximum=2**31)
        if window is not None and context is not None and window >= context:
            window = None  # Phi-3.5-MoE states one as long as its context
    if kinds is not None:
        windowed = [at for at in layers if kinds[at] in {"sliding_attention", "chunked_attention"}]
        if windowed and window is None:
            raise fields.missing("sliding_window", "attention_chunk_size")
    else:
        windowed = [at for at in layers if window is not None and at not in set(full)]
    sliding = set(windowed)
    rest = tuple(at for at in layers if at not in sliding)
    groups: list[Mixer] = []
    if rest:
        groups.append(_grouped(fields, rest, style))
    if windowed:
        other = fields.section("attention_other_setting")
        heads = other.optional_size("num_attention_heads") if other else None
        groups.append(_grouped(fields, tuple(windowed), style, window_tokens=window, heads=heads))
    return tuple(groups)


def latent_attention(fields: Fields, layers: Sequence[int]) -> Mixers:
    """Multi-head latent attention; with ``index_topk`` sparse (DSA), by layer where stated."""
    count = fields.size("num_hidden_layers", maximum=4096)
    base = LatentAttention(
        layers=tuple(layers),
        heads=fields.size("num_attention_heads"),
        query_rank=fields.optional_size("q_lora_rank"),
        kv_rank=fields.size("kv_lora_rank"),
        rope_head_dim=fields.size("qk_rope_head_dim"),
        nope_head_dim=fields.size("qk_nope_head_dim"),
        value_head_dim=fields.size("v_head_dim"),
        output_gate=fields.flag("mla_use_output_gate", default=False),
        extra_parameters=_latent_biases(fields),
    )
    if not fields.has("index_topk"):
        return (base,)
    head_dim = fields.size("index_head_dim")
    sparse_tokens = fields.size("index_topk")
    indexer = Indexer(
        heads=fields.size("index_n_heads"),
        head_dim=head_dim,
        query_width=base.query_rank or fields.size("hidden_size"),
        extra_parameters=2 * head_dim,  # its key norm has a weight and a bias
    )
    kinds = fields.texts("indexer_types", allowed=("full", "shared"), length=count)
    own = set(layers) if kinds is None else {at for at in layers if kinds[at] == "full"}
    groups = []
    for with_indexer, members in ((indexer, own), (None, set(layers) - own)):
        if members:
            group = base.model_copy(
                update={
                    "layers": tuple(sorted(members)),
                    "indexer": with_indexer,
                    "sparse_tokens": sparse_tokens,
                }
            )
            groups.append(group)
    return tuple(groups)


def _latent_biases(fields: Fields) -> int:
    """``attention_bias`` gives biases to the two down-projections and the output."""
    if not fields.flag("attention_bias", default=False):
        return 0
    query = fields.optional_size("q_lora_rank") or 0
    latent = fields.size("kv_lora_rank") + fields.size("qk_rope_head_dim")
    return query + latent + fields.size("hidden_size")


def compressed_attention(fields: Fields, layers: int) -> Mixers:
    """DeepSeek-V4: ``compress_ratios`` per layer, 0 (window only), 4 (indexer) or 128."""
    ratios = _compression(fields, layers)
    heads = fields.size("num_attention_heads")
    query_rank = fields.size("q_lora_rank")
    groups = []
    for ratio in sorted(set(ratios)):
        indexed = 0 < ratio < WIDE_BLOCK_TOKENS
        indexer = None
        if indexed:
            indexer = Indexer(
                heads=fields.size("index_n_heads"),
                head_dim=fields.size("index_head_dim"),
                query_width=query_rank,
            )
        groups.append(
            CompressedAttention(
                layers=layers_of(ratios, ratio),
                heads=heads,
                head_dim=head_size(fields, heads),
                query_rank=query_rank,
                output_groups=fields.size("o_groups"),
                output_rank=fields.size("o_lora_rank"),
                window_tokens=fields.size("sliding_window"),
                compression=ratio,
                indexer=indexer,
                sparse_tokens=fields.size("index_topk") if indexed else None,
            )
        )
    return tuple(groups)


COMPRESSION_KINDS = {
    "sliding_attention": 0,
    "compressed_sparse_attention": 4,
    "heavily_compressed_attention": 128,
}


def _compression(fields: Fields, layers: int) -> list[int]:
    """Tokens per compressed entry of each layer: ``compress_ratios``, or ``layer_types``."""
    ratios = fields.sizes("compress_ratios", maximum=2**16)
    if ratios is not None:
        if len(ratios) < layers:  # one more entry per MTP module is usual
            raise fields.error("shorter than the model", "compress_ratios", found=len(ratios))
        return ratios[:layers]
    kinds = fields.texts("layer_types", allowed=tuple(COMPRESSION_KINDS), length=layers)
    if kinds is None:
        raise fields.missing("compress_ratios", "layer_types", what="tokens per entry, by layer")
    rates = fields.section("compress_rates")
    ratio = dict(COMPRESSION_KINDS)
    for kind in COMPRESSION_KINDS if rates else ():
        ratio[kind] = (rates and rates.optional_size(kind, maximum=2**16)) or ratio[kind]
    return [ratio[kind] for kind in kinds]


def gemma_attention(fields: Fields, layers: int) -> Mixers:
    """Gemma 4: global layers have a head size and key-value heads of their own."""
    kinds = fields.texts(
        "layer_types", allowed=("full_attention", "sliding_attention"), length=layers
    )
    if kinds is None:
        raise fields.missing("layer_types", what="which layers slide")
    for name in ("hidden_size_per_layer_input", "num_kv_shared_layers"):
        if fields.size(name, minimum=0):
            raise fields.error("not supported in a Mixture-of-Experts model", name, allowed="0")
    style = AttentionStyle(query_key_norm="head", bias="by-field")
    groups: list[Mixer] = []
    if sliding := layers_of(kinds, "sliding_attention"):
        groups.append(_grouped(fields, sliding, style, window_tokens=fields.size("sliding_window")))
    if full := layers_of(kinds, "full_attention"):
        shared = fields.flag("attention_k_eq_v", default=False)
        head_dim = fields.optional_size("global_head_dim") or fields.size("head_dim")
        kv_heads = fields.optional_size("num_global_key_value_heads") if shared else None
        groups.append(
            GroupedQueryAttention(
                layers=full,
                heads=fields.size("num_attention_heads"),
                kv_heads=kv_heads or fields.size("num_key_value_heads"),
                head_dim=head_dim,
                value_head_dim=head_dim,
                keys_are_values=shared,
                extra_parameters=2 * head_dim,
            )
        )
    return tuple(groups)


def mimo_attention(fields: Fields, layers: int) -> Mixers:
    """MiMo-V2: ``hybrid_layer_pattern`` 1 marks sliding layers, which have dimensions of theirs."""
    pattern = fields.sizes("hybrid_layer_pattern", maximum=1, length=layers)
    if pattern is None:
        raise fields.missing("hybrid_layer_pattern", what="which layers slide")
    groups: list[Mixer] = []
    for slides, prefix, sink in ((0, "", "add_full_attention_sink_bias"), (1, "swa_", None)):
        members = layers_of(pattern, slides)
        if not members:
            continue
        heads = fields.size(f"{prefix}num_attention_heads")
        sinks = fields.flag(sink or "add_swa_attention_sink_bias", default=False)
        groups.append(
            GroupedQueryAttention(
                layers=members,
                heads=heads,
                kv_heads=fields.size(f"{prefix}num_key_value_heads"),
                head_dim=fields.size(f"{prefix}head_dim"),
                value_head_dim=fields.size(f"{prefix}v_head_dim"),
                window_tokens=fields.size("sliding_window") if slides else None,
                extra_parameters=heads if sinks else 0,
            )
        )
    return tuple(groups)


def minimax_m3_attention(fields: Fields, layers: int) -> Mixers:
    """MiniMax-M3: grouped-query attention, in most layers over blocks that an indexer picks."""
    style = AttentionStyle(query_key_norm="head")
    dense = _grouped(fields, tuple(range(layers)), style)
    section = fields.section("sparse_attention_config")
    if section is None or not section.flag("use_sparse_attention", default=True):
        return (dense,)
    flags = section.sizes("sparse_attention_freq", maximum=1, length=layers)
    if flags is None:
        raise section.missing("sparse_attention_freq", what="which layers are sparse")
    head_dim = section.size("sparse_index_dim")
    indexer = Indexer(
        heads=section.size("sparse_num_index_heads"),
        head_dim=head_dim,
        query_width=fields.size("hidden_size"),
        weighs_heads=False,
        extra_parameters=2 * head_dim,
    )
    tokens = section.size("sparse_topk_blocks") * section.size("sparse_block_size")
    groups: list[Mixer] = []
    if full := layers_of(flags, 0):
        groups.append(dense.model_copy(update={"layers": full}))
    if sparse := layers_of(flags, 1):
        update = {"layers": sparse, "indexer": indexer, "sparse_tokens": tokens}
        groups.append(dense.model_copy(update=update))
    return tuple(groups)
