"""Hits of every policy against a plain replay, and what must hold for any trace."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.cache.accesses import cache_accesses
from moesim.cache.policy import StackPolicy
from moesim.cache.registry import POLICIES, find_policy
from moesim.cache.replay import hit_counts, hit_curve, replay
from moesim.cache.setting import CacheSetting
from moesim.errors import UsageError

from . import plain
from .traces import in_memory, local_routing, random_trace

CACHES = {
    "lru": plain.LRU,
    "lfu": plain.LFU,
    "lfu-resident": plain.LFUResident,
    "lfu-window:window=5": plain.LFUWindow,
    "lfu-decay:decay=0.8": plain.LFUDecay,
    "lfru": plain.LFRU,
    "fifo": plain.FIFO,
    "arc": plain.ARC,
    "s3-fifo": plain.S3FIFO,
    "sch:window=4": plain.SCH,
    "belady": plain.Belady,
    "belady-bypass": plain.BeladyBypass,
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


@pytest.mark.parametrize("name", CACHES)
def test_every_access_agrees_with_a_plain_replay(name):
    for seed in range(40):
        trace, setting = random_trace(seed), settings(seed)
        (accesses,) = cache_accesses(trace, setting)
        segments = plain.events_of(accesses)
        if name == "belady-bypass" and not setting.atomic:
            segments = [[[item] for event in events for item in event] for events in segments]
        counts = hit_counts(accesses, name, np.arange(accesses.objects + 1), setting)
        for slots in range(1, accesses.objects + 1):
            expected = [
                hit
                for events in segments
                for hit in plain.plain_hits(
                    events, slots, CACHES[name], atomic=setting.atomic, cold=setting.cold
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
    """No policy beats the optimum; larger stacks hold what smaller ones do; nothing is lost."""
    causal = [name for name in POLICIES if name not in ("mrs", "shallow")]
    for seed in range(1000):
        trace, setting = random_trace(seed, tokens=25), settings(seed)
        (accesses,) = cache_accesses(trace, setting)
        sizes = np.arange(1, accesses.objects + 1)
        cold = accesses.first_touches.size if setting.cold == "miss" else 0
        best = hit_counts(accesses, "belady-bypass", sizes, setting)
        for name in ["belady", "lru", "lfu", causal[seed % len(causal)]]:
            policy = find_policy(name)
            hits = hit_counts(accesses, policy, sizes, setting)
            if isinstance(policy, StackPolicy):
                assert (np.diff(hits) >= 0).all(), (seed, name)
            if not policy.preloaded:
                assert (hits <= best).all(), (seed, name)
                assert hits[-1] == accesses.count - cold, (seed, name)
            if name == "belady":
                forced = hits
            elif not setting.atomic and not policy.preloaded and name != "belady-bypass":
                assert (hits <= forced).all(), (seed, name)


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
                    events, slots, CACHES[name], atomic=setting.atomic, cold=setting.cold
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
