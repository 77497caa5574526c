"""Measured serving runs: read, described, fitted, scored."""

import json
import re
from html import escape

import numpy as np
import pytest

from moesim.calibrate.serving_fit import fit_serving
from moesim.calibrate.serving_model import shipped_serving, step_coefficients
from moesim.calibrate.serving_rows import read_runs
from moesim.calibrate.serving_score import (
    Scored,
    describe_runs,
    folds_of,
    held_out,
    predict_runs,
    score_lines,
)
from moesim.calibrate.serving_setups import DESCRIPTORS, HOST_PARTS, TIME_PARTS, RunParts
from moesim.calibrate.smooth_residual import fit_residual
from moesim.cli.app import app
from moesim.cli.console import run
from moesim.errors import InputError
from moesim.hardware import load_device
from moesim.serving.coefficients import NEUTRAL, shipped_coefficients
from tests.calibrate.serving_table import table


@pytest.mark.parametrize(
    ("change", "rule", "sizes"),
    [
        ({}, "stated", (8, 1, 8, 1)),
        ({"moe_tp_size": "1", "moe_ep_size": "8"}, "stated", (8, 1, 1, 8)),
        ({"tp_size": "64", "moe_ep_size": "8"}, "product", (8, 1, 1, 8)),
        (
            {"tp_size": "1", "attention_dp_size": "16", "moe_tp_size": "4", "moe_ep_size": "4"},
            "product",
            (1, 4, 1, 4),
        ),
        (
            {"tp_size": "2", "attention_dp_size": "2", "moe_tp_size": "1", "moe_ep_size": "4"},
            "square",
            (1, 2, 1, 2),
        ),
        ({"tp_size": "36", "moe_tp_size": "36"}, "total", (36, 1, 36, 1)),
        # The columns of a harness that knows no attention data parallelism say what they mean.
        (
            {"tp_size": "4", "attention_dp_size": "", "moe_tp_size": "2", "moe_ep_size": "2"},
            "stated",
            (4, 1, 2, 2),
        ),
    ],
)
def test_layouts_are_understood_by_named_rules(tmp_path, change, rule, sizes):
    runs, refused = read_runs(table(tmp_path, change))
    layout = runs[0].layout
    assert not refused
    assert layout.rule == rule
    assert (layout.tp, layout.dp, layout.moe_tp, layout.ep) == sizes


def test_a_contradiction_is_refused_with_its_reason(tmp_path):
    runs, refused = read_runs(table(tmp_path, {}, {"moe_tp_size": "2"}))
    assert len(runs) == 1
    assert refused[0].id == "r1"
    assert "TP 8 × DP 1" in refused[0].reason


@pytest.mark.parametrize(
    ("change", "word"), [({"isl": "many"}, "isl"), ({"silicon_tpot_ms": "-1"}, "silicon_tpot_ms")]
)
def test_a_broken_number_names_column_and_line(tmp_path, change, word):
    with pytest.raises(InputError, match="number") as caught:
        read_runs(table(tmp_path, {}, change))
    assert caught.value.field == f"{word} (line 3)"


def test_a_table_of_something_else(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="columns are missing"):
        read_runs(path)


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    path = table(
        tmp_path_factory.mktemp("runs"),
        {},
        {"concurrency": "32"},
        {"mode": "disagg"},
        {"model_path": "meta-llama/Llama-3.1-8B", "tp_size": "1", "moe_tp_size": "1"},
        {"model_path": "nobody/knows-it"},
    )
    return describe_runs(read_runs(path)[0])


def test_runs_have_parts_or_a_reason(described):
    runs, refused = described
    assert [run.run.id for run in runs] == ["r0", "r1", "r2", "r3"]
    assert "no model" in refused[0].reason
    for one in runs:
        assert one.tpot.shape == one.ttft.shape == (len(TIME_PARTS) + len(HOST_PARTS),)
        assert np.isfinite(one.tpot).all()
        assert (one.tpot >= 0).all()
    few, many = runs[0].kernels_s, runs[1].kernels_s
    assert few < many
    # Every output token takes a step or more: kinds of steps add up to at least one.
    names = (*TIME_PARTS, *HOST_PARTS)
    steps = dict(zip(names, runs[0].tpot, strict=True))
    assert steps["steps.decode"] + steps["steps.prefill"] >= 1


