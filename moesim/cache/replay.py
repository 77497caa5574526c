"""Hits of a policy: for all sizes at once, or access by access at one size.

Axes: L MoE layers, E experts, N accesses of one cache, Z sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moesim.cache.accesses import Accesses, cache_accesses
from moesim.cache.policy import Policy, SizedPolicy, StackPolicy
from moesim.cache.registry import find_policy
from moesim.cache.setting import CacheSetting
from moesim.compiled import compiled
from moesim.errors import UsageError
from moesim.traces.bundle import Trace
from moesim.traces.sequences import Sequences

__all__ = [
    "HitCurve",
    "depths",
    "hit_counts",
    "hit_curve",
    "replay",
    "segment_hits",
]

_ONE_SIZE_OBJECTS = 64
"""A stack of all sizes takes as long as one replay of one size per so many objects."""


@dataclass(frozen=True)
class HitCurve:
    """Hits of one policy against the size of the cache.

    Attributes:
        policy: Label of the policy.
        setting: How the trace was replayed.
        slots: [Z] int64 slots: of each layer (on average, where the policy divides them unevenly),
            or of the pooled cache.
        hits: [caches, Z] int64; one cache per layer, or the pooled one.
        accesses: [caches] int64; misses are accesses − hits.
        events: [caches] int64.
        assignments: [caches] int64, token assignments before those of a batch are merged.
        first_touches: [caches] int64, accesses to an expert for the first time since a reset.
    """

    policy: str
    setting: CacheSetting
    slots: np.ndarray
    hits: np.ndarray
    accesses: np.ndarray
    events: np.ndarray
    assignments: np.ndarray
    first_touches: np.ndarray

    @property
    def hit_rate(self) -> np.ndarray:
        """[Z] hits per access, over all caches; 0 where nothing was asked for."""
        return self.hits.sum(axis=0) / max(int(self.accesses.sum()), 1)

    @property
    def hit_rate_by_cache(self) -> np.ndarray:
        """[caches, Z] hits per access of each cache."""
        return self.hits / np.maximum(self.accesses, 1)[:, None]

    @property
    def misses_per_assignment(self) -> np.ndarray:
        """[Z] experts loaded per token assignment: what a step transfers, whatever its batch."""
        misses = self.accesses.sum() - self.hits.sum(axis=0)
        return misses / max(int(self.assignments.sum()), 1)

    @property
    def accesses_per_event(self) -> float:
        """Mean number of distinct experts that an event asks for."""
        return float(self.accesses.sum() / max(int(self.events.sum()), 1))

    @property
    def regime(self) -> np.ndarray:
        """[Z] r: distinct experts of an event over slots; above 1, misses are forced."""
        return self.accesses_per_event / self.slots

    def to_dict(self) -> dict[str, Any]:
        """As it stands in JSON."""
        return {
            "policy": self.policy,
            **self.setting.to_dict(),
            "slots": self.slots.tolist(),
            "hit_rate": self.hit_rate.tolist(),
            "misses_per_assignment": self.misses_per_assignment.tolist(),
            "regime": self.regime.tolist(),
            "accesses": int(self.accesses.sum()),
            "first_touches": int(self.first_touches.sum()),
        }


def hit_curve(
    trace: Trace,
    policy: str | Policy,
    slots: Sequence[int] | None = None,
    setting: CacheSetting | None = None,
    *,
    sequences: Sequences | None = None,
    layers: Sequence[int] | None = None,
) -> HitCurve:
    """Replay a trace under a policy and count hits for every size of the cache.

    Args:
        trace: The trace; it is read layer by layer.
        policy: A policy or its name, such as ``lru`` or ``sch:window=64``.
        slots: [Z] sizes; 1 … E (of a pooled cache: 1 … L · E) by default.
        setting: Conventions of the replay.
        sequences: Some of the trace's sequences (:func:`~moesim.traces.sequences.trace_sequences`);
            all by default.
        layers: Rows of the routing; all by default.

    Raises:
        InputError: If the trace is not sound.
        UsageError: If the policy or a size makes no sense for this trace.
    """
    policy, setting = find_policy(policy).fitted(trace), setting or CacheSetting()
    rows = list(range(trace.manifest.layers)) if layers is None else list(layers)
    pooled = setting.scope != "per-layer"
    largest = trace.manifest.experts * (len(rows) if pooled else 1)
    sizes = np.arange(1, largest + 1) if slots is None else np.asarray(slots, np.int64)
    if sizes.size == 0 or int(sizes.min()) < 1:
        raise UsageError(f"slots must be at least 1; found {sizes.tolist()}")
    caches = 1 if pooled else len(rows)
    hits = np.zeros((caches, sizes.size), np.int64)
    totals = np.zeros((4, caches), np.int64)
    quotas = np.stack([policy.quotas(int(n), len(rows), trace.manifest.experts) for n in sizes], 1)
    for number, accesses in enumerate(
        cache_accesses(
            trace, setting, sequences=sequences, layers=rows, weights=policy.needs_weights
        )
    ):
        cache = 0 if pooled else number
        wanted = np.minimum(sizes, largest) if pooled else quotas[cache]
        hits[cache] += hit_counts(accesses, policy, wanted, setting)
        first = accesses.first_touches.size
        totals[:, cache] += [accesses.count, accesses.events, accesses.assignments, first]
    return HitCurve(policy.label, setting, sizes, hits, *totals)


def hit_counts(
    accesses: Accesses, policy: str | Policy, slots: np.ndarray, setting: CacheSetting
) -> np.ndarray:
    """Hits of one cache at every size.

    Args:
        accesses: What the cache is asked for.
        policy: A policy or its name.
        slots: [Z] sizes, 0 … objects.
        setting: The contract and the cold convention count here.

    Returns:
        [Z] int64.
    """
    policy = find_policy(policy)
    if isinstance(policy, StackPolicy):
        by_depth = np.zeros(accesses.objects + 1, np.int64)
        _histogram(depths(accesses, policy, setting), by_depth)
        by_depth[0] = 0
        return np.cumsum(by_depth)[np.minimum(slots, accesses.objects)]
    distinct, where = np.unique(slots, return_inverse=True)
    counts = [int(np.count_nonzero(replay(accesses, policy, int(n), setting))) for n in distinct]
    return np.array(counts, np.int64)[where]


def segment_hits(
    accesses: Accesses, policy: str | Policy, slots: np.ndarray, setting: CacheSetting
) -> np.ndarray:
    """Hits between one reset and the next, at every size.

    Args:
        accesses: What the cache is asked for.
        policy: A policy or its name.
        slots: [Z] sizes, 0 … objects.
        setting: The contract and the cold convention count here.

    Returns:
        [R, Z] int64.
    """
    policy, segments = find_policy(policy), accesses.segments
    hits = np.zeros((len(segments) - 1, len(slots)), np.int64)
    few = len(slots) * _ONE_SIZE_OBJECTS < accesses.objects
    if isinstance(policy, StackPolicy) and not (few and policy.replays_one_size):
        wanted = np.minimum(slots, accesses.objects)
        _segment_hits(depths(accesses, policy, setting), segments, accesses.objects, wanted, hits)
        return hits
    for column, size in enumerate(slots):
        total = np.cumsum(replay(accesses, policy, int(size), setting), dtype=np.int64)
        hits[:, column] = np.diff(np.concatenate([[0], total])[segments])
    return hits


def replay(
    accesses: Accesses, policy: str | Policy, slots: int, setting: CacheSetting
) -> np.ndarray:
    """Which accesses hit in a cache of one size.

    ``accesses.ids[accesses.starts[s]:accesses.starts[s + 1]]`` are the experts of event s, and the
    same slice of the result says which of them were resident; the others had to be loaded.

    Args:
        accesses: What the cache is asked for (:func:`~moesim.cache.accesses.cache_accesses`).
        policy: A policy or its name.
        slots: Size of the cache, 0 … objects.
        setting: The contract and the cold convention count here.

    Returns:
        [N] bool.
    """
    policy = find_policy(policy)
    if slots < 1:
        return np.zeros(accesses.count, bool)
    slots = min(slots, accesses.objects)
    if isinstance(policy, StackPolicy):
        found = policy.hits(accesses, atomic=setting.atomic, slots=slots)
        if found is None:
            depth = depths(accesses, policy, setting)
            return (depth > 0) & (depth <= slots)
    else:
        assert isinstance(policy, SizedPolicy)  # noqa: S101  for the type checker
        found = policy.hits(accesses, atomic=setting.atomic, slots=slots)
    if not policy.preloaded:
        first = accesses.first_touches
        warm = setting.cold == "hit"
        found[first] = _order_in_segment(first, accesses) <= slots if warm else False
    return found


def depths(accesses: Accesses, policy: StackPolicy, setting: CacheSetting) -> np.ndarray:
    """The smallest number of slots at which each access hits; 0 if it misses at every size.

    Returns:
        [N] uint16.
    """
    depth = policy.depths(accesses, atomic=setting.atomic)
    if not policy.preloaded:
        first = accesses.first_touches
        depth[first] = 0 if setting.cold == "miss" else _order_in_segment(first, accesses)
    return depth


def _order_in_segment(first: np.ndarray, accesses: Accesses) -> np.ndarray:
    """1, 2, … for the first touches of every segment."""
    firsts_of_segment = np.searchsorted(first, accesses.segments[:-1])
    segment = np.searchsorted(accesses.segments, first, side="right") - 1
    return np.arange(first.size) - firsts_of_segment[segment] + 1


@compiled
def _histogram(values: np.ndarray, counts: np.ndarray) -> None:
    # Two tables in turn: an increment need not wait for the one before.
    even, odd = np.zeros(counts.size, np.int64), np.zeros(counts.size, np.int64)
    whole = values.size - values.size % 2
    for i in range(0, whole, 2):
        even[values[i]] += 1
        odd[values[i + 1]] += 1
    if whole < values.size:
        even[values[whole]] += 1
    for n in range(counts.size):
        counts[n] += even[n] + odd[n]


@compiled
def _segment_hits(
    depth: np.ndarray, segments: np.ndarray, objects: int, slots: np.ndarray, hits: np.ndarray
) -> None:
    counts = np.empty(objects + 1, np.int64)
    for segment in range(segments.size - 1):
        counts[:] = 0
        for i in range(segments[segment], segments[segment + 1]):
            counts[depth[i]] += 1
        counts[0] = 0
        for size in range(1, objects + 1):
            counts[size] += counts[size - 1]
        for column in range(slots.size):
            hits[segment, column] = counts[slots[column]]
