"""The workload that a plan is made for: from a routing trace, or from expert counts alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moesim.cluster import Cluster
from moesim.errors import InputError
from moesim.fitted_costs import expert_cost, link_cost
from moesim.model import ModelSpec
from moesim.planners.outcome import PlanRequest
from moesim.planners.search_cost import SearchCost, search_cost
from moesim.safe_io import sha256_file
from moesim.step import StepEvaluator
from moesim.traces.bundle import Trace, open_trace, sample_path
from moesim.traces.counts import read_counts
from moesim.traces.statistics import coactivation as count_pairs
from moesim.traces.statistics import loads as count_loads
from moesim.traces.statistics import transitions as count_transitions
from moesim.workload import Batches, Phase, draw_batches, sample_routing, split_trace

__all__ = ["PlanWorkload", "from_counts", "from_parts", "from_trace", "trace_of_model"]

DEFAULT_TOKENS_PER_DEVICE: dict[Phase, int] = {"prefill": 4096, "decode": 128}
"""DeepEP's published test sizes: 4096 tokens per rank (normal), 128 (low latency)."""

SEARCH_SEED = 1_000_003
"""Added to the seed for the batches that planners search on."""

SEARCH_DRAWS: dict[Phase, int] = {"prefill": 1, "decode": 4}
"""Draws of batches to search on: the slowest device of small steps varies a lot."""

MAX_PLAN_TOKENS = 1_000_000
"""Of a longer trace an evenly spread sample is planned on: beyond it, counts barely change."""


@dataclass(frozen=True)
class PlanWorkload:
    """What is known of the routing, whatever it came from.

    Attributes:
        name: Of the trace or counts.
        sha256: Of the routing or counts.
        note: What it is, in words.
        tokens: In the whole trace.
        moe_layers: [L] model layer indices.
        loads: [L, E] assignments in the part that is planned on.
        transitions: [L − 1, E, E] pairs in that part; None where only counts are known.
        coactivation: [L, E, E] pairs within a layer, likewise.
        search: Prices swaps on that part, on other batches.
        planning: Prices placements on that part.
        holdout: Prices them on the part that was kept back.
    """

    name: str
    sha256: str
    note: str
    tokens: int
    moe_layers: tuple[int, ...]
    loads: np.ndarray
    transitions: np.ndarray | None
    coactivation: np.ndarray | None
    search: SearchCost
    planning: StepEvaluator
    holdout: StepEvaluator | None


def trace_of_model(request: PlanRequest, model: ModelSpec) -> tuple[Trace, str]:
    """The request's trace, or the bundled sample, and the hash of its routing.

    Raises:
        InputError: If the trace cannot be used or is not of this model.
    """
    folder = request.trace or sample_path()
    trace = open_trace(folder)
    manifest = trace.manifest
    for what, found, needed in (
        ("experts", manifest.experts, model.experts),
        ("top_k", manifest.top_k, model.top_k),
        ("layers", manifest.layers, len(model.moe_layers)),
    ):
        if found != needed:
            raise InputError(
                f"the trace is not of the model {model.name}",
                file=folder / "manifest.json",
                field=what,
                found=found,
                allowed=str(needed),
                fix="pass the --model that the trace is of",
            )
    sha256 = sha256_file(folder / "routing.npy")
    if trace.sha256 not in (None, sha256):
        raise InputError(
            "the routing is not the file that the manifest was written for",
            file=folder / "manifest.json",
            field="sha256.routing.npy",
            found=trace.sha256,
            allowed=sha256,
            fix="copy or record the trace again",
        )
    return trace, sha256


def from_trace(request: PlanRequest, model: ModelSpec, cluster: Cluster) -> PlanWorkload:
    """The workload of the request's trace, or of the bundled sample.

    Raises:
        InputError: If the trace cannot be used or is not of this model.
    """
    trace, sha256 = trace_of_model(request, model)
    planning, holdout = split_trace(trace, request.holdout, MAX_PLAN_TOKENS)
    return from_parts(request, model, cluster, planning, holdout, sha256, trace.manifest.tokens)


