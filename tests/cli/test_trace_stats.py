"""The verb ``trace stats``, and the benchmark command."""

import json
import subprocess
import sys

import numpy as np
import pytest
import typer

from moesim.cli.console import run
from moesim.cli.trace_stats import stats
from moesim.errors import MissingExtraError
from moesim.traces import statistics
from moesim.traces.bundle import open_trace, sample_path, write_trace


@pytest.fixture
def verb(capsys):
    app = typer.Typer()
    app.command()(stats)

    def call(*arguments):
        code = run(app, [str(word) for word in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_json_of_the_sample(verb, tmp_path):
    code, out, err = verb("--json", "--window-tokens", 10_000, "--out", tmp_path)
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert (result["schema"], result["ok"]) == ("moesim.trace/1", True)
    assert result["assignments"] == 8 * 43008 * 4
    assert result["ignored"] == 0
    assert result["drift"]["windows"] == 5
    assert len(result["mutual_information_bits"]) == 7
    assert sum(d["assignments"] for d in result["domains"].values()) == result["assignments"]
    trace = open_trace(sample_path())
    loads = statistics.loads(trace)
    assert result["loads"] == loads.tolist()
    np.testing.assert_allclose(
        result["imbalance"]["max_over_mean"], loads.max(axis=1) / loads.mean(axis=1)
    )
    assert json.loads((tmp_path / "statistics.json").read_text()) == result
    for name in ("loads", "windowed_loads", "transitions", "coactivation"):
        assert result["files"][name] == str(tmp_path / f"{name}.npy")
    np.testing.assert_array_equal(
        np.load(tmp_path / "transitions.npy"), statistics.transitions(trace)
    )


def test_text_of_a_short_ragged_trace(verb, tmp_path):
    routing = np.arange(2 * 10 * 2).reshape(2, 10, 2) % 5
    write_trace(
        tmp_path / "t", routing, model="tiny", experts=5, source="test", moe_layers=(3, 4),
        valid_k=np.ones((2, 10)),
    )  # fmt: skip
    code, out, err = verb(tmp_path / "t")
    assert (code, err) == (0, "")
    assert "tiny: 2 MoE layers, 5 experts, top-2, 10 tokens" in out
    assert "20 token assignments, 20 entries ignored" in out
    assert "–" in out  # one window has no drift
    assert "domain" not in out


def test_without_pyarrow_the_domains_are_left_out(verb, monkeypatch):
    def missing(*_, **__):
        raise MissingExtraError("pyarrow", "parquet", "reading requests.parquet")

    monkeypatch.setattr(statistics, "domain_loads", missing)
    code, out, err = verb("--json")
    assert code == 0
    assert json.loads(out)["domains"] == {}
    assert "pip install 'moesim[parquet]'" in err


def test_errors(verb, tmp_path):
    code, out, _ = verb(tmp_path / "none", "--json")
    assert code == 4
    assert json.loads(out)["error"]["file"] == str(tmp_path / "none")
    assert verb("--window-tokens", 0)[0] == 2


def test_benchmark_command():
    command = [sys.executable, "-m", "tests.benchmarks.statistics", "--json", "--repeats", "1"]
    command += ["--tokens", "600", "--layers", "2", "--experts", "16", "--top-k", "2"]
    speed = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert speed["assignments"] == 2400
    assert speed["loads_speed_over_bincount"] > 0
    memory = json.loads(
        subprocess.run([*command, "--memory"], check=True, capture_output=True).stdout
    )
    assert memory["file_bytes"] == 2400
    assert memory["peak_rss_bytes"] < 2**30
