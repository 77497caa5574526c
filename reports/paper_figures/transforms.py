"""Counts that papers print of their designs, from model documents before and after."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from moesim.cache.replay import hit_curve
from moesim.cache.setting import CacheSetting
from moesim.forward.expert_load import draw_layer_tokens, parse_distribution
from moesim.model import load_model
from moesim.model.transforms import figures, transform_model
from moesim.reports.paper import Paper
from moesim.reports.prediction import Prediction
from moesim.schema import Evidence
from moesim.traces.bundle import Trace, TraceManifest, routing_dtype

__all__ = ["predict"]

GIB = 2**30
LONG = 256 * 1024
"""Tokens of Jamba's tables."""
WEAVE_BYTES = 52.8 * GIB
GPUS_BYTES = 8 * 80e9
FP8_BITS = 8.0
MODELS, RECRUITED, REQUESTS = 16, 3, 500
"""Symbolic-MoE's pool, the models that a request recruits, and a batch of requests (assumed)."""


def predict(paper: Paper) -> Mapping[str, Prediction]:
    """Every count of the file."""
    del paper
    found = _compressed() | _caches() | _weave() | _pruned() | _recut()
    mixtral = load_model("mixtral-8x7b")
    found["adamoe-flops"] = -figures.flops_change(mixtral, ["null-experts:8,mean=1.672"])
    dense = load_model("llama-3.1-8b", dense=True)
    carved = transform_model(dense, ["carve:8,2,4"]).parameters
    kept = carved.shared_experts + carved.routed_experts_active
    found["cmoe-flops"] = kept / dense.parameters.dense_mlp
    pangu = transform_model(load_model("pangu-pro-moe"), ["groups:8"])
    drawn = draw_layer_tokens(pangu, parse_distribution("zipf:1.2"), 64, 8, 0).sum(axis=-1)
    found["moge-balance"] = float(drawn.max() / drawn.mean())
    found["grouped-loads"] = _grouped_loads()
    return {name: Prediction(value, evidence=Evidence.SPEC) for name, value in found.items()}


def _grouped_loads() -> float:
    """Models that a GPU with room for one loads for a batch of requests grouped by model.

    Models are experts of one layer, and requests are tokens that choose some of them. A batch of
    all requests asks for every model once, whoever wants it.
    """
    rng = np.random.default_rng(0)
    likely = np.log(1 / np.arange(1, MODELS + 1)) + rng.gumbel(size=(REQUESTS, MODELS))
    chosen = np.argsort(-likely, axis=1)[None, :, :RECRUITED].astype(routing_dtype(MODELS))
    manifest = TraceManifest(
        model="models", layers=1, moe_layers=(0,), experts=MODELS, top_k=RECRUITED,
        tokens=REQUESTS, dtype=chosen.dtype.name,
    )  # fmt: skip
    setting = CacheSetting(batch=REQUESTS, sample_tokens=1)
    curve = hit_curve(Trace(manifest, chosen), "lru", [1], setting)
    return float(curve.accesses.sum() - curve.hits.sum())


def _compressed() -> dict[str, float]:
    kept = {
        "mobe-qwen3-235b": ("qwen3-235b-a22b", 32),
        "mobe-qwen3-30b": ("qwen3-30b-a3b", 32),
        "mobe-deepseek-v3": ("deepseek-v3", 64),
        "mobe-kimi-k2": ("kimi-k2", 128),
    }
    found = {
        name: 1 + figures.parameter_change(load_model(model), [f"mobe:{bases}"])
        for name, (model, bases) in kept.items()
    }
    for name, model, full in (("olmoe", "olmoe-1b-7b", 4), ("phi", "phi-3.5-moe", 1)):
        change = figures.active_change(load_model(model), [f"compressed-experts:{full}"])
        found[f"compressed-{name}"] = -change
    return found


def _pruned() -> dict[str, float]:
    r1 = load_model("deepseek-r1")
    kept = transform_model(r1, ["prune:192"])
    found = {
        "r1-experts": float(r1.experts * len(r1.moe_layers)),
        "easy-ep-192-fits": figures.weight_bytes(kept, FP8_BITS) / GPUS_BYTES,
        "easy-ep-256-does-not": figures.weight_bytes(r1, FP8_BITS) / GPUS_BYTES,
    }
    return found | {
        f"premoe-r1-{left}": float(transform_model(r1, [f"prune:{left}"]).total_parameters)
        for left in (128, 64, 32)
    }


def _recut() -> dict[str, float]:
    """Experts cut, chained, shared and merged, of Mixtral-8x7B."""
    mixtral = load_model("mixtral-8x7b")
    fine, chain, cartesian = ["fine-grained:4"], ["chain-of-experts:2"], ["cartesian"]
    pooled = transform_model(mixtral, ["cross-layer:2"]).parameters.routed_experts
    narrow = transform_model(mixtral, ["weights:experts=4,mixers=4,group=128"])
    return {
        "fine-grained-parameters": 1 + figures.parameter_change(mixtral, fine),
        "fine-grained-flops": 1 + figures.flops_change(mixtral, fine),
        "chain-parameters": 1 + figures.parameter_change(mixtral, chain),
        "cross-layer-experts": pooled / mixtral.parameters.routed_experts,
        "cartesian-parameters": 1 + figures.parameter_change(mixtral, cartesian),
        "sub-moe-quarter": float(transform_model(mixtral, ["merge:0.25"]).experts),
        "sub-moe-half": float(transform_model(mixtral, ["merge:0.5"]).experts),
        "int4-memory": figures.weight_bytes(mixtral) / figures.weight_bytes(narrow),
    }


def _caches() -> dict[str, float]:
    mixtral, large = load_model("mixtral-8x7b"), load_model("jamba-1.5-large")
    cache = figures.cache_bytes(large, LONG)
    narrow = transform_model(large, ["weights:experts=8,dense=8"])
    return {
        "mixtral-cache": figures.cache_bytes(mixtral, LONG),
        "jamba-cache": figures.cache_bytes(transform_model(mixtral, ["hybrid:8"]), LONG),
        "jamba-large-cache": cache,
        "jamba-large-parameters": float(large.total_parameters),
        "jamba-large-active": float(large.active_parameters),
        "jamba-int8-fits": (figures.weight_bytes(narrow) + cache) / GPUS_BYTES,
        "jamba-bf16-does-not": (figures.weight_bytes(large) + cache) / GPUS_BYTES,
    }


def _weave() -> dict[str, float]:
    model = load_model("deepseek-v2-lite")
    weights_gib = {"weave-base": 29.3, "weave-two": 36.2, "weave-three": 38.7}
    found = {
        name: figures.cache_tokens(model, WEAVE_BYTES, gib * GIB)
        for name, gib in weights_gib.items()
    }
    return found | {"weave-weights": figures.weight_bytes(model)}
