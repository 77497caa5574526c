"""Hits of every policy against a plain replay, and what must hold for any trace."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from moesim.cache.accesses import cache_accesses
from moesim.cache.registry import find_policy
from moesim.cache.replay import hit_counts, hit_curve, replay
from moesim.cache.setting import CacheSetting
from moesim.errors import UsageError

from . import plain
from .traces import in_memory, local_routing, random_trace

RULES = {
    "lru": plain.LRU,
    "lfu": plain.LFU,
    "belady": plain.Belady,
    "sch:window=1": partial(plain.SCH, window=1),
    "sch:window=4": partial(plain.SCH, window=4),
    "sch:window=16": partial(plain.SCH, window=16),
}
CONTRACTS = ("event-atomic", "sequential")


def settings(seed):
    """A setting for a random trace, all of them in turn."""
    rng = np.random.default_rng(seed)
    return CacheSetting(
        contract=CONTRACTS[seed % 2],
        cold=("miss", "hit")[seed // 2 % 2],
        reset=("never", "sequence")[seed // 4 % 2],
        sample_tokens=int(rng.integers(1, 30)),
        batch=int(rng.choice([1, 1, 3])),
    )


@pytest.mark.parametrize("name", RULES)
def test_every_access_agrees_with_a_plain_replay(name):
    for seed in range(60):
        trace, setting = random_trace(seed), settings(seed)
        (accesses,) = cache_accesses(trace, setting)
        counts = hit_counts(accesses, name, np.arange(accesses.objects + 1), setting)
        for slots in range(1, accesses.objects + 1):
            expected = [
                hit
                for events in plain.events_of(accesses)
                for hit in plain.plain_hits(
                    events, slots, RULES[name], atomic=setting.atomic, cold=setting.cold
                )
            ]
            hits = replay(accesses, name, slots, setting)
            assert hits.tolist() == expected, (seed, slots)
            assert counts[slots] == sum(expected)


def test_published_conformance_trace():
    """12 hits and 18 misses: arXiv 2608.07911, section 2.5; 3 layers of 4 experts, 5 steps.

    Every layer is asked for {0, 1}, {0, 2}, {0, 1}, {0, 3}, {0, 1} and has two slots.
    """
    steps = np.array([[0, 1], [0, 2], [0, 1], [0, 3], [0, 1]])
    trace = in_memory(np.stack([steps] * 3), 4)
    curve = hit_curve(trace, "lru", [2])
    assert curve.accesses.sum() == 30
    assert curve.hits.sum() == 12
    assert curve.first_touches.sum() == 12
    for accesses in cache_accesses(trace, CacheSetting()):
        hits = replay(accesses, "lru", 2, CacheSetting())
        assert hits.reshape(5, 2).sum(axis=1).tolist() == [0, 1, 1, 1, 1]


def test_listed_order_decides_within_an_event():
    trace = in_memory(np.array([[[0, 1], [0, 1], [1, 0]]]), 2)
    assert hit_curve(trace, "lru", [1]).hits.tolist() == [[2]]
    assert hit_curve(trace, "lru", [1], CacheSetting(contract="sequential")).hits.tolist() == [[1]]


def test_on_1000_random_traces_what_must_hold_for_any():
    for seed in range(1000):
        trace, setting = random_trace(seed, tokens=30), settings(seed)
        curves = {name: hit_curve(trace, name, None, setting) for name in RULES}
        best = curves["belady"]
        for name, curve in curves.items():
            assert (np.diff(curve.hits, axis=1) >= 0).all(), (seed, name)
            assert (curve.hits <= curve.accesses[:, None]).all()
            compulsory = curve.first_touches if setting.cold == "miss" else 0
            assert (curve.hits[:, -1] == curve.accesses - compulsory).all()
            if not setting.atomic:
                assert (curve.hits <= best.hits).all(), (seed, name)


@pytest.mark.parametrize("experts", [64, 65, 128, 256, 300])
def test_many_experts(experts):
    rng = np.random.default_rng(experts)
    trace = in_memory(local_routing(rng, tokens=60, experts=experts, top_k=10), experts)
    for setting in (CacheSetting(), CacheSetting(contract="sequential", cold="hit")):
        (accesses,) = cache_accesses(trace, setting)
        (events,) = plain.events_of(accesses)
        for name in ("lru", "lfu", "belady", "sch:window=4"):
            for slots in (1, 10, 63, experts - 1):
                expected = plain.plain_hits(
                    events, slots, RULES[name], atomic=setting.atomic, cold=setting.cold
                )
                assert replay(accesses, name, slots, setting).tolist() == expected, (name, slots)


def test_a_long_count_of_uses():
    """Counts of LFU far above what a byte or the number of experts could hold."""
    rng = np.random.default_rng(1)
    routing = local_routing(rng, tokens=3000, experts=5, top_k=2, skew=2, drift=0.999)
    trace, setting = in_memory(routing, 5), CacheSetting()
    (accesses,) = cache_accesses(trace, setting)
    (events,) = plain.events_of(accesses)
    for slots in range(1, 6):
        expected = plain.plain_hits(events, slots, plain.LFU, atomic=True)
        assert replay(accesses, "lfu", slots, setting).tolist() == expected


def test_curve_says_what_it_is():
    trace = random_trace(3, layers=2, tokens=30, experts=8, top_k=2)
    setting = CacheSetting(batch=4, reset="never", sample_tokens=6)
    curve = hit_curve(trace, "lru", [2, 4], setting)
    assert curve.to_dict().items() >= setting.to_dict().items()
    assert curve.assignments.tolist() == [60, 60]
    assert curve.events.tolist() == [12, 12]  # four samples of 6 tokens, then the fifth alone
    misses = curve.accesses.sum() - curve.hits.sum(axis=0)
    assert curve.misses_per_assignment.tolist() == (misses / 120).tolist()
    assert curve.regime.tolist() == [curve.accesses_per_event / 2, curve.accesses_per_event / 4]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lur", "near: lru"),
        ("sch:windw=4", "windw"),
        ("sch:window=four", "four"),
        ("sch:window=0", "at least 1"),
        ("lru:window=4", "none"),
    ],
)
def test_unknown_policies_are_refused(text, says):
    with pytest.raises(UsageError, match=says):
        find_policy(text)
