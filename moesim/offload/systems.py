"""Published offloading systems, each as a schedule, a rule for the slots, and a predictor."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from moesim.errors import UsageError
from moesim.hardware import near_names
from moesim.offload import predictors
from moesim.offload.predictors import PRESETS
from moesim.offload.replay import Plan
from moesim.offload.schedules import SCHEDULES
from moesim.offload.scores import SCORES, mrs
from moesim.offload.steps import Steps

__all__ = ["POLICIES", "PREDICTORS", "QUOTAS", "SYSTEMS", "System", "find_system", "make_plan"]

POLICIES = (*SCORES, "mrs")
"""Rules by which experts stay in their slots; ``static`` keeps what was popular before."""

QUOTAS = ("equal", "shallow", "layers", "plec")
"""How slots are divided over layers: equally; all experts of the first layers, what is left over
the others (Fate's shallow-favouring cache); whole layers only (kTransformers' rule files); by the
number of experts that each layer is expected to need (ExpertFlow's PLEC)."""

PREDICTORS = ("none", "transitions", "paths", *PRESETS)
"""``transitions`` and ``paths`` are learned from the first part of the trace; the others have their
published quality."""

NEAREST_PATHS = 8
MOST_PATHS = 256
"""Stored activation paths; MoE-Infinity keeps a few hundred per data set."""


@dataclass(frozen=True)
class System:
    """How experts are served.

    Attributes:
        name: For the command line.
        summary: What it does.
        source: Where it is described.
        schedule: One of :data:`~moesim.offload.schedules.SCHEDULES`.
        policy: One of :data:`POLICIES`.
        quota: One of :data:`QUOTAS`.
        predictor: One of :data:`PREDICTORS`.
        over_fetch: Of a learned predictor; a preset brings its own.
        lookahead: Layers that are prefetched for, at most what the predictor sees.
        impact: Order prefetches by the time that each saves.
        narrow_prefill: Unpopular experts travel in the narrow format in prefill.
        fill: Experts that the CPU computed are copied into slots while the link is idle.
        prefill_schedule: The schedule of prefill steps, if it is another one.
    """

    name: str
    summary: str
    source: str
    schedule: str
    policy: str
    quota: str = "equal"
    predictor: str = "none"
    over_fetch: float = 0.0
    lookahead: int = 1
    impact: bool = False
    narrow_prefill: bool = False
    fill: bool = False
    prefill_schedule: str | None = None


_LIST = (
    System(
        "on-demand", "missing experts are copied while those that are there compute",
        "Mixtral offloading (arXiv 2312.17238)", "on-demand", "lru",
    ),
    System(
        "serial", "copy, compute, copy, compute: nothing overlaps",
        "the naive baseline of offloading papers", "serial", "lru",
    ),
    System(
        "static-split", "popular experts of each layer on the GPU, the others on the CPU",
        "kTransformers, static map by frequency", "split", "static",
    ),
    System(
        "layer-split", "all experts of the first layers on the GPU; the other layers on the CPU in "
        "decode, copied in prefill",
        "the rule files for kTransformers in HybriMoE's code", "split", "static", "layers",
        prefill_schedule="on-demand",
    ),
    System(
        "hybrimoe", "CPU, GPU and link share every layer; prefetch by impact; MRS cache",
        "HybriMoE (arXiv 2504.05897)", "hybrid", "mrs", predictor="gate-reuse", lookahead=3,
        impact=True, fill=True,
    ),
    System(
        "paths", "prefetch by activation paths, missing experts on demand",
        "MoE-Infinity (arXiv 2401.14361), EAP in Fate", "on-demand", "lru", predictor="paths",
    ),
    System(
        "fate", "prefetch by the next layer's gate, first layers kept whole, INT2 in prefill",
        "Fate (arXiv 2502.12224)", "on-demand", "lru", "shallow", "fate", narrow_prefill=True,
    ),
    System(
        "expertflow", "experts of the whole pass predicted before it; slots by expected need",
        "ExpertFlow (arXiv 2410.17954)", "on-demand", "lru", "plec", "expertflow", lookahead=8,
    ),
)  # fmt: skip

SYSTEMS = {system.name: system for system in _LIST}


def find_system(name: str, **changes: object) -> System:
    """A system by name, with parts of it replaced.

    Raises:
        UsageError: If there is no such system or part.
    """
    if name not in SYSTEMS:
        raise UsageError(
            f"--system {name!r} is not known{near_names(name, list(SYSTEMS))}\n"
            f"fix: choose from {', '.join(SYSTEMS)}"
        )
    given = {key: value for key, value in changes.items() if value is not None}
    system = replace(SYSTEMS[name], **given)  # type: ignore[arg-type]
    for option, value, known in (
        ("--schedule", system.schedule, tuple(SCHEDULES)),
        ("--policy", system.policy, POLICIES),
        ("--quota", system.quota, QUOTAS),
        ("--predictor", system.predictor, PREDICTORS),
    ):
        if value not in known:
            raise UsageError(
                f"{option} {value!r} is not known{near_names(value, list(known))}\n"
                f"fix: choose from {', '.join(known)}"
            )
    if system.predictor in PRESETS:
        sees = PRESETS[system.predictor].lookahead
        system = replace(system, lookahead=min(system.lookahead, sees))
    return system


def make_plan(
    system: System,
    steps: Steps,
    learned: Steps,
    slots: int,
    *,
    top_k: int,
    host_slots: int | None = None,
    seed: int = 0,
) -> Plan:
    """What a system does in these steps.

    Slots start with what was popular in the part that was learned from.

    Args:
        system: See :data:`SYSTEMS`.
        steps: What it has to do.
        learned: Steps that it may have learned from.
        slots: C, per layer on average.
        top_k: K.
        host_slots: Experts of each layer that host memory holds; all if None.
        seed: Of predictors of stated quality.

    Raises:
        UsageError: If MRS is asked for and the trace has no router weights.
    """
    layers, experts = steps.tokens.shape[1:]
    popular = learned.tokens.sum(axis=0, dtype=float)
    per_layer = _quota(system.quota, slots, learned)
    rank = (-popular).argsort(axis=1, kind="stable").argsort(axis=1)
    resident = rank < per_layer[:, None]
    preset = PRESETS.get(system.predictor)
    over_fetch = system.over_fetch if preset is None else preset.over_fetch
    predicted = None
    if preset is not None:
        predicted = predictors.predict_with_recall(steps.tokens, preset.recall, over_fetch, seed)
    elif system.predictor == "transitions":
        table = predictors.learn_transitions(learned.tokens)
        predicted = predictors.predict_by_transitions(steps.tokens, table, over_fetch)
    elif system.predictor == "paths":
        every = -(-len(learned.tokens) // MOST_PATHS)
        stored = learned.tokens[::every]
        predicted = predictors.predict_by_paths(steps.tokens, stored, NEAREST_PATHS, over_fetch)
    return Plan(
        schedule=system.schedule,
        scores=_scores(system.policy, steps, popular, top_k),
        slots=per_layer,
        resident=resident,
        admit=system.policy != "static",
        predicted=predicted,
        lookahead=min(system.lookahead, layers),
        impact=system.impact,
        narrow=steps.prefill if system.narrow_prefill else None,
        fill=system.fill,
        prefill=steps.prefill,
        prefill_schedule=system.prefill_schedule,
        host=None if host_slots is None or host_slots >= experts else rank < host_slots,
    )


def _scores(policy: str, steps: Steps, popular: np.ndarray, top_k: int) -> np.ndarray:
    """What was popular before decides among experts that have not been used."""
    before = popular / (1.0 + popular.sum(axis=1, keepdims=True))
    if policy == "static":
        return np.broadcast_to(popular, (len(steps.tokens) + 1, *popular.shape))
    if policy != "mrs":
        return SCORES[policy](steps.tokens) + 1e-6 * before
    if steps.router is None:
        raise UsageError(
            "--policy mrs needs router weights, and the trace has none\n"
            "fix: record the trace with gates, or choose another policy"
        )
    return mrs(steps.router, 2 * top_k) + 1e-6 * before


def _quota(quota: str, slots: int, learned: Steps) -> np.ndarray:
    layers, experts = learned.tokens.shape[1:]
    if quota == "equal":
        return np.full(layers, slots)
    total = slots * layers
    if quota == "layers":
        return np.where(np.arange(layers) < total // experts, experts, 0)
    if quota == "shallow":
        # Whole layers first, as many as leave every other layer an active expert's worth.
        least = min(int(np.ceil(learned.union.mean())), slots)
        whole = (total - layers * least) // max(experts - least, 1)
        given = np.full(layers, experts)
        rest = layers - whole
        if rest > 0:
            share, extra = divmod(total - whole * experts, rest)
            given[whole:] = np.minimum(share + (np.arange(rest) < extra), experts)
        return given
    need = learned.union.mean(axis=0)
    given = np.minimum(np.floor(total * need / need.sum()).astype(int), experts)
    for layer in np.argsort(-need, kind="stable"):
        given[layer] += min(total - int(given.sum()), experts - int(given[layer]))
    return given
