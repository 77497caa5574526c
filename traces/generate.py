"""Synthetic routing traces with known statistics, written as a stream.

Real routing has four properties that placement and caching live on: some experts are popular
(skew), tokens that share an expert in one layer share experts in the next (affinity), kinds of
text use different experts (domain shift), and tokens that follow one another reuse experts
(locality: a request keeps coming back to a few topics, and stays with one for some tokens). The
generator has parameters for each; :class:`~moesim.traces.synthetic_spec.GeneratorSpec` says what
they mean, and :mod:`moesim.traces.likeness` holds those fitted to real models. Memory is bounded by
a chunk of one layer plus 3 bytes per token, however long the trace.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.safe_io import npy_writer, write_json, write_npy
from moesim.traces.bundle import (
    Trace,
    TraceManifest,
    new_bundle_folder,
    open_trace,
    routing_dtype,
)
from moesim.traces.synthetic_measures import (
    adjacent_overlap,
    interlayer_mutual_information_bits,
    load_measures,
)
from moesim.traces.synthetic_spec import GeneratorSpec

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["GeneratedCounts", "GeneratedTrace", "generate", "generate_counts"]

CHUNK_TOKENS = 65_536
PARQUET_TOKENS = 131_072  # of one row group
# Overlap and mutual information are measured on the first tokens only.
MEASURED_TOKENS = 8_192


@dataclass(frozen=True)
class GeneratedTrace:
    """A written bundle and what it shows.

    Attributes:
        trace: The bundle, opened.
        loads: [L, E] int64 token assignments.
        measured: gini, max_over_mean, load_cv, domain_distance over all tokens, adjacent_overlap
            and interlayer_mutual_information_bits over the first ``MEASURED_TOKENS``.
    """

    trace: Trace
    loads: np.ndarray
    measured: dict[str, float]


@dataclass(frozen=True)
class GeneratedCounts:
    """Expert counts without the trace they come from.

    Attributes:
        path: The file ``counts.npy``.
        loads: [L, E] int64 token assignments.
        measured: gini, max_over_mean, load_cv and domain_distance.
    """

    path: Path
    loads: np.ndarray
    measured: dict[str, float]


@dataclass(frozen=True)
class _Tokens:
    """What is common to all layers.

    Attributes:
        starts: [R] int64, first token of every request.
        domain: [R] int64, domain of every request.
        context: [T] uint16, domain · topics + topic.
        continues: [T] bool, the token has the topic of the one before it.
        topics: Contexts per domain.
        keep: Probability that each further choice of the token before is kept.
    """

    starts: np.ndarray
    domain: np.ndarray
    context: np.ndarray
    continues: np.ndarray
    topics: int
    keep: float


def generate(
    spec: GeneratorSpec,
    folder: str | Path,
    *,
    seed: int = 0,
    gates: bool = False,
    chunk_tokens: int = CHUNK_TOKENS,
    extra: dict[str, Any] | None = None,
    on_layer: Callable[[int], None] = lambda layer: None,
) -> GeneratedTrace:
    """Write a synthetic bundle.

    The routing depends on ``spec`` and ``seed`` only: not on ``gates``, not on ``chunk_tokens``.
    ``requests.parquet`` is written if pyarrow is installed.

    Args:
        spec: What the trace shall look like.
        folder: Made if needed; one that holds a bundle is refused.
        seed: Of everything random.
        gates: Also write the router weights: softmax over the chosen experts of router logits
            log(weight) + Gumbel noise, of which the choice is the top-k.
        chunk_tokens: Tokens sampled between two writes.
        extra: Further keys for the manifest.
        on_layer: Called with the index of each layer before it is sampled.

    Raises:
        InputError: If the folder holds a bundle or cannot be written to.
    """
    folder = new_bundle_folder(folder)
    tokens = _tokens(spec, seed)
    dtype = routing_dtype(spec.experts)
    shape = (spec.layers, spec.tokens, spec.top_k)
    loads = np.zeros((spec.layers, spec.domains, spec.experts), dtype=np.int64)
    hashes: dict[str, str] = {}
    with ExitStack() as files:
        routing_file = files.enter_context(npy_writer(folder / "routing.npy", shape, dtype))
        gates_file = (
            files.enter_context(npy_writer(folder / "gates.npy", shape, np.dtype(np.float16)))
            if gates
            else None
        )
        for layer in range(spec.layers):
            on_layer(layer)
            for routing, weights in _chunks(
                spec, seed, layer, tokens, loads[layer], chunk_tokens, gates
            ):
                routing_file.append(routing)
                if gates_file is not None:
                    gates_file.append(weights.astype(np.float16))
        hashes["routing.npy"] = routing_file.sha256
        if gates_file is not None:
            hashes["gates.npy"] = gates_file.sha256
    hashes |= _write_requests(folder, spec, tokens)
    manifest = TraceManifest(
        model=spec.model,
        layers=spec.layers,
        moe_layers=spec.moe_layers or tuple(range(spec.layers)),
        experts=spec.experts,
        top_k=spec.top_k,
        tokens=spec.tokens,
        dtype=dtype.name,
        source=f"synthetic: moesim trace synth, seed {seed}; no model was run",
        domains=_domain_names(spec),
        sha256=hashes,
        **{"generator": spec.to_dict() | {"seed": seed}},
        **(extra or {}),
    )
    write_json(folder / "manifest.json", manifest.to_dict())
    trace = open_trace(folder)
    return GeneratedTrace(trace, loads.sum(axis=1), _measure(spec, trace, tokens, loads))


def generate_counts(
    spec: GeneratorSpec,
    folder: str | Path,
    *,
    seed: int = 0,
    on_layer: Callable[[int], None] = lambda layer: None,
) -> GeneratedCounts:
    """Write ``counts.npy`` [L, E] int64 alone: the loads of the trace that :func:`generate` makes.

    Raises:
        InputError: If the folder cannot be written to.
    """
    tokens = _tokens(spec, seed)
    loads = np.zeros((spec.layers, spec.domains, spec.experts), dtype=np.int64)
    for layer in range(spec.layers):
        on_layer(layer)
        for _ in _chunks(spec, seed, layer, tokens, loads[layer], CHUNK_TOKENS, gates=False):
            pass
    total = loads.sum(axis=1)
    path = write_npy(Path(folder) / "counts.npy", total)
    return GeneratedCounts(path, total, load_measures(loads))


def keep_probability(top_k: int, mean_kept: float) -> float:
    """The q with which keeping each further choice keeps the fraction ``mean_kept`` on average.

    The first j choices are kept with probability q^j, so q solves (q + q² + … + q^K) / K = mean.
    """
    low, high = 0.0, 1.0
    powers = np.arange(1, top_k + 1)
    for _ in range(60):
        middle = (low + high) / 2
        if np.mean(middle**powers) < mean_kept:
            low = middle
        else:
            high = middle
    return high if mean_kept > 0 else 0.0


def _tokens(spec: GeneratorSpec, seed: int) -> _Tokens:
    from moesim.traces.synthetic_sampler import geometric_ratio, sample_topics, stream_key

    rng = np.random.default_rng(stream_key(seed, 1))
    low = max(1, round(spec.request_tokens * (1 - spec.length_spread)))
    high = max(low, round(spec.request_tokens * (1 + spec.length_spread)))
    lengths = rng.integers(low, high + 1, size=math.ceil(spec.tokens / low))
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    starts = starts[starts < spec.tokens]
    domain = np.arange(starts.size, dtype=np.int64) % spec.domains
    topics = spec.topic_count
    ratio = geometric_ratio(topics, spec.request_topics) if spec.request_topics else 1.0
    context, continues = sample_topics(
        starts, domain, topics, ratio, spec.locality, stream_key(seed, 2), spec.tokens
    )
    keep = keep_probability(spec.top_k, spec.reuse)
    return _Tokens(starts, domain, context, continues, topics, keep)


def _chunks(
    spec: GeneratorSpec,
    seed: int,
    layer: int,
    tokens: _Tokens,
    loads: np.ndarray,
    chunk_tokens: int,
    gates: bool,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Routing [N, K] and gates ([N, K] float32 or [0, K]) of one layer, chunk by chunk."""
    from moesim.traces.synthetic_sampler import sample_experts, stream_key
    from moesim.traces.synthetic_tables import layer_tables

    tables = layer_tables(spec, seed, layer)
    key = stream_key(seed, 3, layer)
    experts_before = np.zeros(spec.top_k, dtype=np.int64)
    times_before = np.zeros(spec.top_k, dtype=np.float64)
    for first in range(0, spec.tokens, chunk_tokens):
        context = tokens.context[first : first + chunk_tokens]
        routing = np.empty((context.size, spec.top_k), dtype=routing_dtype(spec.experts))
        weights = np.empty((context.size if gates else 0, spec.top_k), dtype=np.float32)
        sample_experts(
            first,
            context,
            tokens.continues[first : first + chunk_tokens],
            tokens.topics,
            tables.probability,
            tables.threshold,
            tables.alias,
            tables.group_mass,
            spec.groups_per_token,
            tokens.keep,
            key,
            experts_before,
            times_before,
            routing,
            weights,
            loads,
        )
        yield routing, weights


