"""What each architecture fixes and its configurations do not say.

One entry per ``model_type``. Facts come from the published implementations (``transformers`` where
it has the model, else the code that ships with the weights); a test builds the models that
``transformers`` knows and compares parameter totals exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from moesim.model.attention import (
    AttentionStyle,
    compressed_attention,
    gemma_attention,
    grouped_query_attention,
    latent_attention,
    layers_of,
    mimo_attention,
    minimax_m3_attention,
)
from moesim.model.fields import Fields
from moesim.model.hybrids import (
    granite_hybrid,
    jamba,
    kimi_linear,
    lfm2,
    llama4,
    nemotron_h,
    nemotron_kinds,
    qwen_hybrid,
)
from moesim.model.layers import moe_layers
from moesim.model.mixers import Mixer

__all__ = ["ARCHITECTURES", "FAMILIES", "Family"]

Mixers = tuple[Mixer, ...]
Shared = tuple[int, int]
"""Shared experts of a layer, and their total width."""


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        mixers: Reads what mixes tokens: (fields, layers) → mixers.
        expert_width: Names of the width of a routed expert.
        dense_width: Names of the width of a dense layer's MLP.
        layer_rule: Fields of which one must say where the MoE layers are; none: all layers are,
            unless a field says otherwise.
        moe_layers: Reads which layers are MoE layers.
        plain_layers: Whether the layers that are not MoE layers have no MLP at all.
        shared: Reads the shared experts: (fields, expert width) → (count, total width).
        matrices: Per expert: 3 gated, 2 plain.
        norms: Vectors of the hidden size per layer, and
        final_norms: after the last layer.
        other: Further parameters of the model: (fields, layers, MoE layers, experts).
        expert_biases: Whether each matrix of an expert has a bias.
        latent: Name of the width that experts work in, if not the hidden size.
        tied: Whether the embedding is also the output head where the configuration is silent.
        groups_are_top_k: A token takes one expert from each of top-k groups (Pangu).
        dense: No layer has experts; such models can be served, and have nothing to place.
    """

    mixers: Callable[[Fields, int], Mixers]
    expert_width: tuple[str, ...] = ("moe_intermediate_size", "expert_intermediate_size")
    dense_width: tuple[str, ...] = ("intermediate_size",)
    layer_rule: tuple[str, ...] = ()
    moe_layers: Callable[[Fields, int], tuple[int, ...]] = moe_layers
    plain_layers: bool = False
    shared: Callable[[Fields, int], Shared] | None = None
    matrices: int = 3
    norms: int = 2
    final_norms: int = 1
    other: Callable[[Fields, int, int, int], int] | None = None
    expert_biases: bool = False
    latent: tuple[str, ...] = ()
    tied: bool = False
    groups_are_top_k: bool = False
    dense: bool = False


def counted_shared(fields: Fields, expert_width: int) -> Shared:
    """A number of shared experts as wide as routed ones, or a total width, or both."""
    count = fields.optional_size(
        "n_shared_experts",
        "num_shared_experts",
        "moe_num_shared_experts",
        "num_shared_expert",
        minimum=0,
    )
    width = fields.optional_size(
        "shared_expert_intermediate_size",
        "moe_shared_expert_intermediate_size",
        "shared_intermediate_size",
        "share_expert_dim",
        minimum=0,
    )
    if width is None:
        return (count, count * expert_width) if count else (0, 0)
    if count is None:
        # Qwen2-MoE and Pangu state the total of shared experts that are as wide as routed ones.
        count = width // expert_width if width % expert_width == 0 else min(width, 1)
    return count, width


def _parallel_mlp(fields: Fields, expert_width: int) -> Shared:
    """One MLP that every token takes beside its experts."""
    del expert_width
    return 1, fields.size("intermediate_size")


def _gqa(style: AttentionStyle) -> Callable[[Fields, int], Mixers]:
    return lambda fields, layers: grouped_query_attention(fields, range(layers), style)


def _mla(fields: Fields, layers: int) -> Mixers:
    return latent_attention(fields, range(layers))


def _per_moe_layer(hidden: int = 0, experts: int = 0) -> Callable[[Fields, int, int, int], int]:
    """So many vectors of the hidden size and of the number of experts in every MoE layer."""
    return lambda fields, layers, moe, count: (
        moe * (hidden * fields.size("hidden_size", "d_model") + experts * count)
    )


