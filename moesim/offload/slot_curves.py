"""Hit rate and speed of cache policies and of systems with a CPU, for every number of slots.

A policy is replayed on the whole trace (:mod:`moesim.cache`) and timed on as many of its steps as
a budget allows, spread over the trace.
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
from moesim.model import ModelSpec
from moesim.offload.replay import Timing, time_of_hits
from moesim.offload.simulation import simulate
from moesim.offload.state import RESOURCES
from moesim.offload.steps import Steps, decode_steps, requests_of
from moesim.offload.systems import System
from moesim.offload.tiers import Formats, Machine
from moesim.traces.bundle import Trace

__all__ = ["WITH_CPU", "Curve", "CurvesOfBatch", "default_slots", "slot_curves"]

IN_ORDER_ENTRIES = 3_000_000
"""Steps × layers × experts of systems whose slots depend on what they did before: from the
beginning of the trace, so more of them than of what is spread over it."""

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
