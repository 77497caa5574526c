"""SCH at both levels, means over samples, intervals, and the verb ``trace locality``."""

from __future__ import annotations

import json

import numpy as np
import pytest

from moesim.cache.accesses import cache_accesses
from moesim.cache.locality import LocalityOptions, bootstrap, locality, sample_rates
from moesim.cache.policies.sch import SCH
from moesim.cache.replay import depths, hit_curve, replay, segment_hits
from moesim.cache.setting import PUBLISHED, CacheSetting
from moesim.traces.bundle import open_trace, sample_path
from moesim.traces.sequences import trace_sequences

from ..cli.commands import moesim, tiny_trace
from . import plain
from .traces import in_memory, local_routing

SETTING = CacheSetting(cold="hit", reset="sequence", sample_tokens=20)


def make_trace():
    rng = np.random.default_rng(4)
    return in_memory(local_routing(rng, layers=2, tokens=90, experts=7, top_k=2), 7)


def plain_rate(events, slots, make):
    return np.mean(plain.plain_hits(events, slots, make, atomic=True, cold="hit"))


def test_sch_of_layers_and_of_the_model():
    """Means over samples (four of 20 tokens and one of 10), each from an empty cache."""
    trace = make_trace()
    options = LocalityOptions(
        windows=(4,), ratios=(1.0, 1.5, 2.0), setting=SETTING, policies=("lru",)
    )
    found = locality(trace, options)
    assert found.samples == 5
    assert found.layer_slots.tolist() == [2, 3, 4]
    assert found.model_slots.tolist() == [4, 6, 8]
    tokens = [range(start, min(start + 20, 90)) for start in range(0, 90, 20)]
    for z in range(3):
        for layer in range(2):
            samples = [[trace.routing[layer, t].tolist() for t in part] for part in tokens]
            for rates, make in (
                (found.sch_layers[0], plain.SCH),
                (found.policies["lru"], plain.LRU),
            ):
                expected = [plain_rate(s, found.layer_slots[z], make) for s in samples]
                assert rates[layer, z] == pytest.approx(np.mean(expected))
        samples = [
            [[*trace.routing[0, t].tolist(), *(trace.routing[1, t] + 7).tolist()] for t in part]
            for part in tokens
        ]
        expected = [plain_rate(s, found.model_slots[z], plain.SCH) for s in samples]
        assert found.sch[0, z] == pytest.approx(np.mean(expected))


def test_a_first_touch_as_hit_or_as_miss_differ_by_the_slots():
    """The published convention books as many more hits per sample as there are slots to fill."""
    trace = in_memory(local_routing(np.random.default_rng(0), tokens=1024, experts=8, skew=0.5), 8)
    warm = hit_curve(trace, "sch", None, PUBLISHED)
    cold = hit_curve(trace, "sch", None, CacheSetting(reset="sequence", sample_tokens=512))
    assert (warm.hits - cold.hits).tolist() == [[2 * c for c in range(1, 9)]]


def test_every_nth_sample_of_each_domain():
    trace = open_trace(sample_path())
    options = LocalityOptions(
        windows=(16,), ratios=(2.0,), policies=(), layer_stride=12, model_stride=12
    )
    found = locality(trace, options)
    sequences = trace_sequences(trace, 512)
    chosen = sequences.select(np.arange(0, 168, 12))  # 24 samples of each of 7 domains
    setting = CacheSetting(cold="hit", reset="sequence", sample_tokens=512)
    rates = sample_rates(trace, SCH(16), np.array([8]), setting, chosen)
    assert found.sch_layers[0, :, 0] == pytest.approx(rates.mean(axis=1)[:, 0])
    assert found.sch_domains.shape == (1, 7, 1)
    assert found.sch[0, 0] == pytest.approx(found.sch_domains[0, :, 0].mean())


def test_intervals_hold_the_estimate_and_shrink_with_more_samples():
    trace = open_trace(sample_path())
    options = LocalityOptions(windows=(16,), ratios=(2.0,), policies=(), bootstraps=50)
    found = locality(trace, options)
    assert found.srp_interval.lo[0] < found.srp.srp[0] < found.srp_interval.hi[0]
    assert found.sch_interval.lo[0, 0] < found.sch[0, 0] < found.sch_interval.hi[0, 0]
    assert found.sch_interval.hi[0, 0] - found.sch_interval.lo[0, 0] < 0.1

    def width(count):
        values = np.random.default_rng(0).normal(size=count)
        interval = bootstrap(lambda w: np.asarray(w @ values / w.sum()), count, 400, 0)
        return interval.hi - interval.lo

    assert width(100) == pytest.approx(2 * 1.96 / 10, rel=0.2)
    assert width(1600) == pytest.approx(2 * 1.96 / 40, rel=0.2)