def _hyper_connections(fields: Fields, layers: int, moe: int, experts: int) -> int:
    """DeepSeek-V4 keeps ``hc_mult`` residual streams and mixes them around each block."""
    del moe, experts
    streams = fields.size("hc_mult", maximum=64)
    mixed = streams * (streams + 2)
    per_block = mixed * streams * fields.size("hidden_size") + mixed + 3
    head = streams * streams * fields.size("hidden_size") + streams + 1
    return 2 * layers * per_block + head


def _phi_head(fields: Fields, layers: int, moe: int, experts: int) -> int:
    del layers, moe, experts
    return fields.size("vocab_size") if fields.flag("lm_head_bias", default=False) else 0


PLAIN = ("intermediate_size",)
LEADING = ("first_k_dense_replace", "mlp_layer_types", "moe_layer_freq")
DEEPSEEK = Family(mixers=_mla, layer_rule=LEADING, shared=counted_shared)
QWEN3 = Family(mixers=_gqa(AttentionStyle("head", "by-field")))
QWEN_HYBRID = Family(mixers=qwen_hybrid, shared=counted_shared, other=_per_moe_layer(hidden=1))
GLM4 = Family(
    mixers=lambda fields, layers: grouped_query_attention(
        fields,
        range(layers),
        AttentionStyle(
            "head" if fields.flag("use_qk_norm", default=False) else "none",
            "qkv" if fields.flag("attention_bias", default=False) else "none",
        ),
    ),
    layer_rule=LEADING,
    shared=counted_shared,
)
LLAMA4 = Family(
    mixers=llama4,
    expert_width=PLAIN,
    dense_width=("intermediate_size_mlp",),
    layer_rule=("interleave_moe_layer_step", "moe_layers"),
    shared=_parallel_mlp,
)
MINIMAX_M3 = Family(
    mixers=minimax_m3_attention,
    expert_width=("moe_intermediate_size", "intermediate_size"),
    dense_width=("dense_intermediate_size",),
    layer_rule=("moe_layer_freq", "mlp_layer_types"),
    shared=counted_shared,
)
KIMI_LINEAR = Family(
    mixers=kimi_linear,
    layer_rule=LEADING,
    shared=counted_shared,
    latent=("routed_expert_hidden_size",),
)
STEP = Family(
    mixers=_gqa(AttentionStyle("head", "by-field", output_gate="head")),
    layer_rule=(*LEADING, "moe_layers_enum"),
    shared=counted_shared,
)
GROK = Family(mixers=_gqa(AttentionStyle()), expert_width=PLAIN, norms=4, tied=True)
GRANITE = Family(mixers=_gqa(AttentionStyle(bias="by-field")), expert_width=PLAIN)

