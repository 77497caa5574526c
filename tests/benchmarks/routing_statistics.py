"""Statistics of routing as the publications define them, by the product's own replays."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from moesim.cache.replay import HitCurve, hit_curve
from moesim.cache.setting import CacheSetting
from moesim.traces.balance import imbalance
from moesim.traces.bundle import Trace
from moesim.traces.generate import generate
from moesim.traces.locality import segment_counts, segment_routing
from moesim.traces.sequences import trace_sequences
from moesim.traces.synthetic_spec import GeneratorSpec

SAMPLE_TOKENS = 512  # of arXiv 2505.16056
ROUTER_SETTING = CacheSetting(
    cold="hit", reset="sequence", sample_tokens=SAMPLE_TOKENS, scope="pooled-token"
)
# moe-trace replays 3,225 decode positions of 25 prompts, with a new cache for each.
PROMPT_SETTING = CacheSetting(reset="sequence", sample_tokens=129)
# arXiv 2608.07911 records up to 384 decode steps of a request; 32 requests fill 16 places twice.
SERVED_TOKENS, SERVED_REQUESTS, SERVED_LAYERS = 384, 32, 6
BATCH = 8
RANKS = 32
POLICIES = {"oracle": "belady-bypass", "bypass": "belady-bypass"}


def segment(trace: Trace, window: int) -> tuple[float, float]:
    """SRP in per cent and the size ratio, over all experts of all layers."""
    sequences = trace_sequences(trace, SAMPLE_TOKENS)
    (counts,) = segment_counts(trace, [window], sequences=sequences)
    best = segment_routing(counts.sum(axis=(0, 1)))
    return 100 * float(best.srp), float(best.size_ratio)


def hit_rate(trace: Trace, policy: str, slots: int, setting: CacheSetting) -> float:
    return 100 * float(hit_curve(trace, policy, [slots], setting).hit_rate[0])


def served(spec: GeneratorSpec, seed: int, policy: str, slots: int, batch: int) -> HitCurve:
    """A batch of requests of one domain, decoding: what a system that serves one kind of text sees.

    On a few layers, since each has a cache of its own.
    """
    few = {"layers": min(spec.layers, SERVED_LAYERS), "moe_layers": ()}
    few |= {"request_tokens": SERVED_TOKENS, "length_spread": 0.0}
    few["tokens"] = SERVED_REQUESTS * spec.domains * SERVED_TOKENS
    with tempfile.TemporaryDirectory() as folder:
        trace = generate(spec.model_copy(update=few), Path(folder) / "trace", seed=seed).trace
        sequences = trace_sequences(trace)
        assert sequences.domain is not None
        one = sequences.select(sequences.domain == 0)
        return hit_curve(trace, policy, [slots], CacheSetting(batch=batch), sequences=one)


def independent_loads(spec: GeneratorSpec, seed: int) -> np.ndarray:
    """[L, D, E] loads of requests of one token: as many topics as tokens, as in a large corpus."""
    single = spec.model_copy(update={"request_tokens": 1, "length_spread": 0.0})
    with tempfile.TemporaryDirectory() as folder:
        routing = np.asarray(generate(single, Path(folder) / "trace", seed=seed).trace.routing)
        domain = np.arange(spec.tokens) % spec.domains
        cells = domain[:, None] * spec.experts + routing.astype(np.int64)
    bins = spec.domains * spec.experts
    loads = np.stack([np.bincount(layer.ravel(), minlength=bins) for layer in cells])
    return loads.reshape(spec.layers, spec.domains, spec.experts)


def ranks(loads: np.ndarray, measured: Callable[[np.ndarray], np.ndarray]) -> float:
    """Mean over layers and domains of a measure of the loads [L, D, 32] of equal ranks."""
    return float(measured(loads.reshape(*loads.shape[:2], RANKS, -1).sum(axis=3)).mean())


def load_deviation(loads: np.ndarray, top_k: int) -> float:
    """Standard deviation of the experts' activation frequency (mean K/E), in per cent."""
    total = loads.sum(axis=1)
    tokens = total.sum(axis=1, keepdims=True) / top_k
    return float(100 * (total / tokens).std())


def statistic(name: str, trace: Trace, spec: GeneratorSpec, seed: int) -> float:
    """A statistic by its name in likeness.json, of a trace generated from ``spec`` and ``seed``."""
    kind, _, number = name.rpartition("-")
    if kind == "srp":
        return segment(trace, int(number))[0]
    if kind == "size-ratio":
        return segment(trace, int(number))[1]
    if kind == "sch":
        active = trace.manifest.top_k * trace.manifest.layers
        return hit_rate(trace, f"sch:window={number}", 2 * active, ROUTER_SETTING)
    if kind == "union":
        return served(spec, seed, "lru", 1, int(number)).accesses_per_event
    if kind.startswith("batch-"):
        policy = kind.removeprefix("batch-")
        curve = served(spec, seed, POLICIES.get(policy, policy), int(number), BATCH)
        return 100 * float(curve.misses_per_assignment[0])
    if kind not in ("load", "rank"):
        return hit_rate(trace, POLICIES.get(kind, kind), int(number), PROMPT_SETTING)
    loads = independent_loads(spec, seed)
    if name == "load-deviation":
        return load_deviation(loads, spec.top_k)
    if name == "rank-imbalance":
        return ranks(loads, lambda n: imbalance(n).imbalance_ratio)
    return ranks(loads, lambda n: n.std(axis=2) / n.mean(axis=2))
