"""What a variant of a model changes in the work of a layer."""

from __future__ import annotations

from moesim.model import ModelSpec
from moesim.operators.moe_kernels import WEIGHT_BYTES

__all__ = ["expert_weight_bytes", "layer_model", "stored_expert_bytes"]


def layer_model(model: ModelSpec) -> ModelSpec:
    """The model with the query heads and hidden elements that one token uses in a layer.

    Weights that some tokens use and others do not count for the tokens that use them, so bytes
    are the least that any batch reads.
    """
    heads, hidden = model.variant.head_share, model.variant.hidden_share
    if heads == 1 and hidden == 1:
        return model
    mixers = tuple(
        mixer.model_copy(update={"heads": max(1, round(mixer.heads * heads))})
        if mixer.kind == "gqa"
        else mixer
        for mixer in model.mixers
    )
    update = {"mixers": mixers, "hidden_size": max(1, round(model.hidden_size * hidden))}
    return model.model_copy(update=update)


def expert_weight_bytes(model: ModelSpec, dtype: str) -> float:
    """Bytes read per weight that an expert multiplies with, in a kernel's format.

    Args:
        model: Sizes, and the form in which it stores experts.
        dtype: Of the kernel.
    """
    variant = model.variant
    width = _width(model, dtype)
    if variant.expert_parameters is None:
        return width
    # Products beside the experts read their own weights.
    beside = sum(p.columns * p.depth for p in variant.products if p.per == "copy")
    return width * (model.expert_active_parameters - beside) / model.expert_matrix_parameters


def stored_expert_bytes(model: ModelSpec, slots: float, ranks: int, dtype: str) -> float:
    """Bytes of the routed experts of one MoE layer that one of R ranks holds.

    Args:
        model: Sizes, and the form in which it stores experts.
        slots: Expert slots of the rank in one pool.
        ranks: R; what experts share is on each, those of adapters are spread evenly.
        dtype: Of the kernel, unless the variant states the bits.
    """
    variant = model.variant
    held = variant.pools * slots + variant.adapter_experts / ranks
    weights = held * model.expert_parameters + variant.layer_expert_parameters
    return _width(model, dtype) * weights


def _width(model: ModelSpec, dtype: str) -> float:
    bits = model.variant.bits.experts
    return WEIGHT_BYTES[dtype] if bits is None else bits / 8
