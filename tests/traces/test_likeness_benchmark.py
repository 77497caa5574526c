"""The command that fits likenesses: its statistics by definition, its fit, its file."""

import json
from pathlib import Path

import numpy as np
import pytest

from moesim.traces import likeness
from moesim.traces.bundle import open_trace
from moesim.traces.generate import generate
from moesim.traces.likeness import likenesses
from moesim.traces.synthetic_spec import GeneratorSpec
from tests.benchmarks import likeness as command
from tests.benchmarks import likeness_table, routing_statistics
from tests.benchmarks.routing_statistics import load_deviation, ranks, statistic

SPEC = GeneratorSpec(
    layers=2, experts=8, top_k=2, tokens=3 * 512, request_tokens=512, length_spread=0, affinity=0.8
)


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trace") / "t"
    generate(SPEC, folder, seed=3)
    return open_trace(folder)


def prompts(trace):
    """The experts of each token, for every layer and every sample of 129 tokens."""
    for layer in np.asarray(trace.routing):
        for request in layer.reshape(3, 512, 2):
            for first in range(0, 512, 129):
                yield request[first : first + 129].tolist()


def test_srp_by_trying_every_threshold(trace):
    windows = [
        np.count_nonzero(request[p : p + 16] == e)
        for layer in np.asarray(trace.routing)
        for request in layer.reshape(3, 512, 2)
        for e in range(8)
        for p in range(497)
    ]
    best, ratio = 0, 0
    for threshold in range(17):
        on = [n for n in windows if n >= threshold]
        precision, recall = sum(on) / max(1, 16 * len(on)), sum(on) / sum(windows)
        score = 2 * precision * recall / max(precision + recall, 1e-9)
        best, ratio = max((best, ratio), (score, 16 * len(on) / sum(windows)))
    assert statistic("srp-16", trace, SPEC, 3) == pytest.approx(100 * best)
    assert statistic("size-ratio-16", trace, SPEC, 3) == pytest.approx(ratio)


def test_lru_by_keeping_a_cache(trace):
    hits, accesses = 0, 0
    for tokens in prompts(trace):
        cache = []  # most recent first; of a token, the expert named last
        for token in tokens:
            accesses += 2
            hits += sum(e in cache for e in token)
            cache = (token[::-1] + [e for e in cache if e not in token])[:4]
    assert statistic("lru-4", trace, SPEC, 3) == pytest.approx(100 * hits / accesses, abs=1e-9)


def test_oracle_by_keeping_what_is_needed_soonest(trace):
    hits, accesses = 0, 0
    for tokens in prompts(trace):
        cache = set()
        for t, token in enumerate(tokens):
            accesses += 2
            hits += len(cache & set(token))
            later = tokens[t + 1 :]
            due = {
                e: next((d for d, coming in enumerate(later) if e in coming), len(later))
                for e in cache | set(token)
            }
            cache = set(sorted(due, key=due.get)[:3])
    assert statistic("oracle-3", trace, SPEC, 3) == pytest.approx(100 * hits / accesses, abs=1e-9)


def test_deviation_and_ranks_by_hand():
    # One layer, two domains of two tokens, top-1: experts 0, 0 and 0, 1 of 64; 32 ranks of two.
    loads = np.zeros((1, 2, 64), dtype=int)
    loads[0, 0, 0], loads[0, 1, :2] = 2, 1
    assert load_deviation(loads, 1) == pytest.approx(100 * np.std([0.75, 0.25] + [0] * 62))
    assert ranks(loads, lambda load: load.max(axis=2)) == 2


def test_unions_and_loads_of_a_batch(monkeypatch):
    monkeypatch.setattr(routing_statistics, "SERVED_TOKENS", 40)
    # One topic for all and no randomness but which of two experts comes: top-2 of 2.
    spec = GeneratorSpec(layers=1, experts=2, top_k=2, tokens=1, domains=3)
    assert statistic("union-8", None, spec, 0) == 2
    # 32 requests of 40 tokens choose 2 experts each time, which are loaded once.
    assert statistic("batch-bypass-2", None, spec, 0) == pytest.approx(100 * 2 / (32 * 40 * 2))
    even = GeneratorSpec(layers=2, experts=64, top_k=4, tokens=1)
    expected = 64 * (1 - (1 - 4 / 64) ** 16)
    assert statistic("union-16", None, even, 0) == pytest.approx(expected, rel=0.03)


def test_least_squares_finds_the_parameters_that_made_the_targets(monkeypatch):
    monkeypatch.setattr(command, "FIT_TOKENS", 4096)
    true = {"skew": 0.6, "affinity": 0.8, "request_topics": 2.5, "locality": 0.7}
    names = ("load-deviation", "srp-16", "sch-4", "sch-16", "sch-64", "sch-256")
    like = likenesses().models["openmoe-8b"]
    like = like.model_copy(update={"layers": 2, "moe_layers": (), "experts": 16})
    made = like.model_copy(update={"parameters": command.completed(true)})
    spec = made.spec("x").model_copy(update={"tokens": 4096})
    values = command.measure(spec, list(names), command.FIT_SEED)
    figures = [
        likeness.Figure(statistic=n, published=v, role="fitted", source="srp-1")
        for n, v in zip(names, values, strict=True)
    ]
    like = like.model_copy(update={"figures": tuple(figures), "parameters": {}})
    found = command.fit("x", like, lambda text: None)
    for parameter, value in true.items():
        assert found[parameter] == pytest.approx(value, rel=0.12), parameter


def test_command_shows_and_stores(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "TOKENS", 2048)
    monkeypatch.setattr(command, "SEEDS", (0,))
    command.main(["--model", "openmoe-8b", "--json"])
    data = json.loads(capsys.readouterr().out)
    assert data["schema"] == "moesim.benchmark-likeness/1"
    rows = {row["statistic"]: row for row in data["models"]["openmoe-8b"]["figures"]}
    assert rows["srp-16"]["published"] == 28.77
    assert rows["srp-16"]["generated"] == pytest.approx(28.77, abs=4)
    command.main(["--model", "openmoe-8b"])
    assert "residual" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.main(["--model", "gpt-7"])


def test_file_is_as_the_command_writes_it(tmp_path, monkeypatch):
    stored = Path(likeness.__file__).with_name(likeness.FILE).read_text(encoding="utf-8")
    monkeypatch.setattr(likeness, "__file__", str(tmp_path / "likeness.py"))
    command.write(likenesses().to_dict())
    assert (tmp_path / likeness.FILE).read_text(encoding="utf-8") == stored


def test_page_is_made_from_the_file():
    page = Path(likeness.__file__).with_suffix(".md").read_text(encoding="utf-8")
    assert page == likeness_table.markdown(likenesses())


def test_every_statistic_is_explained():
    kinds = {
        f.statistic.rpartition("-")[0] for m in likenesses().models.values() for f in m.figures
    }
    explained = " ".join([*likenesses().statistics, *likenesses().statistics.values()])
    for kind in kinds:
        assert kind.rpartition("-")[2] in explained, kind
    assert routing_statistics.RANKS == 32
