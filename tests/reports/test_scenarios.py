"""Scenarios of published figures, and ``moesim validate papers``."""

import json
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from moesim.cli.app import app
from moesim.cli.console import run
from moesim.cluster import load_cluster
from moesim.errors import InputError, UsageError
from moesim.hardware import load_device
from moesim.reports import papers
from moesim.reports.papers import PlannerGain, make_rows, metric_seconds, reductions, run_scenario
from moesim.reports.scenario import (
    Metric,
    Scenario,
    load_scenario,
    scenario_ids,
    scenario_path,
    scenario_schema,
)
from moesim.reports.validation import ValidationRow, summarise
from moesim.schema import Evidence

# S. Go, D. Mahajan, arXiv 2502.06643v1, section 5: gains over contiguous placement, in per cent.
MOETUNER = {
    ("single-node", "token-processing-tail"): 36.0,
    ("single-node", "token-processing-average"): 34.8,
    ("single-node", "all-to-all-tail"): 36.3,
    ("single-node", "all-to-all-average"): 35.4,
    ("single-node", "end-to-end-speedup"): 9.3,
    ("two-nodes", "token-processing-tail"): 27.0,
    ("two-nodes", "token-processing-average"): 22.5,
    ("two-nodes", "all-to-all-tail"): 30.5,
    ("two-nodes", "all-to-all-average"): 24.7,
    ("two-nodes", "end-to-end-speedup"): 17.5,
}

SMALL = {
    "schema": "moesim.scenario/1",
    "id": "small",
    "title": "A small one",
    "source": {"authors": "A. Author", "url": "https://example.org/paper", "section": "section 1"},
    "model": "mixtral-8x7b",
    "baseline": "contiguous",
    "planner": "lpt-swap",
    "beside": ["round-robin"],
    "time_limit_s": 5,
    "comm": "chain",
    "phase": "prefill",
    "tokens_per_device": 1024,
    "workload": {"like": "mixtral-8x7b", "seeds": 2, "holdout": 0.5, "tokens": 2048},
    "setups": [{"id": "node", "title": "4 x H100", "cluster": "4xh100_sxm"}],
    "tolerance": 0.5,
    "tolerance_reason": "so that all passes",
    "figures": [
        {
            "setup": "node",
            "metric": "token-processing-average",
            "reference": 0.1,
            "where": "table 1",
        },
        {
            "setup": "node",
            "metric": "end-to-end-speedup",
            "reference": 0.2,
            "where": "table 1",
            "not_covered": "no attention",
        },
    ],
    "assumptions": [{"id": "routing", "text": "made up"}],
    "sensitivity": {"setup": "node", "points": [{"skew": 1.0, "affinity": 0.5}]},
}


@pytest.fixture
def scenario_file(tmp_path):
    def write(**changes):
        path = tmp_path / "scenario.yaml"
        path.write_text(yaml.safe_dump(json.loads(json.dumps(SMALL | changes))))
        return path

    return write


