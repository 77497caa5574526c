"""Transforms of layers and mixers."""

from __future__ import annotations

from math import ceil

from moesim.model.mixers import GroupedQueryAttention
from moesim.model.spec import ModelSpec
from moesim.model.transforms.parameters import (
    Parameter,
    Transform,
    Values,
    change,
    change_variant,
    need,
)

__all__ = ["STRUCTURE"]


def _heads(model: ModelSpec, values: Values) -> ModelSpec:
    other = sorted({mixer.kind for mixer in model.mixers if mixer.kind != "gqa"})
    need(not other, "grouped-query attention in every layer is needed", found=", ".join(other))
    return change_variant(model, head_share=values["share"])


def _hybrid(model: ModelSpec, values: Values) -> ModelSpec:
    every = values["every"]
    groups = [mixer for mixer in model.mixers if isinstance(mixer, GroupedQueryAttention)]
    need(
        len(groups) == len(model.mixers),
        "attention in grouped-query form in every layer is needed",
        found=", ".join(mixer.kind for mixer in model.mixers),
    )
    need(
        every <= model.layers,
        "no layer would keep its attention",
        found=every,
        allowed=f"2 … {model.layers}",
    )
    kept = set(range(every // 2, model.layers, every))
    mixers = []
    for mixer in groups:
        attention = [layer for layer in mixer.layers if layer in kept]
        if attention:
            mixers.append(mixer.model_dump(mode="json") | {"layers": attention})
    replaced = [layer for mixer in groups for layer in mixer.layers if layer not in kept]
    recurrence = _mamba if values["kind"] == "mamba" else _linear
    mixers.append(recurrence(model, groups[0]) | {"layers": sorted(replaced)})
    return change(model, mixers=mixers)


def _mamba(model: ModelSpec, _: GroupedQueryAttention) -> dict[str, object]:
    """Mamba's usual sizes: twice the hidden size, states of 16, convolution of 4, rank h/16."""
    hidden = model.hidden_size
    inner, state, kernel, rank = 2 * hidden, 16, 4, ceil(hidden / 16)
    projections = hidden * 2 * inner + inner * (rank + 2 * state) + rank * inner + inner * hidden
    return {
        "kind": "mamba",
        "matrix_parameters": projections + inner * kernel,
        "extra_parameters": inner * (state + 3),
        "state_elements": inner * (state + kernel),
    }


def _linear(model: ModelSpec, attention: GroupedQueryAttention) -> dict[str, object]:
    """Lightning attention: query, key, value, gate and output; a state of d² per head."""
    width = attention.heads * attention.head_dim
    return {
        "kind": "gated-delta-net",
        "matrix_parameters": 5 * model.hidden_size * width,
        "state_elements": width * attention.head_dim,
    }


def _recursion(model: ModelSpec, values: Values) -> ModelSpec:
    reuse, depth = values["reuse"], values["depth"] or values["reuse"]
    need(depth <= reuse, "deeper than the recursion", found=depth, allowed=f"1 … {reuse}")
    recursive = change_variant(model, layer_reuse=reuse)
    return recursive if depth == reuse else change_variant(recursive, token_share=depth / reuse)


def _skip(model: ModelSpec, values: Values) -> ModelSpec:
    share = model.variant.token_share * (1 - values["share"])
    return change_variant(model, keep=True, token_share=share)


def _hidden(model: ModelSpec, values: Values) -> ModelSpec:
    return change_variant(model, hidden_share=values["share"])


def _carve(model: ModelSpec, values: Values) -> ModelSpec:
    slices, shared, top_k = values["slices"], values["shared"], values["top_k"]
    need(
        not model.moe_layers and bool(model.dense_layers),
        "a dense model is needed",
        found=f"{len(model.moe_layers)} MoE layers",
    )
    need(
        model.dense_width % slices == 0,
        "the dense width does not divide into the slices",
        found=slices,
        allowed=f"a divisor of {model.dense_width}",
    )
    need(
        shared + max(top_k, 2) <= slices,
        "more shared and chosen slices than there are",
        found=f"{shared} shared, {top_k} chosen",
        allowed=f"at most {slices} together",
    )
    width = model.dense_width // slices
    return change(
        model,
        moe_layers=list(model.dense_layers),
        dense_layers=[],
        dense_width=0,
        experts=slices - shared,
        top_k=top_k,
        expert_width=width,
        shared_experts=shared,
        shared_expert_width=shared * width,
    )


STRUCTURE = (
    Transform(
        "attention-experts",
        "a token uses a share of the query heads; keys and values are kept for all",
        "MoH, arXiv 2410.11842",
        (Parameter("share", float, 0.01, 1.0),),
        _heads,
    ),
    Transform(
        "hybrid",
        "attention in every n-th layer alone, a recurrence with a fixed state in the others",
        "Jamba, arXiv 2403.19887; MiniMax-M1, arXiv 2506.13585",
        (
            Parameter("every", least=2, most=4096),
            Parameter("kind", str, default="mamba", choices=("mamba", "linear")),
        ),
        _hybrid,
    ),
    Transform(
        "recursion",
        "one stack of layers passed several times; tokens leave at a mean depth",
        "Mixture-of-Recursions, arXiv 2507.10524; MoEUT, arXiv 2405.16039",
        (Parameter("reuse", least=2, most=4096), Parameter("depth", float, 1, 4096, optional=True)),
        _recursion,
    ),
    Transform(
        "skip",
        "a share of the tokens skips each layer, and its cache",
        "gamma-MoD, arXiv 2410.13859",
        (Parameter("share", float, 0.0, 0.99),),
        _skip,
    ),
    Transform(
        "hidden-routing",
        "a token uses a share of the hidden size",
        "Mixture of Hidden-Dimensions, arXiv 2412.05644",
        (Parameter("share", float, 0.01, 1.0),),
        _hidden,
    ),
    Transform(
        "carve",
        "cut a dense model's layers into slices: some shared, top_k of the others chosen",
        "CMoE, arXiv 2502.04416",
        (Parameter("slices", least=3), Parameter("shared", least=0), Parameter("top_k")),
        _carve,
    ),
)