FAMILIES: dict[str, Family] = {
    "llama": Family(mixers=_gqa(AttentionStyle(bias="by-field")), dense=True),
    "qwen2": Family(mixers=_gqa(AttentionStyle(bias="qkv")), dense=True),
    "qwen3": Family(mixers=QWEN3.mixers, dense=True),
    "mixtral": Family(mixers=_gqa(AttentionStyle()), expert_width=PLAIN),
    "qwen2_moe": Family(
        mixers=lambda fields, layers: grouped_query_attention(
            fields,
            range(layers),
            AttentionStyle(bias="qkv" if fields.flag("qkv_bias", default=True) else "none"),
        ),
        shared=counted_shared,
        other=_per_moe_layer(hidden=1),
    ),
    "qwen3_moe": QWEN3,
    "qwen3_vl_moe_text": QWEN3,
    "qwen3_vl_moe": QWEN3,
    "qwen3_next": QWEN_HYBRID,
    "qwen3_5_moe_text": QWEN_HYBRID,
    "qwen3_5_moe": QWEN_HYBRID,
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": DEEPSEEK,
    "deepseek_v32": DEEPSEEK,
    "kimi_k2": DEEPSEEK,
    "kimi_k25": DEEPSEEK,
    "glm_moe_dsa": DEEPSEEK,
    "glm4_moe_lite": DEEPSEEK,
    "deepseek_v4": Family(
        mixers=compressed_attention,
        shared=counted_shared,
        other=_hyper_connections,
    ),
    "glm4_moe": GLM4,
    "glm4v_moe_text": GLM4,
    "gpt_oss": Family(
        mixers=_gqa(AttentionStyle(bias="all", sinks=True)),
        expert_width=PLAIN,
        other=_per_moe_layer(experts=1),
        expert_biases=True,
    ),
    "minimax_m2": Family(
        mixers=_gqa(AttentionStyle("projection")), expert_width=PLAIN, shared=counted_shared
    ),
    "minimax_m3": MINIMAX_M3,
    "minimax_m3_vl": MINIMAX_M3,
    "minimax_m3_vl_text": MINIMAX_M3,
    "llama4": LLAMA4,
    "llama4_text": LLAMA4,
    "olmoe": Family(mixers=_gqa(AttentionStyle("projection", "by-field")), expert_width=PLAIN),
    "phimoe": Family(
        mixers=_gqa(AttentionStyle(bias="by-field")),
        expert_width=PLAIN,
        norms=4,
        final_norms=2,
        other=_phi_head,
    ),
    "jamba": Family(mixers=jamba, expert_width=PLAIN, layer_rule=("expert_layer_period",)),
    "granitemoe": GRANITE,
    "granitemoeshared": Family(mixers=GRANITE.mixers, expert_width=PLAIN, shared=counted_shared),
    "granitemoehybrid": Family(mixers=granite_hybrid, expert_width=PLAIN, shared=counted_shared),
    "grok-1": GROK,
    "grok": GROK,
    "PanguProMoE": Family(
        mixers=_gqa(AttentionStyle(bias="all")), shared=counted_shared, groups_are_top_k=True
    ),
    "dbrx": Family(mixers=_gqa(AttentionStyle()), expert_width=("ffn_hidden_size",)),
    "ernie4_5_moe": Family(
        mixers=_gqa(AttentionStyle(bias="by-field")),
        layer_rule=("moe_layer_start_index",),
        shared=counted_shared,
        other=_per_moe_layer(experts=1),
        tied=True,
    ),
    "hunyuan_v1_moe": Family(
        mixers=_gqa(AttentionStyle("head", "by-field")), expert_width=PLAIN, shared=_parallel_mlp
    ),
    "dots1": Family(
        mixers=_gqa(AttentionStyle("head", "by-field")), layer_rule=LEADING, shared=counted_shared
    ),
    "solar_open": Family(mixers=_gqa(AttentionStyle(bias="by-field")), shared=counted_shared),
    "hy_v3": Family(
        mixers=_gqa(AttentionStyle("head", "by-field")), layer_rule=LEADING, shared=counted_shared
    ),
    "exaone_moe": Family(
        mixers=_gqa(AttentionStyle("head")), layer_rule=LEADING, shared=counted_shared
    ),
    "flex_olmo": Family(mixers=_gqa(AttentionStyle("projection", "by-field")), expert_width=PLAIN),
    "afmoe": Family(
        mixers=_gqa(AttentionStyle("head", "by-field", output_gate="element")),
        layer_rule=("num_dense_layers",),
        shared=counted_shared,
        norms=4,
        other=_per_moe_layer(experts=1),
    ),
    "lfm2_moe": Family(mixers=lfm2, layer_rule=("num_dense_layers",), tied=True),
    "mimo_v2_flash": Family(mixers=mimo_attention, layer_rule=LEADING, shared=counted_shared),
    "step3p5": STEP,
    "step3p7": STEP,
    "kimi_linear": KIMI_LINEAR,
    "kimi_k3": KIMI_LINEAR,
    "gemma4_text": Family(
        mixers=gemma_attention,
        shared=_parallel_mlp,
        norms=7,
        other=_per_moe_layer(hidden=1, experts=1),
        tied=True,
    ),
    "nemotron_h": Family(
        mixers=nemotron_h,
        moe_layers=lambda fields, layers: layers_of(nemotron_kinds(fields), "moe"),
        plain_layers=True,
        shared=counted_shared,
        matrices=2,
        norms=1,
        latent=("moe_latent_size",),
    ),
}
"""By ``model_type`` of the language model's configuration."""

ARCHITECTURES: dict[str, str] = {
    "DeepseekV4ForCausalLM": "deepseek_v4",
    "MiniMaxM3SparseForCausalLM": "minimax_m3",
    "MiniMaxM3SparseForConditionalGeneration": "minimax_m3",
    "Grok1ForCausalLM": "grok-1",
    "Grok1ModelForCausalLM": "grok-1",
    "PanguProMoEForCausalLM": "PanguProMoE",
    "DbrxForCausalLM": "dbrx",
}
"""By implementation, where ``model_type`` is missing or private."""
