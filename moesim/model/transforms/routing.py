"""Transforms of which experts a token goes to, and how often."""

from __future__ import annotations

from math import ceil

from moesim.model.spec import ModelSpec
from moesim.model.transforms.copies import copies_with_mean, copies_with_null_experts
from moesim.model.transforms.parameters import (
    Parameter,
    Transform,
    Values,
    change,
    change_variant,
    need,
)

__all__ = ["ROUTING"]


def _plain_experts(model: ModelSpec) -> None:
    """Sizes of experts and choices are cut first; what rests on them comes after."""
    rest = model.variant
    settled = rest.expert_parameters is not None or bool(rest.copies) or rest.router_outputs
    need(
        not settled,
        "the size and number of experts must be changed before what rests on them",
        found=", ".join(rest.applied) or "a variant of the model itself",
        fix="give this transform first",
    )


def _fine_grained(model: ModelSpec, values: Values) -> ModelSpec:
    _plain_experts(model)
    parts, shared = values["parts"], values["shared"]
    need(
        model.expert_width % parts == 0 and model.expert_extra_parameters % parts == 0,
        "the expert width does not divide into the parts",
        found=f"width {model.expert_width} in {parts} parts",
        allowed=f"a divisor of {model.expert_width}",
    )
    width = model.expert_width // parts
    need(
        shared < parts * model.top_k,
        "all choices would be shared experts",
        found=shared,
        allowed=f"0 … {parts * model.top_k - 1}",
    )
    need(
        shared == 0 or model.expert_hidden_size is None,
        "experts that work in a latent cannot become shared experts",
        found=shared,
        allowed="0",
    )
    return change(
        model,
        experts=parts * model.experts - shared,
        top_k=parts * model.top_k - shared,
        expert_width=width,
        expert_extra_parameters=model.expert_extra_parameters // parts,
        shared_experts=model.shared_experts + shared,
        shared_expert_width=model.shared_expert_width + shared * width,
        **({"routing_groups": 1, "groups_per_token": 1} if shared else {}),
    )


def _coarse_grained(model: ModelSpec, values: Values) -> ModelSpec:
    _plain_experts(model)
    parts = values["parts"]
    need(
        model.experts % parts == 0 and model.top_k % parts == 0,
        "experts and top-k do not divide into groups of so many parts",
        found=f"{model.experts} experts, top-{model.top_k}, {parts} parts",
    )
    return change(
        model,
        experts=model.experts // parts,
        top_k=model.top_k // parts,
        expert_width=model.expert_width * parts,
        expert_extra_parameters=model.expert_extra_parameters * parts,
    )


def _shared(model: ModelSpec, values: Values) -> ModelSpec:
    count, width = values["experts"], values["width"] or model.expert_width
    return change(
        model,
        shared_experts=model.shared_experts + count,
        shared_expert_width=model.shared_expert_width + count * width,
    )


def _null(model: ModelSpec, values: Values) -> ModelSpec:
    null, top_k = values["experts"], values["top_k"] or model.top_k
    need(
        top_k <= model.experts,
        "a token cannot choose more experts than there are",
        found=top_k,
        allowed=f"1 … {model.experts}",
    )
    copies = copies_with_null_experts(model.experts, null, top_k)
    if values["mean"] is not None:
        copies = copies_with_mean(values["mean"], 0, top_k)
    changed = change(model, top_k=top_k)
    return change_variant(changed, copies=copies, router_outputs=model.router_outputs + null)


def _top_p(model: ModelSpec, values: Values) -> ModelSpec:
    most = values["most"] or model.top_k
    copies = copies_with_mean(values["mean"], 1, most)
    return change_variant(change(model, top_k=most), copies=copies)


def _chain(model: ModelSpec, values: Values) -> ModelSpec:
    rounds = values["rounds"]
    top_k = values["top_k"] or ceil(model.top_k / rounds)
    return change_variant(
        change(model, top_k=top_k),
        rounds=rounds,
        # Every round has a router of its own over the same experts.
        routers=rounds * len(model.moe_layers),
    )


def _cross_layer(model: ModelSpec, values: Values) -> ModelSpec:
    layers = values["layers"]
    need(
        layers <= len(model.moe_layers),
        "more adjacent layers than MoE layers",
        found=layers,
        allowed=f"1 … {len(model.moe_layers)}",
    )
    return change_variant(model, router_outputs=layers * model.experts)


def _shared_router(model: ModelSpec, values: Values) -> ModelSpec:
    return change_variant(model, routers=1)