def _domain_names(spec: GeneratorSpec) -> tuple[str, ...]:
    width = len(str(spec.domains - 1))
    return tuple(f"domain-{d:0{width}d}" for d in range(spec.domains))


def _write_requests(folder: Path, spec: GeneratorSpec, tokens: _Tokens) -> dict[str, str]:
    """Write ``requests.parquet`` if pyarrow is there; hash by file name."""
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ModuleNotFoundError:
        return {}
    from moesim.safe_io import sha256_file

    path = folder / "requests.parquet"
    ends = np.append(tokens.starts[1:], spec.tokens)
    prompt = np.ceil((ends - tokens.starts) * spec.prompt_fraction).astype(np.int64)
    writer = None
    for first in range(0, spec.tokens, PARQUET_TOKENS):
        token = np.arange(first, min(first + PARQUET_TOKENS, spec.tokens))
        table = _request_rows(arrow, spec, tokens, prompt, token)
        if writer is None:
            writer = parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()
    return {"requests.parquet": sha256_file(path)}


def _request_rows(
    arrow: ModuleType,
    spec: GeneratorSpec,
    tokens: _Tokens,
    prompt: np.ndarray,
    token: np.ndarray,
) -> Any:
    """One row per token of ``token`` [N]."""
    request = np.searchsorted(tokens.starts, token, side="right") - 1
    position = token - tokens.starts[request]
    decode = (position >= prompt[request]).astype(np.int8)
    domain = tokens.domain[request].astype(np.int32)
    category = arrow.DictionaryArray.from_arrays
    return arrow.table(
        {
            "request": arrow.array(request.astype(np.int32)),
            "position": arrow.array(position.astype(np.int32)),
            "phase": category(decode, ["prefill", "decode"]),
            "domain": category(domain, list(_domain_names(spec))),
        }
    )


def _measure(
    spec: GeneratorSpec, trace: Trace, tokens: _Tokens, loads: np.ndarray
) -> dict[str, float]:
    sample = min(spec.tokens, MEASURED_TOKENS)
    first = np.zeros(sample, dtype=bool)
    first[tokens.starts[tokens.starts < sample]] = True
    routing = trace.routing[:, :sample]
    return load_measures(loads) | {
        "adjacent_overlap": adjacent_overlap(routing, first, spec.experts),
        "interlayer_mutual_information_bits": interlayer_mutual_information_bits(
            routing, spec.experts, np.random.default_rng(0)
        ),
    }