@pytest.fixture
def verb(capsys):
    def call(*arguments):
        code = run(app, ["validate", "papers", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def cost(compute_s, dispatch_s, combine_s, pair_s):
    return SimpleNamespace(
        layer_compute_s=np.array(compute_s),
        layer_dispatch_s=np.array(dispatch_s),
        layer_combine_s=np.array(combine_s),
        tail_pair_s=pair_s,
    )


def test_moetuner_references_are_those_of_the_paper():
    scenario = load_scenario(scenario_path("moetuner"))
    found = {(figure.setup, figure.metric.value): figure for figure in scenario.figures}
    assert {key: figure.reference for key, figure in found.items()} == pytest.approx(
        {key: value / 100 for key, value in MOETUNER.items()}
    )
    assert scenario.source.url == "https://arxiv.org/abs/2502.06643v1"
    assert all(figure.where.startswith("section 5") for figure in scenario.figures)
    assert {key for key, figure in found.items() if figure.not_covered} == {
        ("single-node", "end-to-end-speedup"),
        ("two-nodes", "end-to-end-speedup"),
    }
    # Written down before; widening it to pass is not an option.
    assert scenario.tolerance == 0.15
    assert all(figure.tolerance is None for figure in scenario.figures)
    assert (scenario.baseline, scenario.planner, scenario.comm) == (
        "contiguous",
        "moetuner-free",
        "chain",
    )
    # The generator's likeness as it is: nothing of it can be set for the rows.
    assert set(scenario.workload.to_dict()) == {"like", "seeds", "holdout", "tokens"}
    assert (scenario.workload.like, scenario.workload.tokens) == ("mixtral-8x7b", None)
    assert scenario.workload.seeds > 1


@pytest.mark.parametrize(
    ("setup", "device", "group", "nodes"),
    [("single-node", "h100_sxm", 2, 1), ("two-nodes", "h200_sxm", 4, 2)],
)
def test_moetuner_ranks_are_groups_of_gpus(setup, device, group, nodes):
    path = scenario_path("moetuner")
    asked = {setup.id: setup for setup in load_scenario(path).setups}[setup]
    cluster = load_cluster(path.parent / asked.cluster)
    gpu = load_device(device)
    assert (cluster.device.name, cluster.devices, cluster.nodes) == (device, 4, nodes)
    assert cluster.speed_factors.tolist() == [group] * 4
    near = group * gpu.scale_up.bandwidth.si
    far = group * gpu.nic.bandwidth.si
    node = cluster.domain_of_device
    assert len(set(node.tolist())) == nodes
    same = node[:, None] == node
    expected = np.where(same, near, far)
    np.fill_diagonal(expected, np.inf)
    np.testing.assert_allclose(cluster.pair_bandwidth_bytes_per_s, expected)
    assert near / far == pytest.approx(9)  # the paper: InfiniBand is about 9 times slower
    latency_s = np.where(same, gpu.scale_up.latency.si, gpu.nic.latency.si)
    np.fill_diagonal(latency_s, 0)
    np.testing.assert_allclose(cluster.pair_latency_s, latency_s)


def test_metrics_of_known_costs():
    baseline = cost([4.0, 2.0], [1.0, 3.0], [0.0, 1.0], 10.0)
    planned = cost([3.0, 2.0], [1.0, 2.0], [0.0, 1.0], 5.0)
    assert metric_seconds(baseline) == {
        Metric.TOKEN_TAIL: 4.0,
        Metric.TOKEN_AVERAGE: 3.0,
        Metric.ALL_TO_ALL_TAIL: 4.0,
        Metric.ALL_TO_ALL_AVERAGE: 2.5,
        Metric.ALL_TO_ALL_PAIR: 10.0,
    }
    assert reductions(planned, baseline) == pytest.approx(
        {
            Metric.TOKEN_TAIL: 1 / 4,
            Metric.TOKEN_AVERAGE: 1 / 6,
            Metric.ALL_TO_ALL_TAIL: 1 / 4,
            Metric.ALL_TO_ALL_AVERAGE: 1 / 5,
            Metric.ALL_TO_ALL_PAIR: 1 / 2,
        }
    )
    assert set(reductions(planned, cost([0.0], [0.0], [0.0], 0.0)).values()) == {0.0}


def test_rows_are_means_over_seeds(scenario_file):
    scenario = load_scenario(scenario_file(tolerance=0.15))
    gain = PlannerGain(
        gains={Metric.TOKEN_AVERAGE: np.array([0.2, 0.4])},
        balance=np.ones(2),
        remote_fraction=np.ones(2),
        outcomes=("heuristic",) * 2,
        evidence=Evidence.ASSUMED,
    )
    covered, other = make_rows(scenario, {"node": {"lpt-swap": gain}})
    assert covered.id == "small:node:token-processing-average"
    assert covered.source == "https://example.org/paper, table 1"
    assert (covered.predicted, covered.error) == pytest.approx((0.3, 0.2))
    assert (covered.ok, covered.evidence, covered.error_kind) == (
        False,
        Evidence.ASSUMED,
        "difference",
    )
    assert "0.200 … 0.400 over 2 seeds" in covered.note
    assert (other.predicted, other.error, other.ok, other.evidence) == (None,) * 4
    assert other.note == "not covered: no attention"


def test_errors_and_summary():
    row = ValidationRow("a", 0.4, 0.3, 0.1, "difference", Evidence.ASSUMED, "somewhere")
    twice = replace(row, id="b", predicted=0.8, error_kind="relative")
    none = replace(row, id="c", predicted=None, evidence=None)
    assert (row.error, twice.error, none.error) == (pytest.approx(-0.1), pytest.approx(1.0), None)
    assert replace(row, tolerance=0.11).ok is True
    assert replace(row, tolerance=0.09).ok is False
    assert (twice.ok, none.ok) == (False, None)
    assert summarise([replace(row, tolerance=0.11), twice, none]) == {
        "n": 3,
        "covered": 2,
        "ok": 1,
        "mape": pytest.approx((0.25 + 1.0) / 2),
        "median_ape": pytest.approx(0.625),
        "p90_ape": pytest.approx(0.25 + 0.9 * 0.75),
        "interval_coverage": None,
    }
    assert summarise([none])["mape"] is None
    assert set(row.to_dict()) == {"error", "ok"} | {field.name for field in fields(row)}


def test_same_seed_same_prediction(scenario_file):
    path = scenario_file()
    first, again, other = (run_scenario(path, seed=seed) for seed in (0, 0, 7))
    assert first.rows == again.rows
    assert first.sensitivity == again.sensitivity
    assert first.rows[0].predicted != other.rows[0].predicted
    gains = first.planners["node"]
    assert set(gains) == {"contiguous", "lpt-swap", "round-robin"}
    assert all((values == 0).all() for values in gains["contiguous"].gains.values())
    assert gains["lpt-swap"].balance.shape == (2,)
    assert gains["round-robin"].balance.shape == (1,)  # beside: on the first trace
    preset, skewed = first.sensitivity
    assert (preset.preset, skewed.preset) == (True, False)
    assert preset.gains[Metric.TOKEN_AVERAGE] == gains["lpt-swap"].gains[Metric.TOKEN_AVERAGE][0]
    assert skewed.baseline_balance < preset.baseline_balance
    assert skewed.gains[Metric.TOKEN_AVERAGE] > preset.gains[Metric.TOKEN_AVERAGE] > 0


def test_every_bundled_scenario_loads():
    assert "moetuner" in scenario_ids()
    for name in scenario_ids():
        if scenario_schema(scenario_path(name)) != Scenario.schema_id:
            continue  # tests/offload/test_papers.py
        scenario = load_scenario(scenario_path(name))
        assert scenario.id == name
        for setup in scenario.setups:
            if setup.cluster.endswith(".yaml"):
                load_cluster(scenario_path(name).parent / setup.cluster)


FIGURE = SMALL["figures"][0]


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"schema": "moesim.scenario/2"}, "schema", "moesim.scenario/1"),
        ({"colour": 1}, "colour", "unknown key"),
        ({"title": ""}, "title", "at least 1 character"),
        ({"planner": "magic"}, "planner", "moetuner-free"),
        ({"planner": "contiguous"}, "planner", "nothing to compare"),
        ({"beside": ["magic"]}, "beside[0]", "no such planner"),
        ({"comm": "pigeon"}, "comm", "chain"),
        ({"figures": []}, "figures", "at least 1 item"),
        ({"figures": [FIGURE, FIGURE]}, "figures", "used twice"),
        ({"figures": [FIGURE | {"setup": "moon"}]}, "figures[0].setup", "no such set-up"),
        ({"figures": [FIGURE | {"metric": "charm"}]}, "figures[0].metric", "charm"),
        ({"figures": [FIGURE | {"reference": ".nan"}]}, "figures[0].reference", "number"),
        ({"figures": [FIGURE | {"metric": "end-to-end-speedup"}]}, "not_covered", "not modelled"),
        ({"figures": [FIGURE | {"tolerance": 0}]}, "figures[0].tolerance", "greater than 0"),
        ({"workload": SMALL["workload"] | {"like": "x"}}, "workload.like", "mixtral-8x7b"),
        ({"workload": SMALL["workload"] | {"skew": 2}}, "workload.skew", "unknown key"),
        ({"sensitivity": {"setup": "moon", "points": []}}, "sensitivity.points", "at least 1"),
        ({"assumptions": []}, "assumptions", "at least 1 item"),
    ],
)
def test_bad_scenario_files(scenario_file, changes, field, words):
    path = scenario_file(**changes)
    with pytest.raises(InputError) as caught:
        load_scenario(path)
    assert caught.value.file == str(path)
    assert field in caught.value.field
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model": "no-such-model"}, "model"),
        ({"setups": [SMALL["setups"][0] | {"cluster": "4xnothing"}]}, "setups[0].cluster"),
    ],
)
def test_names_that_a_scenario_gets_wrong(scenario_file, changes, field):
    path = scenario_file(**changes)
    with pytest.raises(InputError) as caught:
        run_scenario(path)
    assert (caught.value.file, caught.value.field) == (str(path), field)


