"""Transforms of how many experts are stored, and in what form."""

from __future__ import annotations

from moesim.model.spec import ModelSpec
from moesim.model.transforms.parameters import (
    Parameter,
    Transform,
    Values,
    change,
    change_variant,
    need,
)

__all__ = ["STORAGE", "mobe_ratio"]

SCALE_BITS = 16
"""Of one scale per group of weights, where a group is stated."""


def _latent(model: ModelSpec, values: Values) -> ModelSpec:
    size = values["size"]
    need(
        model.expert_hidden_size is None,
        "the experts work in a latent already",
        found=model.expert_hidden_size,
    )
    need(
        model.variant.expert_parameters is None,
        "the form of the experts is decided already",
        found=", ".join(model.variant.applied),
        fix="give latent first",
    )
    need(
        size < model.hidden_size,
        "no latent",
        found=size,
        allowed=f"1 … {model.hidden_size - 1}",
    )
    return change(model, expert_hidden_size=size)


def _mobe(model: ModelSpec, values: Values) -> ModelSpec:
    """Gate and up of expert i are A_i · act(sum of bases); rank equals the expert width."""
    bases, hidden, width = values["bases"], model.expert_input_size, model.expert_width
    need(model.expert_matrices == 3, "gated experts are needed", found=model.expert_matrices)
    down = hidden * width + model.expert_extra_parameters
    mixing = 2 * width * width
    changed = model if values["top_k"] is None else change(model, top_k=values["top_k"])
    copy = {"per": "copy", "columns": width, "depth": width}
    basis = {"per": "expert", "columns": width * hidden, "depth": bases}
    return change_variant(
        changed,
        # The weights alpha are bases per expert and matrix.
        expert_parameters=down + mixing + 2 * bases,
        expert_active_parameters=down + mixing + 2 * width * hidden,
        layer_expert_parameters=2 * bases * width * hidden,
        products=[
            {"name": "gate_basis", **basis},
            {"name": "up_basis", **basis},
            {"name": "gate_transform", **copy},
            {"name": "up_transform", **copy},
        ],
    )


def mobe_ratio(model: ModelSpec, bases: int) -> float:
    """Parameters of a layer's routed experts in MoBE's form over those as they were."""
    after = _mobe(model, {"bases": bases, "top_k": None})
    return after.parameters.routed_experts / model.parameters.routed_experts


def _bits(model: ModelSpec, **bits: float | None) -> ModelSpec:
    known = model.variant.bits.model_dump()
    stated = {name: value for name, value in bits.items() if value is not None}
    return change_variant(model, keep=True, bits=known | stated)


def _ternary(model: ModelSpec, values: Values) -> ModelSpec:
    return _bits(model, experts=values["bits"], shared=16.0 if model.shared_experts else None)


def _weights(model: ModelSpec, values: Values) -> ModelSpec:
    scales = SCALE_BITS / values["group"] if values["group"] else 0.0
    # Sixteen bits and more need no scales.
    found = {
        name: values[name] + (scales if values[name] < 16 else 0.0)
        for name in ("experts", "shared", "mixers", "dense")
        if values[name] is not None
    }
    need(bool(found), "no component named", found="nothing", fix="e.g. weights:experts=4,group=128")
    return _bits(model, **found)


def _pruned(model: ModelSpec, experts: int, top_k: int | None) -> ModelSpec:
    need(
        experts <= model.experts,
        "more experts than there are",
        found=experts,
        allowed=f"{top_k or model.top_k} … {model.experts}",
    )
    return change(model, experts=experts, top_k=top_k or model.top_k)


def _prune(model: ModelSpec, values: Values) -> ModelSpec:
    _own_experts(model)
    return _pruned(model, values["experts"], values["top_k"])


def _own_experts(model: ModelSpec) -> None:
    need(
        model.variant.router_outputs is None,
        "the router's candidates are decided already",
        found=", ".join(model.variant.applied),
        fix="take away experts before transforms that add candidates",
    )


def _merge(model: ModelSpec, values: Values) -> ModelSpec:
    _own_experts(model)
    experts = round(model.experts * (1 - values["share"]))
    # The router scores the experts of before; a table maps them to merged ones.
    return change_variant(_pruned(model, experts, None), router_outputs=model.experts)


def _adapters(model: ModelSpec, values: Values) -> ModelSpec:
    added = values["adapters"] * values["experts"]
    return change_variant(model, adapter_experts=added)


def _masked(model: ModelSpec, values: Values) -> ModelSpec:
    need(model.expert_matrices == 3, "gated experts are needed", found=model.expert_matrices)
    one = model.expert_input_size * model.expert_width
    stored = 2 * one + model.expert_extra_parameters
    masked = change_variant(model, expert_parameters=stored)
    # A bit per mask and weight of the one matrix that is gate and value.
    bits = model.expert_bits + values["masks"] * one / stored
    return _bits(masked, experts=bits)


STORAGE = (
    Transform(
        "latent",
        "experts work in a latent that one shared matrix projects into",
        "MoLE, arXiv 2503.23100",
        (Parameter("size", most=2**24),),
        _latent,
    ),
    Transform(
        "mobe",
        "gate and up matrices as mixtures of bases that a layer's experts share",
        "MoBE, arXiv 2508.05257",
        (Parameter("bases"), Parameter("top_k", optional=True)),
        _mobe,
    ),
    Transform(
        "ternary",
        "routed experts of -1, 0 and 1; shared experts at 16 bits; arithmetic unchanged",
        "MoTE, arXiv 2506.14435",
        (Parameter("bits", float, 1.0, 8.0, default=2.0),),
        _ternary,
    ),
    Transform(
        "weights",
        "bits per weight by part; of mixers and dense layers in memory alone (cf. --gemm-dtype)",
        "QuantMoE-Bench, arXiv 2406.08155; MoEQuant, arXiv 2505.03804",
        (
            *(
                Parameter(name, float, 1.0, 64.0, optional=True)
                for name in ("experts", "shared", "mixers", "dense")
            ),
            Parameter("group", least=8, most=65536, optional=True),
        ),
        _weights,
    ),
    Transform(
        "prune",
        "keep so many experts per layer",
        "PreMoe, arXiv 2505.17639; EASY-EP, arXiv 2504.06792",
        (Parameter("experts", least=2), Parameter("top_k", optional=True)),
        _prune,
    ),
    Transform(
        "merge",
        "merge experts, a share of them less; the router scores those of before",
        "Sub-MoE, arXiv 2506.23266",
        (Parameter("share", float, 0.0, 0.99),),
        _merge,
    ),
    Transform(
        "adapters",
        "experts of so many adapters beside the model's own, mean per layer and adapter",
        "ExpertWeave, arXiv 2508.17624",
        (Parameter("adapters"), Parameter("experts", float, 0.0, 65535.0)),
        _adapters,
    ),
    Transform(
        "masked-glu",
        "gate and up share one matrix; masks of one bit per weight tell them apart",
        "Masked Gated Linear Unit, arXiv 2506.23225",
        (Parameter("masks", most=16, default=1),),
        _masked,
    ),
)
