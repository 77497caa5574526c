"""From configuration fields to mixers, for models that mix kinds of layers."""

from __future__ import annotations

from moesim.model.attention import (
    AttentionStyle,
    grouped_query_attention,
    latent_attention,
    layers_of,
)
from moesim.model.fields import Fields
from moesim.model.mixers import Mixer
from moesim.model.recurrences import (
    gated_delta_net,
    kimi_delta_attention,
    mamba,
    mamba2,
    short_convolution,
)

__all__ = [
    "granite_hybrid",
    "jamba",
    "kimi_linear",
    "lfm2",
    "llama4",
    "nemotron_h",
    "nemotron_kinds",
    "qwen_hybrid",
]

Mixers = tuple[Mixer, ...]


def llama4(fields: Fields, layers: int) -> Mixers:
    """Chunked attention with rotary positions, and full attention without in every fourth layer."""
    flags = fields.sizes("no_rope_layers", maximum=1)
    if flags:
        full = layers_of(flags, 0)
    else:
        interval = fields.optional_size("no_rope_layer_interval", maximum=4096) or 4
        full = tuple(range(interval - 1, layers, interval))
    style = AttentionStyle(bias="by-field")
    return grouped_query_attention(fields, range(layers), style, full=full)


SPELLINGS = {"attention": "full_attention", "mamba": "linear_attention"}
"""Older and newer words for the same kind of layer (``transformers`` 5 renamed them)."""


def _kinds(fields: Fields, layers: int) -> list[str]:
    """``full_attention`` or ``linear_attention`` for every layer of a hybrid model."""
    words = (*SPELLINGS, *SPELLINGS.values())
    kinds = fields.texts("layer_types", allowed=words, length=layers)
    if kinds is not None:
        return [SPELLINGS.get(kind, kind) for kind in kinds]
    interval = fields.optional_size("full_attention_interval", maximum=4096)
    if interval is None:
        raise fields.missing("layer_types", "full_attention_interval", what="kinds of layers")
    return [
        "linear_attention" if (layer + 1) % interval else "full_attention"
        for layer in range(layers)
    ]


def qwen_hybrid(fields: Fields, layers: int) -> Mixers:
    """Three gated delta nets to one gated attention (Qwen3-Next, Qwen3.5)."""
    kinds = _kinds(fields, layers)
    style = AttentionStyle("head", "by-field", output_gate="element")
    groups: Mixers = ()
    if full := layers_of(kinds, "full_attention"):
        groups += grouped_query_attention(fields, full, style)
    if linear := layers_of(kinds, "linear_attention"):
        groups += (gated_delta_net(fields, linear),)
    return groups


def jamba(fields: Fields, layers: int) -> Mixers:
    """Attention at a period and an offset, Mamba elsewhere."""
    period = fields.size("attn_layer_period", maximum=4096)
    offset = fields.size("attn_layer_offset", minimum=0, maximum=period - 1)
    full = tuple(range(offset, layers, period))
    rest = tuple(sorted(set(range(layers)) - set(full)))
    groups: Mixers = ()
    if full:
        groups += grouped_query_attention(fields, full, AttentionStyle())
    if rest:
        groups += (mamba(fields, rest),)
    return groups


def lfm2(fields: Fields, layers: int) -> Mixers:
    """Gated short convolutions, and attention in some layers."""
    kinds = fields.texts("layer_types", allowed=("conv", "full_attention"), length=layers)
    if kinds is None:
        raise fields.missing("layer_types", what="kinds of layers")
    groups: Mixers = ()
    if full := layers_of(kinds, "full_attention"):
        groups += grouped_query_attention(fields, full, AttentionStyle("head"))
    if rest := layers_of(kinds, "conv"):
        groups += (short_convolution(fields, rest),)
    return groups


def granite_hybrid(fields: Fields, layers: int) -> Mixers:
    """Granite 4: Mamba-2 with attention in a few layers."""
    kinds = _kinds(fields, layers)
    groups: Mixers = ()
    if full := layers_of(kinds, "full_attention"):
        groups += grouped_query_attention(fields, full, AttentionStyle(bias="by-field"))
    if rest := layers_of(kinds, "linear_attention"):
        groups += (mamba2(fields, rest),)
    return groups


def kimi_linear(fields: Fields, layers: int) -> Mixers:
    """Kimi Linear: lists of layers that count from 1, or ``layer_types``."""
    section = fields.section("linear_attn_config")
    if section is None:
        kinds = _kinds(fields, layers)
        full = [layer + 1 for layer in layers_of(kinds, "full_attention")]
        linear = [layer + 1 for layer in layers_of(kinds, "linear_attention")]
    else:
        lists = [
            section.sizes(name, minimum=1, maximum=layers)
            for name in ("full_attn_layers", "kda_layers")
        ]
        full, linear = (members or [] for members in lists)
        if sorted(full + linear) != list(range(1, layers + 1)):
            raise section.error(
                "full_attn_layers and kda_layers must name every layer once", "kda_layers"
            )
    groups: Mixers = ()
    if full:
        groups += latent_attention(fields, sorted(layer - 1 for layer in full))
    if linear:
        groups += (kimi_delta_attention(fields, tuple(sorted(layer - 1 for layer in linear))),)
    return groups


NEMOTRON_LETTERS = {"M": "mamba", "E": "moe", "*": "attention", "-": "mlp"}


def nemotron_kinds(fields: Fields) -> list[str]:
    """What each layer of Nemotron-H is: ``mamba``, ``attention``, ``moe`` or ``mlp``."""
    words = (*NEMOTRON_LETTERS.values(), *SPELLINGS.values())
    kinds = fields.texts("layers_block_type", allowed=words)
    if kinds is not None:
        older = {new: old for old, new in SPELLINGS.items()}
        kinds = [older.get(kind, kind) for kind in kinds]
    pattern = fields.text("hybrid_override_pattern")
    if pattern is not None:
        if unknown := set(pattern) - set(NEMOTRON_LETTERS):
            raise fields.error(
                "unknown letter",
                "hybrid_override_pattern",
                found=min(unknown),
                allowed=" ".join(NEMOTRON_LETTERS),
            )
        spelled = [NEMOTRON_LETTERS[letter] for letter in pattern]
        if kinds is not None and kinds != spelled:
            raise fields.error("contradicts layers_block_type", "hybrid_override_pattern")
        kinds = spelled
    if not kinds:
        raise fields.missing("layers_block_type", "hybrid_override_pattern", what="kinds of layers")
    return kinds


def nemotron_h(fields: Fields, layers: int) -> Mixers:
    """Mamba-2 and attention; the other layers are MLPs and have no mixer."""
    del layers
    kinds = nemotron_kinds(fields)
    groups: Mixers = ()
    if full := layers_of(kinds, "attention"):
        values = dict(fields.values, num_hidden_layers=len(kinds))
        inner = Fields(values, fields.file, fields.prefix)
        groups += grouped_query_attention(inner, full, AttentionStyle(bias="by-field"))
    if rest := layers_of(kinds, "mamba"):
        groups += (mamba2(fields, rest),)
    return groups