def test_measures_of_the_sample_do_not_move():
    """Golden figures of the bundled trace; each is checked against a plain count elsewhere."""
    found = locality(open_trace(sample_path()))
    assert found.srp.srp == pytest.approx([0.5952, 0.4772, 0.4312, 0.4074], abs=5e-5)
    assert found.sch[1] == pytest.approx([0.4620, 0.5945, 0.6948, 0.8298], abs=5e-5)
    assert (found.policies["belady"] >= found.sch_layers).all()
    prose = found.domains.index("prose_kjv")
    assert found.srp_domains.srp[1].argmax() == prose


def test_a_trace_shorter_than_every_window():
    found = locality(in_memory(np.zeros((1, 3, 1), int), 2))
    assert np.isnan(found.srp.srp).all()
    assert found.domains == ()


def test_verb(capsys, tmp_path):
    answer = moesim(
        capsys,
        "trace",
        "locality",
        "--window",
        "16,4",
        "--ratio",
        "2",
        "--bootstraps",
        20,
        "--json",
    )
    assert answer.code == 0
    data = answer.json
    assert (data["schema"], data["samples"], data["windows"]) == ("moesim.trace/1", 168, [4, 16])
    assert data["conventions"]["cold"] == "hit"
    assert data["slots"] == {"layer": [8], "model": [64]}
    model = data["srp"]["16"]["model"]
    assert model["lo"] < model["srp"] < model["hi"]
    assert len(data["sch"]["16"]["layers"]["hit_rate"]) == 8
    assert set(data["sch"]["4"]["domains"]) == set(data["domains"])
    assert set(data["policies"]) == {"lru", "lfu", "belady"}
    trace, file = tiny_trace(tmp_path / "t"), tmp_path / "result.json"
    answer = moesim(capsys, "trace", "locality", trace, "--policy", "none", "--out", file)
    assert answer.code == 0
    assert "whole model" in answer.out
    assert json.loads(file.read_text())["policies"] == {}


def test_the_cache_of_the_verb_can_be_replayed_access_by_access():
    """The figures of the verb are those of the library's replay."""
    trace = make_trace()
    found = locality(trace, LocalityOptions(windows=(4,), ratios=(2.0,), setting=SETTING))
    (layer, _) = cache_accesses(trace, SETTING)
    assert layer.events == 90
    rates = sample_rates(trace, SCH(4), np.array([4]), SETTING, trace_sequences(trace, 20))
    assert found.sch_layers[0, :, 0] == pytest.approx(rates[:, :, 0].mean(axis=1))


def test_strides_without_domains():
    options = LocalityOptions(windows=(4,), setting=SETTING, layer_stride=2, model_stride=3)
    found = locality(make_trace(), options)
    assert not np.isnan(found.sch).any()
    assert found.options.model_stride == 3


def test_strides_follow_from_the_size_of_the_trace():
    options = LocalityOptions(model_stride=3).with_strides(2**26)
    assert (options.layer_stride, options.model_stride) == (4, 3)
    options = LocalityOptions().with_strides(2**23)
    assert (options.layer_stride, options.model_stride) == (1, 2)


@pytest.mark.parametrize("contract", ["event-atomic", "sequential"])
def test_one_size_of_the_oracle_agrees_with_the_stack_of_all(contract):
    """A pooled cache of many experts is replayed size by size."""
    rng = np.random.default_rng(6)
    trace = in_memory(local_routing(rng, layers=8, tokens=80, experts=70, top_k=6), 70)
    setting = CacheSetting(
        scope="pooled", contract=contract, reset="sequence", sample_tokens=30, cold="hit"
    )
    (accesses,) = cache_accesses(trace, setting)
    depth = depths(accesses, SCH(5), setting)
    for slots in (1, 6, 48, 100, 560):
        assert SCH(5).hits(accesses, atomic=True, slots=slots) is not None
        assert (replay(accesses, SCH(5), slots, setting) == (depth <= slots)).all()
    rates = segment_hits(accesses, SCH(5), np.array([48, 100]), setting)
    assert rates.sum(axis=0).tolist() == [(depth <= 48).sum(), (depth <= 100).sum()]
