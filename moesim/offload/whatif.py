"""How many expert slots: the curves set beside the key-value cache that the memory could hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

import moesim
from moesim.cache.replay import hit_curve
from moesim.cache.setting import CacheSetting
from moesim.errors import InfeasibleError
from moesim.model import ModelSpec
from moesim.offload.inputs import Inputs
from moesim.offload.slot_curves import CurvesOfBatch, default_slots, slot_curves
from moesim.offload.steps import requests_of
from moesim.offload.tiers import Formats, Machine
from moesim.traces.bundle import Trace
from moesim.units import format_bytes

__all__ = [
    "DoubleRule",
    "Memory",
    "Recommendation",
    "WhatIf",
    "double_rule",
    "memory_split",
    "recommend",
    "what_if",
]

KV_BYTES = 2
OTHER_BYTES = 2
"""Bytes per cached element, and per weight outside the routed experts."""

CLOSE_SHARE = 0.95
"""A smaller cache is recommended if it keeps this share of the best speed."""


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


def what_if(
    given: Inputs,
    policies: Sequence[str],
    *,
    slots: Sequence[int] | None = None,
    settings: Sequence[CacheSetting] = (CacheSetting(),),
    context: int = 4096,
    command: str = "",
    say: Callable[[str], object] = lambda _: None,
) -> WhatIf:
    """Replay a trace at every number of slots, price each, and recommend one.

    Args:
        given: Trace, model, machine, formats.
        policies: Names of cache policies.
        slots: Numbers per layer, ascending; None for a range up to all experts.
        settings: One per batch size; the first is recommended for.
        context: Tokens that a request keeps.
        command: To run it again, for the report.
        say: Told of each replay as it starts.

    Raises:
        UsageError: If a policy is unknown.
        InfeasibleError: If no number of slots leaves room for a request.
    """
    spec = given.model
    sizes = default_slots(spec.experts, spec.top_k) if slots is None else list(slots)
    split = memory_split(
        spec, given.machine, given.formats, sizes, budget_bytes=given.memory_bytes, context=context
    )
    curves = tuple(
        slot_curves(
            given.trace, spec, given.machine, given.formats, policies, sizes, setting,
            context=context, say=say,
        )
        for setting in settings
    )  # fmt: skip
    best = recommend(curves[0], split)
    return WhatIf(
        model=spec,
        machine=given.machine,
        formats=given.formats,
        trace_name=given.trace_name,
        trace_note=given.trace_note,
        setting=settings[0],
        context=context,
        batches=curves,
        memory=split,
        recommendation=best,
        rule=double_rule(given.trace, spec.top_k, spec.experts, best.policy, settings[0]),
        command=command,
        version=moesim.__version__,
    )


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
