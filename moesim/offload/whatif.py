"""How many expert slots: hit rate and speed against the size of the cache, and what is left for KV.

Every size is replayed on the whole trace (:mod:`moesim.cache`), timed on as many of its steps as a
budget allows, and set beside the key-value cache that the same memory could hold instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from moesim.cache.accesses import Accesses, cache_accesses
from moesim.cache.policy import Policy, StackPolicy
from moesim.cache.registry import find_policy
from moesim.cache.replay import depths, hit_curve
from moesim.cache.replay import replay as replay_cache
from moesim.cache.setting import CacheSetting
from moesim.errors import InfeasibleError
from moesim.model import ModelSpec
from moesim.offload.replay import RESOURCES, Timing, time_of_hits
from moesim.offload.simulation import simulate
from moesim.offload.steps import Steps, decode_steps, requests_of
from moesim.offload.systems import System
from moesim.offload.tiers import Formats, Machine
from moesim.traces.bundle import Trace
from moesim.units import format_bytes

__all__ = [
    "WITH_CPU",
    "Curve",
    "CurvesOfBatch",
    "DoubleRule",
    "Memory",
    "Recommendation",
    "WhatIf",
    "default_slots",
    "double_rule",
    "memory_split",
    "recommend",
    "slot_curves",
]

KV_BYTES = 2
OTHER_BYTES = 2
"""Bytes per cached element, and per weight outside the routed experts."""

IN_ORDER_ENTRIES = 3_000_000
"""Steps × layers × experts of systems whose slots depend on what they did before: from the
beginning of the trace, so more of them than of what is spread over it."""

CLOSE_SHARE = 0.95
"""A smaller cache is recommended if it keeps this share of the best speed."""

SEES_THE_FUTURE = ("belady", "sch")
"""Beginnings of the names of policies that no server can run."""

WITH_CPU = (
    System(
        "split", "popular experts on the GPU, the others on the CPU", "kTransformers", "split",
        "static",
    ),
    System(
        "hybrid", "CPU, GPU and link share every layer; LRU", "HybriMoE (arXiv 2504.05897)",
        "hybrid", "lru",
    ),
)  # fmt: skip
"""Shown beside on-demand loading where the machine names a CPU."""


@dataclass(frozen=True)
class Curve:
    """One policy against the number of slots.

    Attributes:
        name: Of the policy as it was asked for, or of the system.
        slots: [Z] per layer.
        hit_rate: [Z] on the whole trace.
        tokens_per_s: [Z] of the whole batch.
        bound: [Z] the busiest resource.
        online: Whether a server could run it.
    """

    name: str
    slots: np.ndarray
    hit_rate: np.ndarray
    tokens_per_s: np.ndarray
    bound: tuple[str, ...]
    online: bool


@dataclass(frozen=True)
class CurvesOfBatch:
    """All curves of one batch size.

    Attributes:
        batch: Requests in flight.
        union: Distinct experts of an event, mean.
        policies: Loading on demand, by policy.
        with_cpu: Systems that also compute on the CPU; empty without one.
        note: What the replay left out or assumed.
    """

    batch: int
    union: float
    policies: dict[str, Curve]
    with_cpu: dict[str, Curve]
    note: str


@dataclass(frozen=True)
class Memory:
    """One memory divided between expert slots and the key-value cache.

    Attributes:
        budget_bytes: All of it.
        other_bytes: Weights outside the routed experts.
        slot_bytes: One slot in every MoE layer.
        slots: [Z] per layer.
        kv_tokens: [Z] tokens whose keys and values fit beside them; −1 where the slots do not fit.
        kv_bytes_per_token: Of all layers.
        context: Tokens that a request keeps.
    """

    budget_bytes: float
    other_bytes: float
    slot_bytes: float
    slots: np.ndarray
    kv_tokens: np.ndarray
    kv_bytes_per_token: float
    context: int

    @property
    def requests(self) -> np.ndarray:
        """[Z] requests of ``context`` tokens that fit; −1 where the slots do not."""
        return np.where(self.kv_tokens < 0, -1, self.kv_tokens // self.context)


@dataclass(frozen=True)
class DoubleRule:
    """Whether "twice the active experts" is where this trace's curve bends.

    Attributes:
        policy: Whose curve.
        slots: k, 2k and 3k slots, at most all experts.
        hit_rate: At those.
        holds: Whether the slots from 2k to 3k bring less than half as much per slot as those from
            k to 2k.
    """

    policy: str
    slots: tuple[int, int, int]
    hit_rate: tuple[float, float, float]
    holds: bool


@dataclass(frozen=True)
class Recommendation:
    """The size to take.

    Attributes:
        slots: Per layer.
        policy: With which it is reached.
        tokens_per_s: There.
        largest_slots: The largest size that leaves room for the batch.
        largest_tokens_per_s: The best speed of those.
        reason: Why, in a sentence.
    """

    slots: int
    policy: str
    tokens_per_s: float
    largest_slots: int
    largest_tokens_per_s: float
    reason: str


@dataclass(frozen=True)
class WhatIf:
    """Everything that ``moesim whatif cache`` says.

    Attributes:
        model: Sizes.
        machine: What it runs on.
        formats: How experts are stored.
        trace_name: Where the routing comes from.
        trace_note: What it is, in words.
        setting: Contract and cold convention; its batch is the first one.
        context: Tokens that a request keeps.
        batches: Curves by batch size; the first is recommended for.
        memory: What each size leaves for the key-value cache.
        recommendation: The size to take.
        rule: Whether twice the active experts is where the curve bends.
        command: To run it again.
        version: Of moesim.
    """

    model: ModelSpec
    machine: Machine
    formats: Formats
    trace_name: str
    trace_note: str
    setting: CacheSetting
    context: int
    batches: tuple[CurvesOfBatch, ...]
    memory: Memory
    recommendation: Recommendation
    rule: DoubleRule
    command: str
    version: str


def default_slots(experts: int, top_k: int) -> list[int]:
    """Sizes worth a look: around the active experts, then quarters, up to all."""
    shares = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
    sizes = {top_k, 2 * top_k, *(round(experts * share) for share in shares)}
    return sorted(size for size in sizes if 1 <= size <= experts)


def slot_curves(
    trace: Trace,
    model: ModelSpec,
    machine: Machine,
    formats: Formats,
    policies: Sequence[str],
    slots: Sequence[int],
    setting: CacheSetting,
    *,
    context: int,
    say: Callable[[str], object] = lambda _: None,
) -> CurvesOfBatch:
    """Every policy at every size, for one batch size.

    Args:
        trace: Routing.
        model: Sizes.
        machine: What it runs on.
        formats: How experts are stored.
        policies: Names, as :func:`moesim.cache.registry.find_policy` takes them.
        slots: Per layer.
        setting: Batch, contract and cold convention.
        context: Cached tokens of each request.
        say: Told of each part as it starts.
    """
    steps = decode_steps(trace, setting, context, spread=True)
    timing = machine.timing(model, formats, steps)
    sizes = np.asarray(slots, np.int64)
    curves = {}
    for name in policies:
        policy = find_policy(name)
        say(f"{policy.label}, batch {setting.batch}")
        curve = hit_curve(trace, policy, slots, setting, sequences=requests_of(trace)[0])
        speed, bound = _speeds(trace, policy, sizes, setting, steps, timing)
        online = not policy.name.startswith(SEES_THE_FUTURE)
        curves[name] = Curve(name, sizes, curve.hit_rate, speed * setting.batch, bound, online)
    with_cpu = {}
    in_order = steps
    if machine.coefficients:
        in_order = decode_steps(trace, setting, context, most_entries=IN_ORDER_ENTRIES)
    for system in WITH_CPU if machine.coefficients else ():
        say(f"{system.name}, batch {setting.batch}")
        runs = [simulate(model, machine, system, formats, in_order, int(size)) for size in sizes]
        phases = [run.decode for run in runs if run.decode is not None]
        with_cpu[system.name] = Curve(
            system.name,
            sizes,
            np.array([phase.hit_rate for phase in phases]),
            np.array([setting.batch / phase.step_s for phase in phases]),
            tuple(phase.bound for phase in phases),
            online=True,
        )
    return CurvesOfBatch(setting.batch, float(steps.union.mean()), curves, with_cpu, steps.note)


def _speeds(
    trace: Trace,
    policy: Policy,
    sizes: np.ndarray,
    setting: CacheSetting,
    steps: Steps,
    timing: Timing,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """[Z] steps per second of loading on demand, and what bounds them."""
    count, layers, experts = steps.tokens.shape
    there = np.zeros((len(sizes), count, layers, experts), bool)
    quotas = np.stack([policy.quotas(int(size), layers, experts) for size in sizes])
    caches = cache_accesses(
        trace, setting, sequences=requests_of(trace)[0], weights=policy.needs_weights
    )
    for layer, accesses in enumerate(caches):
        # Where each of the timed steps' accesses are, and which step each belongs to.
        begin, end = accesses.starts[:-1][steps.chosen], accesses.starts[1:][steps.chosen]
        event = np.repeat(np.arange(count), end - begin)
        first = np.cumsum(end - begin) - (end - begin)
        where = np.arange(event.size) - first[event] + begin[event]
        ids = accesses.ids[where].astype(np.int64)
        for size, hits in enumerate(_hits(accesses, policy, quotas[:, layer], setting)):
            there[size, event, layer, ids] = hits[where]
    speeds, bounds = [], []
    for size in range(len(sizes)):
        step_s, busy_s = time_of_hits(steps.tokens, there[size], "on-demand", timing)
        speeds.append(count / step_s.sum())
        bounds.append(RESOURCES[int(busy_s.sum(axis=0).argmax())])
    return np.array(speeds), tuple(bounds)


def _hits(
    accesses: Accesses, policy: Policy, slots: np.ndarray, setting: CacheSetting
) -> list[np.ndarray]:
    """Which accesses hit, for every size."""
    if not isinstance(policy, StackPolicy):
        return [replay_cache(accesses, policy, int(size), setting) for size in slots]
    depth = depths(accesses, policy, setting)
    return [(depth > 0) & (depth <= size) for size in slots]


def memory_split(
    model: ModelSpec,
    machine: Machine,
    formats: Formats,
    slots: Sequence[int],
    *,
    budget_bytes: float | None,
    context: int,
) -> Memory:
    """What each size leaves for the key-value cache.

    Args:
        model: Sizes.
        machine: Its GPU's memory is the budget, if none is given.
        formats: How experts are stored in slots.
        slots: Per layer.
        budget_bytes: Memory for weights and cache.
        context: Tokens that a request keeps.

    Raises:
        InfeasibleError: If what is not experts does not fit.
    """
    budget = machine.gpu.memory_bytes if budget_bytes is None else budget_bytes
    other = (model.total_parameters - model.parameters.routed_experts) * OTHER_BYTES
    slot = len(model.moe_layers) * model.expert_parameters * formats.slots / 8
    if other + slot > budget:
        raise InfeasibleError(
            f"{model.name} has {format_bytes(other)} of weights outside its routed experts, and one"
            f" slot per layer takes {format_bytes(slot)}: more than the {format_bytes(budget)} of "
            "GPU memory\nfix: a larger --memory or --hardware, or fewer --bits"
        )
    per_token = model.kv_cache_elements_per_token * KV_BYTES
    sizes = np.asarray(slots, np.int64)
    left = budget - other - sizes * slot
    tokens = np.where(left < 0, -1, left // max(per_token, 1e-9)).astype(np.int64)
    return Memory(budget, other, slot, sizes, tokens, per_token, context)


def recommend(curves: CurvesOfBatch, memory: Memory) -> Recommendation:
    """The smallest size that is nearly as fast as the best that leaves room for the batch.

    Raises:
        InfeasibleError: If no size leaves room for it.
    """
    fits = memory.requests >= curves.batch
    if not fits.any():
        need = curves.batch * memory.context * memory.kv_bytes_per_token
        raise InfeasibleError(
            f"no number of slots leaves room for {curves.batch} requests of {memory.context:,} "
            f"tokens ({format_bytes(need)} of keys and values) in "
            f"{format_bytes(memory.budget_bytes)}\nfix: fewer --slots, a smaller --batch or "
            "--context, or a larger --memory"
        )
    online = [curve for curve in curves.policies.values() if curve.online]
    online = online or list(curves.policies.values())
    best = max(online, key=lambda curve: float(curve.tokens_per_s[fits].max()))
    top = float(best.tokens_per_s[fits].max())
    enough = fits & (best.tokens_per_s >= CLOSE_SHARE * top)
    at = int(np.flatnonzero(enough)[0])
    largest = int(memory.slots[fits].max())
    chosen = int(memory.slots[at])
    every = largest == int(memory.slots.max())
    limit = "the largest size asked for" if every else "the largest that leaves room for the batch"
    if chosen == largest:
        reason = (
            f"speed grows up to {limit}, {largest} slots per layer, which leaves "
            f"{int(memory.kv_tokens[at]):,} tokens of key-value cache"
        )
    else:
        reason = (
            f"{chosen} slots per layer keep {best.tokens_per_s[at] / top:.0%} of the speed of "
            f"{largest}, {limit}, and leave {int(memory.kv_tokens[at]):,} tokens of key-value cache"
        )
    return Recommendation(chosen, best.name, float(best.tokens_per_s[at]), largest, top, reason)


def double_rule(
    trace: Trace, top_k: int, experts: int, policy: str, setting: CacheSetting
) -> DoubleRule:
    """Look whether the hit rate bends at twice the active experts (arXiv 2505.16056, section 4).

    The paper finds the bend in one of its four groups of models only.
    """
    sizes = [min(n * top_k, experts) for n in (1, 2, 3)]
    rates = hit_curve(trace, policy, sizes, setting, sequences=requests_of(trace)[0]).hit_rate
    before = (rates[1] - rates[0]) / max(sizes[1] - sizes[0], 1)
    after = (rates[2] - rates[1]) / max(sizes[2] - sizes[1], 1)
    low, middle, high = (float(rate) for rate in rates)
    return DoubleRule(
        policy, (sizes[0], sizes[1], sizes[2]), (low, middle, high), bool(after < before / 2)
    )