def from_parts(
    request: PlanRequest,
    model: ModelSpec,
    cluster: Cluster,
    planning: Trace,
    holdout: Trace | None,
    sha256: str,
    tokens: int,
) -> PlanWorkload:
    """The workload of parts of a trace.

    Args:
        request: Phase, tokens per device, prices, seed.
        model: Sizes.
        cluster: Devices.
        planning: Part that is planned on.
        holdout: Part that was kept back, if any.
        sha256: Of the whole routing.
        tokens: Of the whole trace.
    """
    manifest = planning.manifest

    def batches(part: Trace, seed: int) -> Batches:
        return draw_batches(
            part,
            devices=cluster.devices,
            phase=request.phase,
            seed=seed,
            tokens_per_device=_tokens_per_device(request),
        )

    def evaluator(part: Trace, seed: int) -> StepEvaluator:
        return _evaluator(request, batches(part, seed), model, cluster)

    pricing = evaluator(planning, request.seed)
    drawn = [
        batches(planning, request.seed + SEARCH_SEED + number)
        for number in range(SEARCH_DRAWS[request.phase])
    ]
    used = planning.manifest.tokens + (holdout.manifest.tokens if holdout else 0)
    note = manifest.source or "a routing trace"
    if used < tokens:
        note += f"; an evenly spread sample of {used:,} of its {tokens:,} tokens is used"
    return PlanWorkload(
        name=manifest.model if request.trace is None else str(request.trace),
        sha256=sha256,
        note=note,
        tokens=tokens,
        moe_layers=model.moe_layers,
        loads=count_loads(planning).astype(np.float64),
        transitions=count_transitions(planning).astype(np.float64),
        coactivation=count_pairs(planning).astype(np.float64),
        search=search_cost(pricing, drawn, request.seed),
        planning=pricing,
        holdout=evaluator(holdout, request.seed + 1) if holdout else None,
    )


def from_counts(
    request: PlanRequest, file: Path, model: ModelSpec, cluster: Cluster
) -> PlanWorkload:
    """The workload of expert counts: batches are drawn as if layers were independent.

    Raises:
        InputError: If the counts cannot be used or are not of this model.
    """
    counts = read_counts(file, experts=model.experts, moe_layers=model.moe_layers)
    expected = (len(model.moe_layers), model.experts)
    if counts.loads.shape != expected:
        raise InputError(
            f"the counts are not of the model {model.name}",
            file=file,
            field="shape",
            found=counts.loads.shape,
            allowed=f"{expected} (MoE layers, experts)",
            fix="leave dense layers out, or pass the --model that the counts are of",
        )
    try:
        batches, drawn = (
            sample_routing(
                counts.loads,
                top_k=model.top_k,
                devices=cluster.devices,
                tokens_per_device=_tokens_per_device(request),
                seed=seed,
            )
            for seed in (request.seed, request.seed + SEARCH_SEED)
        )
    except InputError as error:
        raise error.within(file) from error
    pricing = _evaluator(request, batches, model, cluster)
    return PlanWorkload(
        name=file.name,
        sha256=counts.sha256,
        note=(
            ("" if counts.source == file.name else f"{counts.source}; ")
            + "only counts are known, so each layer's routing is assumed to be independent of the "
            "others, and a token's experts of one another"
        ),
        tokens=round(counts.loads[0].sum() / model.top_k),
        moe_layers=model.moe_layers,
        loads=counts.loads,
        transitions=None,
        coactivation=None,
        search=search_cost(pricing, [drawn], request.seed),
        planning=pricing,
        holdout=None,
    )


def _tokens_per_device(request: PlanRequest) -> int:
    if request.tokens_per_device is None:
        return DEFAULT_TOKENS_PER_DEVICE[request.phase]
    return request.tokens_per_device


def _evaluator(
    request: PlanRequest, batches: Batches, model: ModelSpec, cluster: Cluster
) -> StepEvaluator:
    tokens = _tokens_per_device(request)
    return StepEvaluator(
        batches,
        model,
        cluster,
        request.comm,
        request.phase,
        expert_cost(model, cluster, request.cost, request.engine),
        link_cost(model, cluster, request.cost, request.comm, request.phase, tokens),
    )