def _cartesian(model: ModelSpec, values: Values) -> ModelSpec:
    _plain_experts(model)
    need(
        model.expert_width % 2 == 0,
        "experts of odd width have no halves",
        found=model.expert_width,
        allowed="an even width",
    )
    experts = values["experts"] or model.experts
    fields = {"experts": experts, "expert_width": model.expert_width // 2}
    return change_variant(change(model, **fields), rounds=2, pools=2)


def _grouped(model: ModelSpec, values: Values) -> ModelSpec:
    groups = values["groups"]
    changed = change(model, routing_groups=groups, groups_per_token=groups)
    return change_variant(changed, equal_groups=True)


def _node_limited(model: ModelSpec, values: Values) -> ModelSpec:
    return change(model, routing_groups=values["groups"], groups_per_token=values["chosen"])


def _compressed(model: ModelSpec, values: Values) -> ModelSpec:
    kept = values["kept"]
    need(
        kept <= model.top_k,
        "more full experts than a token chooses",
        found=kept,
        allowed=f"1 … {model.top_k}",
    )
    copies = [0.0] * model.top_k + [1.0]
    copies[-1], copies[kept] = 0.0, 1.0
    return change_variant(model, copies=copies)


def _self_contrast(model: ModelSpec, values: Values) -> ModelSpec:
    weak = values["weak"]
    need(
        weak <= model.top_k,
        "the weak activation chooses more experts than the strong",
        found=weak,
        allowed=f"1 … {model.top_k}",
    )
    copies = [0.0] * (model.top_k + 1)
    copies[weak] += 0.5
    copies[model.top_k] += 0.5
    return change_variant(model, copies=copies, token_share=2.0)


TOP_K = Parameter("top_k", optional=True)

ROUTING = (
    Transform(
        "fine-grained",
        "cut every expert into parts, choose as many more; some parts become shared experts",
        "DeepSeekMoE, arXiv 2401.06066, section 3",
        (Parameter("parts", most=64), Parameter("shared", least=0, default=0)),
        _fine_grained,
    ),
    Transform(
        "coarse-grained",
        "join parts of experts again: the inverse of fine-grained without shared experts",
        "DeepSeekMoE, arXiv 2401.06066, section 3",
        (Parameter("parts", most=64),),
        _coarse_grained,
    ),
    Transform(
        "shared-experts",
        "add experts that every token uses, without router and dispatch",
        "DeepSeekMoE, arXiv 2401.06066, section 3",
        (Parameter("experts"), Parameter("width", most=2**24, optional=True)),
        _shared,
    ),
    Transform(
        "null-experts",
        "let tokens choose experts that do nothing: fewer copies; even unless mean is given",
        "AdaMoE, arXiv 2406.13233",
        (Parameter("experts"), TOP_K, Parameter("mean", float, 0, 65535, optional=True)),
        _null,
    ),
    Transform(
        "top-p",
        "as many experts as reach a probability: 1 to most per token, mean as stated",
        "Harder Tasks Need More Experts, arXiv 2403.07652",
        (Parameter("mean", float), Parameter("most", optional=True)),
        _top_p,
    ),
    Transform(
        "chain-of-experts",
        "route, dispatch and compute in rounds one after another, top_k experts in each",
        "Chain-of-Experts, arXiv 2506.18945",
        (Parameter("rounds", least=2, most=64), TOP_K),
        _chain,
    ),
    Transform(
        "cross-layer",
        "let a layer's router choose from the experts of adjacent layers",
        "ReXMoE (Tan et al., October 2025)",
        (Parameter("layers", least=2, most=4096),),
        _cross_layer,
    ),
    Transform(
        "shared-router", "one router matrix for all layers", "Omni-router, arXiv 2507.05724",
        (), _shared_router,
    ),
    Transform(
        "cartesian",
        "two pools of half-width experts in sequence: n + n stored, n x n combinations",
        "CartesianMoE, arXiv 2410.16077",
        (Parameter("experts", optional=True),),
        _cartesian,
    ),
    Transform(
        "groups",
        "equally many choices in every group of experts: equal load of all ranks",
        "Mixture of Grouped Experts (Pangu Pro), arXiv 2505.21411",
        (Parameter("groups"),),
        _grouped,
    ),
    Transform(
        "node-limit",
        "experts in groups, of which a token chooses some (sizes only: draws do not see it)",
        "DeepSeek-V3, arXiv 2412.19437, section 2.1.2",
        (Parameter("groups"), Parameter("chosen")),
        _node_limited,
    ),
    Transform(
        "compressed-experts",
        "of the chosen experts only some in full, the others as learned scales",
        "Compressed Experts, arXiv 2503.00634",
        (Parameter("kept"),),
        _compressed,
    ),
    Transform(
        "self-contrast",
        "every token passes twice, with strong (top-k) and weak choice of experts",
        "SCMoE, arXiv 2405.14507",
        (Parameter("weak", default=1),),
        _self_contrast,
    ),
)  # fmt: skip