def test_unknown_scenario():
    with pytest.raises(UsageError, match=r"known are .*moetuner"):
        scenario_path("no-such-paper")


def test_json_within_tolerance(verb, scenario_file, tmp_path):
    code, out, err = verb("--data", scenario_file(), "--json", "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert (result["schema"], result["ok"]) == ("moesim.validate/1", True)
    keys = {"id", "reference", "predicted", "error", "tolerance", "ok", "evidence", "source"}
    assert all(keys <= row.keys() for row in result["rows"])
    assert [row["ok"] for row in result["rows"]] == [True, None]
    assert (result["summary"]["n"], result["summary"]["covered"], result["summary"]["ok"]) == (
        2,
        1,
        1,
    )
    (scenario,) = result["scenarios"]
    assert scenario["assumptions"] == {"routing": "made up"}
    assert len(scenario["planners"]["node"]["lpt-swap"]["reduction"]["all-to-all-pair"]) == 2
    written = Path(result["files"]["result"])
    assert written.parent == tmp_path / "out"
    assert json.loads(written.read_text()) == result


def test_outside_tolerance_is_exit_code_6(verb, scenario_file):
    path = scenario_file(tolerance=0.0001)
    code, out, err = verb("--data", path, "--json", "--quiet")
    assert (code, err) == (6, "")
    result = json.loads(out)
    assert (result["ok"], result["rows"][0]["ok"]) == (False, False)
    assert result["summary"]["ok"] == 0


def test_text_names_what_is_assumed(verb, scenario_file, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    path = scenario_file(tolerance=0.0001, title="[bold]A small one")
    code, out, err = verb("--data", path)
    assert code == 6
    assert "outside the tolerance: 1 of 1 predicted figures" in err
    for words in (
        "[bold]A small one",
        "synthetic traces (like mixtral-8x7b)",
        "evidence: assumed",
        "outside",
        "not covered: no attention",
        "routing: made up",
        "0 of 1 predicted figures within the tolerance; 1 of 2 not covered.",
        "preset",
        "round-robin",
    ):
        assert words in out
    assert "…" not in out  # nothing is cut off at 80 columns


def test_options_that_do_not_go_together(verb, scenario_file, monkeypatch):
    def never(*_, **__):
        raise AssertionError

    monkeypatch.setattr(papers, "run_scenario", never)
    assert verb("--data", scenario_file(), "--only", "moetuner")[0] == 2
    assert verb("--only", "no-such-paper")[0] == 2
    assert verb("--only", ",")[0] == 2
