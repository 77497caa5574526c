"""Where a Hugging Face model routes, and how the choice is read from each kind of router.

What counts is what the module itself returned: group-limited and biased routing, jitter and the
rest are in it. Nothing is recomputed, and a router that is not in the table is an error that names
it. The table was made from transformers 5.23.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from moesim.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["STANDARD_ROUTERS", "Choice", "Router", "find_routers"]

# Their forward returns (router logits [N, E], weights [N, K], indices [N, K]).
STANDARD_ROUTERS = frozenset(
    {
        "AfmoeTokenChoiceRouter",
        "AriaTextTopKRouter",
        "Cohere2MoeTopKRouter",
        "DeepseekV2TopkRouter",
        "DeepseekV32TopkRouter",
        "DeepseekV3TopkRouter",
        "DeepseekV4HashRouter",
        "DeepseekV4TopKRouter",
        "Dots1TopkRouter",
        "Ernie4_5_MoeTopKRouter",
        "ExaoneMoeTopkRouter",
        "FlexOlmoTopKRouter",
        "Gemma4TextRouter",
        "Glm4MoeLiteTopkRouter",
        "Glm4MoeTopkRouter",
        "Glm4vMoeTextTopkRouter",
        "GlmMoeDsaTopkRouter",
        "GptOssTopKRouter",
        "GraniteMoeHybridTopKRouter",
        "GraniteMoeSWATopKRouter",
        "GraniteMoeSharedTopKRouter",
        "GraniteMoeTopKRouter",
        "HunYuanMoEV1Gate",
        "JambaTopKRouter",
        "KimiLinearTopkRouter",
        "Lfm2MoeTopKRouter",
        "MiMoV2FlashTopkRouter",
        "MiniMaxM2TopKRouter",
        "MiniMaxTopKRouter",
        "Mistral4TopkRouter",
        "MixtralTopKRouter",
        "NemotronHTopkRouter",
        "OlmoeTopKRouter",
        "PhimoeTopKRouter",
        "Qwen2MoeTopKRouter",
        "Qwen3MoeTopKRouter",
        "Qwen3NextTopKRouter",
        "Qwen3VLMoeTextTopKRouter",
        "Qwen3_5MoeTopKRouter",
        "SolarOpenTopkRouter",
    }
)

_ROUTER_CLASS = re.compile(r"(Router|Gating)$")
_ROUTER_CHILDREN = ("gate", "router")


@dataclass(frozen=True)
class Choice:
    """What one router chose in one forward pass, on the model's device.

    Attributes:
        experts: E.
        indices: [N, K] integers.
        weights: [N, K] floats, router weights as the experts' outputs are scaled with.
    """

    experts: int
    indices: torch.Tensor
    weights: torch.Tensor


@dataclass(frozen=True)
class Router:
    """A router of a model.

    Attributes:
        name: Dotted name of the module.
        layer: Model layer index.
        module: The module to hook.
        read: Takes what the module returned.
    """

    name: str
    layer: int
    module: nn.Module
    read: Callable[[nn.Module, object], Choice | None]


def find_routers(model: nn.Module) -> list[Router]:
    """Every router of a model, in the order of its layers.

    Raises:
        InputError: If there is none, if one is of an unknown class, or if two are in one layer.
    """
    routers = [
        Router(name, _layer(name), module, read)
        for name, module in model.named_modules()
        if (read := _reader(module)) is not None
    ]
    known = {id(router.module) for router in routers}
    for name, module in model.named_modules():
        _refuse_unknown(name, module, known)
    if not routers:
        raise InputError(
            "the model has no MoE layer",
            field="model",
            found=type(model).__name__,
            fix="choose a model of experts",
        )
    routers.sort(key=lambda router: router.layer)
    for first, second in pairwise(routers):
        if first.layer == second.layer:
            raise InputError(
                f"two routers in layer {first.layer}: encoder-decoder models and models of several "
                "towers cannot be recorded",
                field="model",
                found=f"{first.name} and {second.name}",
                fix="record one tower of it",
            )
    return routers


def _reader(module: nn.Module) -> Callable[[nn.Module, object], Choice | None] | None:
    kind = type(module).__name__
    if kind in STANDARD_ROUTERS:
        return _read_standard
    return _read_llama4 if kind == "Llama4Router" else None


def _refuse_unknown(name: str, module: nn.Module, known: set[int]) -> None:
    kind = type(module).__name__
    suspects = [(name, module)] if _ROUTER_CLASS.search(kind) else []
    children = dict(module.named_children())
    if "experts" in children:
        # An MoE layer: its router is one of its children, under one of two usual names.
        found = [(f"{name}.{key}", children[key]) for key in _ROUTER_CHILDREN if key in children]
        if not found and not any(id(child) in known for child in children.values()):
            found = [(name, module)]
        suspects += found
    for path, suspect in suspects:
        if id(suspect) not in known:
            raise InputError(
                f"the router {path} is of a class that cannot be recorded",
                field=path,
                found=type(suspect).__name__,
                allowed="the routers listed in moesim/traces/router_outputs.py",
            )


def _layer(name: str) -> int:
    """Layer index in ``model.layers.3.mlp.gate``: the first number in the name."""
    for part in name.split("."):
        if part.isdecimal():
            return int(part)
    raise InputError("no layer index in the name of the router", field=name)


def _read_standard(module: nn.Module, output: object) -> Choice | None:
    if not isinstance(output, tuple) or len(output) != 3:
        return None
    logits, weights, indices = output
    if not _is_choice(logits, weights, indices):
        return None
    return Choice(logits.shape[-1], indices, weights)


def _read_llama4(module: nn.Module, output: object) -> Choice | None:
    """Scores are the sigmoid of the chosen logits and 0 for all others."""
    if not isinstance(output, tuple) or len(output) != 2:
        return None
    top_k = getattr(module, "top_k", 0)
    scores = output[0]
    if not top_k or scores.ndim != 2 or not bool(((scores > 0).sum(dim=-1) == top_k).all()):
        return None
    weights, indices = scores.topk(top_k, dim=-1)
    return Choice(scores.shape[-1], indices, weights)


def _is_choice(logits: torch.Tensor, weights: torch.Tensor, indices: torch.Tensor) -> bool:
    return (
        logits.ndim == 2
        and indices.ndim == 2
        and weights.shape == indices.shape
        and len(indices) == len(logits)
        and not indices.is_floating_point()
        and weights.is_floating_point()
    )
