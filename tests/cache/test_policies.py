"""Policies that a plain replay does not cover: what they were given besides the accesses."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.cache.accesses import cache_accesses
from moesim.cache.policies.shallow import Shallow
from moesim.cache.policies.static import Static
from moesim.cache.registry import POLICIES, find_policy
from moesim.cache.replay import hit_curve, replay
from moesim.cache.setting import CacheSetting
from moesim.errors import UsageError

from . import plain
from .traces import in_memory, local_routing, random_trace

SEQUENTIAL = CacheSetting(contract="sequential")


@pytest.mark.parametrize("batch", [1, 3])
def test_mrs_keeps_the_highest_average_of_weights(batch):
    rng = np.random.default_rng(0)
    routing = local_routing(rng, tokens=60, experts=6, top_k=2)
    gates = rng.random(routing.shape).astype(np.float16)
    trace = in_memory(routing, 6, gates=gates)
    setting = CacheSetting(batch=batch, sample_tokens=15)
    (accesses,) = cache_accesses(trace, setting, weights=True)
    (events,) = plain.events_of(accesses)

    class MRS(plain.Rule):
        score = np.zeros(6)

        def begin(self, event):
            weight = np.zeros(6)
            part = slice(accesses.starts[event], accesses.starts[event + 1])
            weight[accesses.ids[part]] = accesses.weights[part]
            self.score = 0.75 * self.score + 0.25 * weight

        def keep(self, item, event, place):
            return self.score[item]

    for slots in range(1, 7):
        hits = replay(accesses, "mrs:alpha=0.25", slots, setting)
        assert hits.tolist() == plain.plain_hits(events, slots, MRS, atomic=True)


def test_weights_of_a_batch_add_up():
    routing = np.array([[[0, 1], [1, 2], [3, 0], [3, 1]]])
    gates = np.array([[[0.5, 0.25], [1, 2], [4, 8], [16, 32]]], np.float16)
    trace = in_memory(routing, 4, gates=gates)
    (accesses,) = cache_accesses(trace, CacheSetting(batch=2, sample_tokens=2), weights=True)
    assert accesses.ids.tolist() == [0, 1, 3, 1, 2, 3]  # tokens 0 and 2, then 1 and 3
    assert accesses.weights.tolist() == [8.5, 0.25, 4, 33, 2, 16]
    assert accesses.assignments == 8


def test_mrs_without_weights_is_refused():
    with pytest.raises(UsageError, match="router weights"):
        hit_curve(random_trace(0), "mrs")


def test_static_holds_the_most_popular_of_a_layer_or_of_all():
    routing = np.stack([np.tile([[0], [1], [1]], (10, 1)), np.tile([[2], [2], [2]], (10, 1))])
    trace = in_memory(routing, 3)
    assert hit_curve(trace, "static", [1]).hits.tolist() == [[20], [30]]
    pooled = hit_curve(trace, "static", [1, 2, 3], CacheSetting(scope="pooled"))
    assert pooled.hits.tolist() == [[30, 50, 60]]
    early = hit_curve(trace, "static:calibration=0.02", [1])
    assert early.hits.tolist() == [[10], [30]]


def test_static_calibrated_on_another_trace():
    one, other = (in_memory(np.full((1, 9, 1), expert), 2) for expert in (0, 1))
    assert hit_curve(one, Static().fitted(other), [1, 2]).hits.tolist() == [[0, 9]]


@pytest.mark.parametrize(
    ("full", "slots", "expected"),
    [(0, 4, [8, 8, 0, 0]), (0, 3, [8, 4, 0, 0]), (1, 4, [8, 3, 3, 2]), (1, 1, [4, 0, 0, 0]),
     (2, 8, [8, 8, 8, 8])],
)  # fmt: skip
def test_shallow_gives_the_first_layers_all_slots(full, slots, expected):
    assert Shallow(full).quotas(slots, 4, 8).tolist() == expected


def test_shallow_is_arc_where_layers_are_full():
    trace = random_trace(1, layers=2, tokens=200, experts=8, top_k=2)
    shallow, arc = (hit_curve(trace, name, [4, 8]).hits for name in ("shallow", "arc"))
    assert shallow.tolist() == [[arc[0, 1], arc[0, 1]], [0, arc[1, 1]]]


def test_random_eviction_of_uniform_routing_hits_as_often_as_slots_say():
    trace = in_memory(local_routing(np.random.default_rng(0), tokens=20_000, skew=0), 8)
    rates = hit_curve(trace, "random", [2, 4, 6], SEQUENTIAL).hit_rate
    # Sequential, top-2: the second expert is never the first, which was just loaded.
    assert rates == pytest.approx([2 / 8, 4 / 8, 6 / 8], abs=0.08)
    again = hit_curve(trace, "random", [2, 4, 6], SEQUENTIAL).hit_rate
    other = hit_curve(trace, "random:seed=1", [2, 4, 6], SEQUENTIAL).hit_rate
    assert again.tolist() == rates.tolist() != other.tolist()


def test_expertflow_with_a_perfect_predictor_and_with_none():
    trace = random_trace(5, tokens=300, experts=10, top_k=3, skew=1.0)
    perfect = hit_curve(trace, "expertflow:recall=1:extra=0", [3, 6])
    assert perfect.hit_rate.tolist() == [1, 1]
    blind = hit_curve(trace, "expertflow:recall=0:extra=0", [2, 3, 6])
    assert blind.hits.tolist() == hit_curve(trace, "lru", [2, 3, 6]).hits.tolist()
    half = hit_curve(trace, "expertflow:recall=0.5:extra=0", [3])
    assert 0.5 < half.hit_rate[0] < 1
    misled = hit_curve(trace, "expertflow:recall=0.5:extra=2", [3])
    assert misled.hit_rate[0] < half.hit_rate[0]


def test_moe_infinity_against_a_plain_one():
    """Two layers that share a cache; sequences of 6 tokens; the last two are remembered."""
    rng = np.random.default_rng(2)
    trace = in_memory(local_routing(rng, layers=2, tokens=60, experts=5, top_k=2), 5)
    setting = CacheSetting(scope="pooled", sample_tokens=6)
    (accesses,) = cache_accesses(trace, setting)
    (events,) = plain.events_of(accesses)

    class MoEInfinity(plain.Rule):
        def begin(self, event):
            if event % 12 == 0:
                self.past = [*getattr(self, "past", []), getattr(self, "now", None)][-2:]
                self.now, self.coming = np.zeros((2, 5)), np.zeros((2, 5))
            elif event % 2 == 0 and (past := [m for m in self.past if m is not None]):
                norm = np.linalg.norm
                alike = [(m * self.now).sum() / norm(m) / norm(self.now) for m in past]
                best = past[int(np.argmax(alike))]
                self.coming = max(alike) * best / best.sum(axis=1, keepdims=True)
            for item in self.events[event]:
                self.now[item // 5, item % 5] += 1
            share = self.now / np.maximum(self.now.sum(axis=1, keepdims=True), 1)
            self.wanted = (share + self.coming) * np.array([[1], [0.5]])

        def keep(self, item, event, place):
            return round(self.wanted.flat[item], 9), self.last_use[item]

    for slots in (1, 3, 5, 8):
        hits = replay(accesses, "moe-infinity:stored=2", slots, setting)
        assert hits.tolist() == plain.plain_hits(events, slots, MoEInfinity, atomic=True)


@pytest.mark.parametrize("scope", ["per-layer", "pooled", "pooled-token"])
@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_in_every_scope(name, scope):
    rng = np.random.default_rng(0)
    routing = local_routing(rng, layers=3, tokens=50, experts=8, top_k=2)
    gates = rng.random(routing.shape).astype(np.float16)
    trace = in_memory(routing, 8, gates=gates)
    setting = CacheSetting(scope=scope, sample_tokens=20, reset="sequence", batch=2)
    curve = hit_curve(trace, name, [1, 3, 8, 24], setting)
    assert (curve.hits >= 0).all()
    assert (curve.hits <= curve.accesses[:, None]).all()
    assert (curve.hits[:, -1] >= curve.accesses - curve.first_touches).all()
    assert find_policy(curve.policy).label == curve.policy


def test_pooled_and_per_layer_caches_agree_on_one_layer():
    trace = random_trace(7, tokens=100, experts=9, top_k=2)
    curves = [hit_curve(trace, "lfru", None, CacheSetting(scope=scope, batch=2, sample_tokens=9))
              for scope in ("per-layer", "pooled", "pooled-token")]  # fmt: skip
    assert len({curve.hits.tobytes() for curve in curves}) == 1


def test_a_pooled_cache_in_pieces(monkeypatch):
    rng = np.random.default_rng(3)
    trace = in_memory(local_routing(rng, layers=2, tokens=90, experts=6), 6)
    setting = CacheSetting(scope="pooled", reset="sequence", sample_tokens=10, cold="hit")
    whole = {name: hit_curve(trace, name, None, setting).hits for name in ("lru", "static")}
    monkeypatch.setattr("moesim.cache.accesses.POOLED_ACCESSES", 100)
    assert len(list(cache_accesses(trace, setting))) > 3
    for name, hits in whole.items():
        assert hit_curve(trace, name, None, setting).hits.tolist() == hits.tolist()
