"""A step as a person asks for it: names and numbers, checked and looked up."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from moesim.cluster import load_cluster
from moesim.cost_model import CostModel
from moesim.errors import InputError, UsageError
from moesim.fitted_costs import Engine
from moesim.forward.expert_load import Distribution, parse_distribution
from moesim.forward.formats import choose_formats
from moesim.forward.layout import Dispatch, Layout, StepLoad
from moesim.forward.machine import Machine
from moesim.forward.overlap import Overlap
from moesim.forward.simulate import ForwardStep, simulate_step
from moesim.hardware import looks_like_file
from moesim.model import ModelSpec, load_model
from moesim.model.transforms import check_routing_of_trace
from moesim.placement import Placement, read_plan
from moesim.traces.bundle import open_trace
from moesim.workload import Batches, Phase, draw_batches

__all__ = ["StepRequest", "run_request"]

MOST_DRAFTS = 16

ROUTING = "uniform"
"""Without a trace: every token draws its experts evenly, the least that routing fluctuates."""


@dataclass(frozen=True)
class StepRequest:
    """What to simulate.

    Attributes:
        model: Registry name, file or folder.
        cluster: Short name or file.
        phase: Prefill or decode.
        batch: Sequences over all devices.
        context: Tokens cached per sequence in decode, new tokens per sequence in prefill.
        prefix: In prefill, tokens cached before those.
        tp: See :class:`~moesim.forward.layout.Layout`; so are the next five.
        dp: Same.
        ep: Same.
        moe_tp: Same.
        pp: Same.
        dispatch: Same.
        redundant: Same; with a trace, its plan says where copies are.
        engine: Whose kernels run.
        cost: Fitted coefficients, or rooflines alone.
        gemm_dtype: Of projections and dense layers; the model's own if not given.
        expert_dtype: Of routed experts; same.
        kv_dtype: Of the cache; bfloat16 if not given.
        routing: Named distribution of tokens over experts.
        trace: Routing trace instead.
        plan: Placement of experts for the trace.
        transforms: Of the model, as given to ``--transform``.
        overlap: What runs beside what.
        draft_tokens: That a decoding sequence verifies beside its one token.
        acceptance: Probability that a draft is accepted if those before it were.
        seed: Of the draws.
    """

    model: str
    cluster: str
    phase: Phase = "decode"
    batch: int = 1
    context: int = 1024
    prefix: int = 0
    tp: int | None = None
    dp: int | None = None
    ep: int | None = None
    moe_tp: int | None = None
    pp: int = 1
    dispatch: Dispatch | None = None
    redundant: int = 0
    engine: Engine = "sglang"
    cost: CostModel = "fitted"
    gemm_dtype: str | None = None
    expert_dtype: str | None = None
    kv_dtype: str | None = None
    routing: str | None = None
    trace: Path | None = None
    plan: Path | None = None
    transforms: tuple[str, ...] = ()
    overlap: Overlap = "none"
    draft_tokens: int = 0
    acceptance: float = 0.0
    seed: int = 0


def run_request(request: StepRequest) -> ForwardStep:
    """Look everything up and simulate.

    Raises:
        UsageError: If options contradict each other or the model.
        InputError: If a file cannot be used, or is of another model.
        InfeasibleError: If a device's memory does not hold the step.
    """
    _check(request)
    model = load_model(request.model, dense=True, transforms=request.transforms)
    machine = _machine(request)
    cluster = machine.cluster
    spans = cluster.device.scale_up is not None and cluster.device.scale_up.spans_nodes
    layout = Layout.complete(
        cluster.devices,
        tp=request.tp,
        dp=request.dp,
        ep=request.ep,
        moe_tp=request.moe_tp,
        pp=request.pp,
        dispatch=request.dispatch,
        direct="nvlink" if spans and request.engine == "trtllm" else "deepep",
        redundant=request.redundant,
    )
    layout.check(model)
    load = StepLoad.of(
        request.phase, request.batch, request.context, request.prefix, request.draft_tokens
    )
    formats = choose_formats(
        model,
        cluster.device,
        gemm=request.gemm_dtype,
        experts=request.expert_dtype,
        kv=request.kv_dtype,
    )
    routing: Distribution | np.ndarray
    if request.trace is None:
        routing = parse_distribution(request.routing or ROUTING)
    else:
        routing = _from_trace(request, request.trace, model, layout, load)
    return simulate_step(
        model,
        machine,
        layout,
        load,
        formats,
        routing,
        seed=request.seed,
        overlap=request.overlap,
        acceptance=request.acceptance,
    )


def _machine(request: StepRequest) -> Machine:
    """The cluster under its engine; those of bundled devices are kept."""
    if looks_like_file(request.cluster):
        return Machine(load_cluster(request.cluster), request.engine, request.cost)
    return _known_machine(request.cluster, request.engine, request.cost)


@lru_cache(maxsize=64)
def _known_machine(cluster: str, engine: Engine, cost: CostModel) -> Machine:
    return Machine(load_cluster(cluster), engine, cost)


def _check(request: StepRequest) -> None:
    for option, value, least in (
        ("--batch", request.batch, 1),
        ("--context", request.context, 1),
        ("--prefix", request.prefix, 0),
        ("--draft-tokens", request.draft_tokens, 0),
    ):
        if not least <= value <= 2**24:
            raise UsageError(
                f"{option} must be {least} … {2**24}; found {value}\nfix: pass another {option}"
            )
    if request.redundant and request.trace is not None:
        raise UsageError(
            "--redundant is for named distributions; with --trace the --plan places copies\n"
            "fix: leave out --redundant"
        )
    if request.draft_tokens > MOST_DRAFTS or (request.draft_tokens and request.phase == "prefill"):
        raise UsageError(
            f"--draft-tokens {request.draft_tokens} in {request.phase}; allowed: "
            f"0 … {MOST_DRAFTS}, in decode\nfix: pass fewer drafts, or --phase decode"
        )
    if not 0 <= request.acceptance <= 1 or (request.acceptance and not request.draft_tokens):
        raise UsageError(
            f"--acceptance {request.acceptance} with {request.draft_tokens} drafts; allowed: "
            "0 … 1, with --draft-tokens\nfix: pass a probability and --draft-tokens"
        )
    if request.batch * (request.context if request.phase == "prefill" else 1) > 2**26:
        raise UsageError(
            f"--batch {request.batch} times --context {request.context} is more than 2^26 tokens "
            "in one step\nfix: pass a smaller --batch: engines cut longer prefills into chunks"
        )
    if request.trace is not None and request.routing is not None:
        raise UsageError(
            "--trace and --routing both say where tokens go\nfix: leave out one of them"
        )
    if request.plan is not None and request.trace is None:
        raise UsageError("--plan places the experts of a trace\nfix: give it with --trace FOLDER")


def _from_trace(
    request: StepRequest, folder: Path, model: ModelSpec, layout: Layout, load: StepLoad
) -> np.ndarray:
    """[W · L, R, s] tokens of the slots of every rank, in batches drawn from a trace."""
    check_routing_of_trace(model)
    trace = open_trace(folder)
    for what, found, needed in (
        ("experts", trace.manifest.experts, model.experts),
        ("top_k", trace.manifest.top_k, model.top_k),
        ("layers", trace.manifest.layers, len(model.moe_layers)),
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
    tokens = load.busiest(layout.pp).busiest(layout.dp).tokens * layout.dp
    batches = draw_batches(
        trace, devices=1, tokens_per_device=tokens, phase=request.phase, seed=request.seed
    )
    table = _placement(request, model, layout).physical_to_logical
    slots = np.stack([_slot_tokens(batches, table, batch) for batch in range(batches.count)])
    return slots.reshape(-1, layout.ep, table.shape[1] // layout.ep)


def _slot_tokens(batches: Batches, table: np.ndarray, batch: int) -> np.ndarray:
    """[L, S] tokens of every slot; copies of an expert share its tokens evenly."""
    layers, experts = batches.layers, batches.experts
    ids = batches.routing[batch].reshape(layers, -1).astype(np.int64)
    keep = np.ones(ids.shape, bool)
    if batches.valid_k is not None:
        valid = batches.valid_k[batch][..., None] > np.arange(batches.top_k)
        keep = valid.reshape(layers, -1)
    offset = np.arange(layers)[:, None] * experts
    counts = np.bincount((ids + offset)[keep], minlength=layers * experts)
    held = np.where(table >= 0, table, 0)
    copies = np.bincount((held + offset)[table >= 0], minlength=layers * experts)
    share = (counts / np.maximum(copies, 1)).reshape(layers, experts)
    return np.take_along_axis(share, held, 1) * (table >= 0)


def _placement(request: StepRequest, model: ModelSpec, layout: Layout) -> Placement:
    """The plan's, or experts in order."""
    if request.plan is None:
        table = np.tile(np.arange(model.experts), (len(model.moe_layers), 1))
        return Placement(table, layout.ep, model.experts, model.moe_layers)
    placement = read_plan(request.plan)[1]
    for what, found, needed in (
        ("devices", placement.devices, layout.ep),
        ("experts", placement.experts, model.experts),
        ("moe_layers", placement.moe_layers, model.moe_layers),
    ):
        if found != needed:
            raise InputError(
                "the plan is for another set-up",
                file=request.plan,
                field=what,
                found=found,
                allowed=str(needed),
                fix="use the --model and --ep that the plan was made for",
            )
    return placement