def synthetic(count, weights, seed=0, factor=1.0, date="2026-01-01", drafts=False, noise=0.0):
    """Runs whose parts are random and whose times follow from known weights."""
    rng = np.random.default_rng(seed)
    runs, _ = read_runs_of(count, date)
    made = []
    for row in runs:
        parts = np.zeros(len(TIME_PARTS) + len(HOST_PARTS))
        parts[: len(TIME_PARTS)] = rng.uniform(1e-4, 5e-3, len(TIME_PARTS))
        parts[len(TIME_PARTS)] = 1.0
        tpot = factor * float(parts[: len(TIME_PARTS)] @ weights)
        tpot *= float(np.exp(noise * rng.standard_normal()))
        measured = row.__class__(**{**vars(row), "tpot_s": tpot, "ttft_s": 10 * tpot})
        made.append(
            RunParts(measured, parts, 8 * parts, rng.uniform(0, 3, len(DESCRIPTORS)), drafts)
        )
    return made


def read_runs_of(count, date):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        changes = [{"concurrency": str(i + 1), "measured_on": date} for i in range(count)]
        return read_runs(table(Path(folder), *changes))


def test_a_fit_finds_common_weights_and_predicts_runs_it_has_not_seen():
    weights = np.full(len(TIME_PARTS), 1.3)
    runs = synthetic(120, weights, noise=0.02)
    predicted = held_out(runs, folds_of(runs, 4, 0))
    off = [abs(one.tpot_s / run.run.tpot_s - 1) for one, run in zip(predicted, runs, strict=True)]
    assert np.median(off) < 0.04
    inside = np.mean([Scored(r, p).inside("tpot") for r, p in zip(runs, predicted, strict=True)])
    assert 0.65 <= inside <= 0.95


def test_a_release_that_drafts_is_found_and_marked():
    weights = np.full(len(TIME_PARTS), 1.0)
    plain = synthetic(60, weights, drafts=True)
    fast = synthetic(20, weights, seed=1, factor=0.5, date="2026-02-02", drafts=True)
    model = fit_serving([*plain, *fast])
    predicted = predict_runs([*plain, *fast], model)
    assert [one.drafts for one in predicted] == [False] * 60 + [True] * 20
    assert model.groups[-1].drafting_log == pytest.approx(np.log(0.5), abs=0.05)


def test_predictions_do_not_look_at_what_they_predict():
    runs = synthetic(40, np.ones(len(TIME_PARTS)))
    model = fit_serving(runs)
    other = [
        RunParts(
            r.run.__class__(**{**vars(r.run), "tpot_s": 99.0, "ttft_s": 99.0}),
            r.tpot,
            r.ttft,
            r.descriptors,
            r.drafts,
        )
        for r in runs
    ]
    assert predict_runs(runs, model) == predict_runs(other, model)


def test_repeats_share_a_fold():
    runs = synthetic(30, np.ones(len(TIME_PARTS)))
    folds = folds_of([*runs, *runs], 5, 0)
    assert folds[:30] == folds[30:]
    assert set(folds) == set(range(5))


def test_far_from_all_rows_the_residual_vanishes():
    rng = np.random.default_rng(0)
    points, values = rng.uniform(0, 1, (50, 3)), rng.normal(0.3, 0.05, 50)
    found = fit_residual(points, values, np.ones(3), amplitude=0.3, noise=0.05, outlier=0.2)
    near, _ = found.predict(points, points[:1])
    far, width = found.predict(points, np.full((1, 3), 50.0))
    assert near[0] == pytest.approx(0.3, abs=0.1)
    assert far[0] == pytest.approx(0.0, abs=1e-9)
    assert width[0] > 0.3


