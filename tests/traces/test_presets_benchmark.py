"""The command that shows presets against published figures, and its statistics by definition."""

import json

import numpy as np
import pytest

from moesim.traces.synthetic_spec import PRESETS, GeneratorSpec
from tests.benchmarks import presets
from tests.benchmarks.routing_statistics import Routing, load_deviation, lru, ranks, srp


def some_routing(experts=6, top_k=2, requests=3, length=40):
    rng = np.random.default_rng(0)
    weight = np.arange(1, experts + 1) + rng.gumbel(size=(2, requests * length, experts)) * 2
    chosen = np.argsort(-weight, axis=2)[:, :, :top_k]
    return Routing(chosen, np.arange(requests * length) // length % 2, length, experts)


def test_srp_by_trying_every_threshold():
    routing = some_routing()
    windows = [
        np.count_nonzero(request[p : p + 16] == e)
        for request in routing.requests()
        for e in range(6)
        for p in range(25)
    ]
    best = 0
    for threshold in range(17):
        on = [n for n in windows if n >= threshold]
        precision, recall = sum(on) / max(1, 16 * len(on)), sum(on) / sum(windows)
        best = max(best, 2 * precision * recall / max(precision + recall, 1e-9))
    assert srp(routing) == pytest.approx(100 * best)


@pytest.mark.parametrize("capacity", [2, 3, 5, 6])
def test_lru_by_keeping_a_cache(capacity):
    routing = some_routing()
    hits = 0
    for request in routing.requests():
        cache = []  # most recent first
        for token in request[20:]:
            hits += sum(e in cache for e in token)
            recent = sorted(token, reverse=True)
            cache = (recent + [e for e in cache if e not in token])[:capacity]
    assert lru(routing, capacity) == pytest.approx(100 * hits / (2 * 3 * 20 * 2))


def test_deviation_and_ranks_by_hand():
    # One layer, four tokens of top-1: experts 0, 0, 0, 1 of 64; 32 ranks of two.
    routing = Routing(np.array([0, 0, 0, 1]).reshape(1, 4, 1), np.array([0, 0, 1, 1]), 4, 64)
    assert load_deviation(routing) == pytest.approx(100 * np.std([0.75, 0.25] + [0] * 62))
    assert routing.loads()[0, :, :2].tolist() == [[2, 0], [1, 1]]
    assert ranks(routing, lambda loads: loads.max(axis=2)) == 2


def test_command_compares(capsys):
    words = ["--preset", "mixtral-8x7b", "--tokens", "2048", "--seeds", "2"]
    presets.main([*words, "--json"])
    data = json.loads(capsys.readouterr().out)
    assert data["schema"] == "moesim.benchmark-presets/1"
    by_statistic = {row["statistic"]: row for row in data["rows"]}
    assert by_statistic["SRP 16 %"]["published"] == 49.36
    assert by_statistic["SRP 16 %"]["generated"] == pytest.approx(49.36, abs=3)
    assert by_statistic["load deviation %"]["role"] == "fitted by skew"
    presets.main([*words[:4], "--seeds", "1"])
    assert "arXiv 2505.16056" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        presets.main(["--tokens", "100"])


def test_fit_finds_the_parameters_that_made_the_targets():
    spec = GeneratorSpec(layers=2, experts=16, top_k=2, tokens=2048, affinity=0.8, length_spread=0)
    true = {"skew": 0.6, "locality": 0.7}
    made = presets.routing(spec.model_copy(update=true), 0)
    targets = (
        presets.Target("load deviation %", load_deviation(made), "here", "skew"),
        presets.Target("SRP 16 %", srp(made), "here", "locality"),
    )
    assert presets.fit(spec, targets, 0) == pytest.approx(true, abs=0.03)


def test_every_preset_has_targets():
    assert presets.PUBLISHED.keys() == PRESETS.keys()
    for name, targets in presets.PUBLISHED.items():
        for target in targets:
            if target.parameter:
                assert "tests.benchmarks.presets" in PRESETS[name].sources[target.parameter]
