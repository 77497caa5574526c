"""Synthetic traces like real models: the published figures, what is stored, the command."""

import json

import numpy as np
import pytest
import typer

from moesim.cli.console import run
from moesim.cli.trace_synth import synth
from moesim.errors import UsageError
from moesim.model import load_model
from moesim.traces.generate import generate
from moesim.traces.likeness import find_likeness, likenesses
from moesim.traces.validate import validate_trace
from tests.benchmarks.likeness import allowed
from tests.benchmarks.routing_statistics import independent_loads, statistic

NAMES = list(likenesses().models)


def spec_of(name, **update):
    return find_likeness(name).spec(name).model_copy(update=update)


def published(name):
    return {f.statistic: f.published for f in find_likeness(name).figures}


# Cheap ones of each kind: 4, 6 and 16 layers, 16 to 128 experts, top-1 to top-8.
@pytest.mark.parametrize(
    "name",
    ["openmoe-8b", "nllb-moe-54b-decoder", "switch-base-128-encoder", "jamba-mini-1.6"],
)
def test_traces_show_the_published_figures(tmp_path, name):
    spec = spec_of(name, tokens=16_384)
    trace = generate(spec, tmp_path / "trace", seed=11).trace
    figures = published(name)
    # 32 requests instead of thousands: half a point more than the 1.5 of the full size.
    for wanted in ("srp-16", "sch-16"):
        assert statistic(wanted, trace, spec, 11) == pytest.approx(figures[wanted], abs=2)
    deviation = statistic("load-deviation", trace, spec, 11)
    assert deviation == pytest.approx(figures["load-deviation"], rel=0.1)


def test_qwen3_traces_show_the_published_hit_rates(tmp_path):
    # Layers have caches of their own, so eight show what all do.
    spec = spec_of("qwen3-30b-a3b", layers=8, moe_layers=(), tokens=16_384)
    trace = generate(spec, tmp_path / "trace", seed=11).trace
    figures = published("qwen3-30b-a3b")
    for policy in ("lfu", "lru", "oracle"):
        for slots in (8, 16, 64):
            name = f"{policy}-{slots}"
            shown = statistic(name, trace, spec, 11)
            assert shown == pytest.approx(figures[name], abs=2.5), name
    assert statistic("srp-16", trace, spec, 11) == pytest.approx(figures["srp-16"], abs=2)


@pytest.mark.parametrize("name", NAMES)
def test_stored_residuals_are_within_the_goals(name):
    for figure in find_likeness(name).figures:
        assert figure.generated is not None
        limit = allowed(figure)
        if limit is not None:
            assert abs(figure.residual) <= limit, figure.statistic


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_a_source(name):
    like = find_likeness(name)
    sources = like.sources(likenesses().assumptions)
    assert set(sources) == {"shape", *like.parameters}
    for parameter in like.fit:
        assert "fitted" in sources[parameter]
    assert sources["domains"].startswith("assumed")
    assert sources["domain_shift"].startswith(("assumed", "fitted"))
    assert like.spec(name).layers == like.layers
    for figure in like.figures:
        assert figure.source in likenesses().sources


@pytest.mark.parametrize(
    "name", ["qwen3-30b-a3b", "mixtral-8x7b", "olmoe-1b-7b", "deepseek-v2-lite", "deepseek-v3"]
)
def test_shapes_are_those_of_the_model_registry(name):
    model, like = load_model(name), find_likeness(name)
    assert (like.experts, like.top_k) == (model.experts, model.top_k)
    assert like.layers == len(model.moe_layers)


def test_deepseek_is_node_limited_and_as_uneven_as_published(tmp_path):
    spec = spec_of("deepseek-v3", layers=8, moe_layers=(), tokens=32_768)
    trace = generate(spec, tmp_path / "trace", seed=11).trace
    group = np.sort(np.asarray(trace.routing) // 32, axis=2)
    groups_used = 1 + np.count_nonzero(np.diff(group, axis=2), axis=2)
    assert groups_used.max() == 4
    # TensorRT-LLM wide_ep README: imbalance 1.564 of 32 ranks on one dataset.
    shown = statistic("rank-imbalance", trace, spec, 11)
    assert shown == pytest.approx(published("deepseek-v3")["rank-imbalance"], abs=0.2)


def test_loads_of_single_tokens_are_the_loads_of_many_requests(tmp_path):
    spec = spec_of("openmoe-8b", tokens=40_000)
    single = independent_loads(spec, 0).sum(axis=1)
    many = generate(spec.model_copy(update={"request_tokens": 8}), tmp_path / "t", seed=0).loads
    assert np.abs(single - many).max() < 0.15 * single.mean()


def test_unknown_names_list_the_known():
    with pytest.raises(UsageError, match="qwen3-30b-a3b"):
        find_likeness("gpt-7")


@pytest.fixture
def app():
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(synth)
    return app


def test_command_writes_a_trace_that_says_what_it_is(app, tmp_path, capsys):
    out = tmp_path / "trace"
    words = ["--like", "openmoe-8b", "--sequences", "3", "--skew", "1", "--out", str(out)]
    assert run(app, [*words, "--gates", "--json", "--quiet"]) == 0
    captured = capsys.readouterr()
    data = json.loads(captured.out)
    assert captured.err == ""
    assert data["schema"] == "moesim.trace/1"
    assert (data["ok"], data["layers"], data["tokens"]) == (True, 4, 3 * 512)
    assert data["parameters"]["skew"] == 1
    assert data["sources"]["skew"] == "given"
    assert "srp-16" in data["sources"]["locality"]
    assert sorted(data["files"]) == sorted(path.name for path in out.iterdir())
    like = json.loads((out / "manifest.json").read_text())["like"]
    assert like == data["like"]
    assert "not recorded" in like["note"]
    assert like["changed"] == ["skew"]
    row = like["figures"][1]
    assert row["residual"] == pytest.approx(row["generated"] - row["published"], abs=1e-3)
    assert "2505.16056" in row["source"]
    assert validate_trace(out).ok


def test_command_prints_its_residuals_and_repeats_itself(app, tmp_path, capsys):
    for name in "ab":
        words = ["--like", "openmoe-8b", "--tokens", "700", "--seed", "5", "--out"]
        assert run(app, [*words, str(tmp_path / name)]) == 0
    out = capsys.readouterr().out
    assert "residual" in out
    assert "sch-256" in out
    first, second = ((tmp_path / n / "routing.npy").read_bytes() for n in "ab")
    assert first == second
    assert run(app, [*words[:4], "--preset", "openmoe-8b", "--out", str(tmp_path / "c")]) == 0


def test_command_lists_models(app, capsys):
    assert run(app, ["--like", "list"]) == 0
    assert "qwen3-30b-a3b" in capsys.readouterr().out
    assert run(app, ["--like", "list", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["models"]) == NAMES