def test_shipped_fits_are_what_the_simulation_takes():
    model = shipped_serving()
    steps = {(fit.engine, fit.family): fit for fit in step_coefficients(model)}
    found = shipped_coefficients("sglang", load_device("h200_sxm"))
    assert found == steps["sglang", "hopper"]
    assert found.evidence == "fitted"
    assert shipped_coefficients("sglang", load_device("gb300")).evidence == "spec"
    assert shipped_coefficients("vllm", load_device("mi300x")).family == ""
    assert shipped_coefficients("vllm", load_device("ascend_910c")) == NEUTRAL


def test_command(tmp_path, capsys):
    path = table(tmp_path, {}, {"concurrency": "16"}, {"mode": "disagg"}, {"moe_tp_size": "3"})
    code = run(app, ["validate", "serving", "--data", str(path), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code in (0, 6)
    assert found["schema"] == "moesim.validate/1"
    ids = [row["id"] for row in found["rows"]]
    assert ids[:2] == ["r0:tpot", "r0:ttft"]
    assert found["summary"]["n"] == 8
    assert found["summary"]["covered"] == 6
    assert found["refused"][0]["id"] == "r3"
    assert all(0 < row["lo"] < row["predicted"] < row["hi"] for row in found["rows"])
    assert 0.005 < found["rows"][0]["predicted"] < 0.05
    assert {line["name"] for line in found["classes"]} >= {"tpot, one pool, MoE", "ttft, one pool"}


def test_page_holds_what_the_result_says_and_escapes_names(tmp_path, capsys):
    hostile = "</script><img src=x onerror=alert(1)>"
    path = table(tmp_path, {"id": hostile}, {"concurrency": "16"}, {"moe_tp_size": "3"})
    page = tmp_path / "page.html"
    code = run(app, ["validate", "serving", "--data", str(path), "--html", str(page), "--json"])
    found, text = json.loads(capsys.readouterr().out), page.read_text()
    assert code in (0, 6)
    assert found["files"] == {"page": str(page)}
    assert "<img" not in text
    shown = [
        point
        for spec in re.findall(r'<script type="application/json">(.*?)</script>', text)
        for point in json.loads(spec)["points"]
    ]
    assert [point["label"].startswith(f"{hostile}:") for point in shown] == [True, False] * 2
    rows = sorted(found["rows"], key=lambda row: not row["id"].endswith("tpot"))
    for row, point in zip(rows, shown, strict=True):
        assert point["x"] == pytest.approx(row["reference"], rel=1e-4)
        assert point["y"] == pytest.approx(row["predicted"], rel=1e-4)
        assert (point["lo"], point["hi"]) == (row["lo"], row["hi"])
    for line in found["classes"]:
        for share in ("median", "mape", "p90", "interval_coverage"):
            assert f"<td>{100 * line[share]:.1f} %</td>" in text
    assert f'<th scope="row">{escape(found["refused"][0]["reason"])}</th><td>1</td>' in text


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--folds", "2", "--leave-one-model-out"], 2),
        (["--folds", "1"], 2),
    ],
)
def test_bad_command_lines(tmp_path, options, code, capsys):
    path = table(tmp_path, {})
    assert run(app, ["validate", "serving", "--data", str(path), *options]) == code
    assert run(app, ["validate", "serving", "--data", str(tmp_path / "none.csv")]) == 4
    assert run(app, ["calibrate", "fit", "--suite", "serving"]) == 2
    capsys.readouterr()


def test_scores_say_whether_goals_are_met(described):
    runs, _ = described
    predicted = predict_runs(runs, shipped_serving())
    lines = score_lines([Scored(r, p) for r, p in zip(runs, predicted, strict=True)])
    assert sum(line["n"] for line in lines if line["quantity"] == "tpot") == 4
    assert all(isinstance(line["ok"], bool) for line in lines)
