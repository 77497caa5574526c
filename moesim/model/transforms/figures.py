"""What papers print about a design, computed from documents before and after it."""

from __future__ import annotations

from collections.abc import Sequence

from moesim.errors import InfeasibleError
from moesim.model.spec import ModelSpec
from moesim.model.transforms.copies import needed_mean
from moesim.model.transforms.registry import transform_model
from moesim.model.transforms.storage import mobe_ratio

__all__ = [
    "active_change",
    "cache_bytes",
    "cache_tokens",
    "expert_bytes",
    "expert_bytes_change",
    "flops_change",
    "mobe_ratio",
    "parameter_change",
    "token_flops",
    "true_experts",
    "weight_bytes",
]


def parameter_change(model: ModelSpec, transforms: Sequence[str]) -> float:
    """All parameters after over before, less one."""
    return transform_model(model, transforms).total_parameters / model.total_parameters - 1


def active_change(model: ModelSpec, transforms: Sequence[str]) -> float:
    """Active parameters after over before, less one."""
    return transform_model(model, transforms).active_parameters / model.active_parameters - 1


def expert_bytes(model: ModelSpec) -> float:
    """Bytes of all routed experts, as stored."""
    return model.parameters.routed_experts * model.expert_bits / 8


def expert_bytes_change(model: ModelSpec, transforms: Sequence[str]) -> float:
    """Bytes of routed experts after over before, less one."""
    return expert_bytes(transform_model(model, transforms)) / expert_bytes(model) - 1


def weight_bytes(model: ModelSpec, bits: float = 16.0) -> float:
    """Bytes of all weights; ``bits`` of those whose width the document does not state."""
    count, stated = model.parameters, model.variant.bits
    own = model.quantisation.method != "none" or stated.experts is not None
    total = count.routed_experts * (model.expert_bits if own else bits)
    total += count.shared_experts * (stated.shared or bits)
    total += count.mixers * (stated.mixers or bits)
    total += count.dense_mlp * (stated.dense or bits)
    total += (count.embedding + count.output_head + count.router + count.other) * bits
    return total / 8


def cache_bytes(model: ModelSpec, tokens: int, element_bytes: float = 2.0) -> float:
    """Keys, values and states of one sequence, all layers.

    Args:
        model: Sizes.
        tokens: Of the sequence.
        element_bytes: Of keys and values, and of states.
    """
    total = 0.0
    for mixer in model.mixers:
        kept = tokens
        if mixer.kind == "gqa" and mixer.window_tokens is not None:
            kept = min(tokens, mixer.window_tokens)
        one = kept * mixer.cache_elements_per_token + mixer.state_elements
        total += len(mixer.layers) * one
    return total * model.variant.token_share * element_bytes


def cache_tokens(model: ModelSpec, memory_bytes: float, weights_bytes: float) -> float:
    """Cached tokens that a device's usable memory holds beside its weights.

    Raises:
        InfeasibleError: If the weights leave nothing.
    """
    left = memory_bytes - weights_bytes
    if left < 0:
        raise InfeasibleError(
            f"{weights_bytes:.4g} bytes of weights do not fit into {memory_bytes:.4g}\n"
            "fix: use more memory or fewer adapters"
        )
    per_token = model.kv_cache_elements_per_token * model.variant.token_share * 2
    return left / per_token


def token_flops(model: ModelSpec) -> float:
    """FLOPs of a token's products with weights, its attention to others left out.

    Embedding look-ups cost none; the output head counts. Layers that share weights count each.
    """
    count, variant = model.parameters, model.variant
    hidden = variant.hidden_share
    reuse = variant.layer_reuse
    passes = variant.token_share
    moe = len(model.moe_layers) * variant.rounds
    experts = model.copies_per_token * model.expert_matrix_parameters * hidden
    extra = sum(
        product.columns
        * product.depth
        * {"token": 1.0, "copy": model.copies_per_token, "expert": 0.0}[product.per]
        for product in variant.products
    )
    router = model.hidden_size * model.router_outputs
    by_head = sum(
        len(mixer.layers)
        * model.hidden_size
        * mixer.heads
        * (mixer.head_dim + mixer.value_head_dim)
        for mixer in model.mixers
        if mixer.kind == "gqa"
    ) * (1 - variant.head_share)
    layers = (count.mixers + count.dense_mlp + count.shared_experts) * reuse - by_head
    latent = 2 * model.hidden_size * (model.expert_hidden_size or 0) * len(model.moe_layers)
    inside = layers * hidden + moe * (experts + extra + router) + latent
    return 2.0 * (passes * inside + model.vocabulary_size * model.hidden_size)


def flops_change(model: ModelSpec, transforms: Sequence[str]) -> float:
    """:func:`token_flops` after over before, less one."""
    return token_flops(transform_model(model, transforms)) / token_flops(model) - 1


def true_experts(model: ModelSpec, saved: float) -> float:
    """True experts per token that leave out a share of a model's FLOPs (null experts)."""
    per_expert = 2.0 * len(model.moe_layers) * model.expert_matrix_parameters
    return needed_mean(saved, token_flops(model), per_expert, model.top_k)
