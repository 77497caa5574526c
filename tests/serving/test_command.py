"""``moesim simulate serving`` from the command line."""

from __future__ import annotations

import json
import math

import pytest

from tests.cli.commands import moesim, tiny_model

LATENCIES = {"ttft", "tpot", "itl", "e2e", "queue"}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


def serve(capsys, config, *words):
    return moesim(
        capsys, "simulate", "serving", "--model", config, "--cluster", "2xh100_sxm", "--isl", 200,
        "--osl", 20, *words, "--json",
    )  # fmt: skip


def check(data):
    """What holds for every run."""
    assert (data["schema"], data["ok"], data["simulation"]) == (
        "moesim.simulate/1",
        True,
        "serving",
    )
    assert data["tokens_per_s_per_device"] * data["devices"] == pytest.approx(data["tokens_per_s"])
    assert 0 < data["ttft_lo_s"] <= data["ttft_s"] <= data["ttft_hi_s"]
    assert 0 < data["tpot_lo_s"] <= data["tpot_s"] <= data["tpot_hi_s"]
    if data["load"]["concurrency"]:
        assert data["tokens_per_s_lo"] <= data["tokens_per_s"] <= data["tokens_per_s_hi"]
    assert data["latencies_s"].keys() == LATENCIES
    for latency in data["latencies_s"].values():
        assert 0 <= latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
        assert math.isfinite(latency["mean"])
    assert 0 < data["busy_share"] <= 1 + 1e-9
    assert 0 < data["kv"]["share_max"] <= 1
    assert data["load"]["requests"] > 0


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm", "trtllm-max-utilization"])
def test_closed_loop(capsys, config, engine):
    answer = serve(capsys, config, "--concurrency", 8, "--engine", engine)
    assert (answer.code, answer.err) == (0, "")
    data = answer.json
    check(data)
    assert data["load"]["requests"] == 80
    assert data["policy"]["name"] == engine
    assert data["steps"] >= 150


def test_open_loop_with_bursts(capsys, config):
    waits = []
    for burstiness in (0.1, 1000):
        data = serve(
            capsys, config, "--rps", 200, "--burstiness", burstiness, "--requests", 400
        ).json
        check(data)
        waits.append(data["latencies_s"]["ttft"]["p99"] - data["latencies_s"]["ttft"]["p50"])
    assert waits[0] > 1.5 * waits[1]


def test_recorded_requests(capsys, config, tmp_path):
    file = tmp_path / "azure.csv"
    file.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,480,10\n2023-11-16 18:17:04.0319600,396,29\n"
    )
    data = serve(capsys, config, "--requests-file", file).json
    check(data)
    assert data["load"]["requests"] == 2
    assert data["load"]["input_tokens_mean"] == 438


def test_prefill_workers_and_timeline(capsys, config, tmp_path):
    trace = tmp_path / "trace.json"
    words = ("--prefill-workers", 2, "--replicas", 2, "--prefill-cluster", "1xh100_sxm")
    answer = serve(capsys, config, "--concurrency", 8, *words, "--trace-out", trace)
    check(answer.json)
    assert answer.json["devices"] == 2 * 1 + 2 * 2
    assert answer.json["prefill_layout"]["tp"] == 1
    assert "written:" in answer.err
    steps = [e for e in json.loads(trace.read_text())["traceEvents"] if e["ph"] == "X"]
    assert {step["pid"] for step in steps} == {1, 2, 3, 4}
    slow = serve(capsys, config, "--concurrency", 8, *words, "--transfer", "10 MB/s").json
    # Of what comes on top of the host time that both have.
    assert slow["ttft_s"] > answer.json["ttft_s"] + 0.05


def test_options_reach_the_simulation(capsys, config):
    base = serve(capsys, config, "--concurrency", 16).json
    other = serve(
        capsys, config, "--concurrency", 16, "--token-budget", 64, "--max-sequences", 4,
        "--mixed-chunk", "--prefix-hit", 0.5, "--lengths", "constant", "--warmup", 16,
        "--ttft", 1e-9,
    ).json  # fmt: skip
    check(other)
    assert other["policy"]["token_budget"] == 64
    assert other["mean_decode_sequences"] <= 4 < base["mean_decode_sequences"]
    assert other["load"]["requests"] == 144
    assert (base["good_share"], other["good_share"]) == (1, 0)


def test_drafts_make_tokens_faster(capsys, config):
    words = ("--concurrency", 1, "--osl", 200)
    plain = serve(capsys, config, *words).json
    drafted = serve(capsys, config, *words, "--draft-tokens", 3, "--acceptance", 0.8).json
    check(drafted)
    assert drafted["steps"] < 0.45 * plain["steps"]


def test_the_same_seed_gives_the_same_run(capsys, config, tmp_path):
    runs = [serve(capsys, config, "--rps", 50, "--seed", seed).json for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2] | {"seed": 1}
    out = tmp_path / "result.json"
    answer = serve(capsys, config, "--rps", 50, "--seed", 1, "--out", out, "--quiet")
    assert answer.err == ""
    assert json.loads(out.read_text()) == runs[0]


def test_what_a_person_reads(capsys, config):
    answer = moesim(
        capsys, "simulate", "serving", "--model", config, "--cluster", "2xh100_sxm", "--dp", 2,
        "--concurrency", 4, "--isl", 100, "--osl", 10, "--ttft", 1, "--tpot", 0.1,
    )  # fmt: skip
    assert answer.code == 0
    for words in ("tokens/s", "per device", "first token", "p99", "KV cache", "good requests/s"):
        assert words in answer.out


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ((), 2, "--concurrency, --rps and --requests-file"),
        (("--rps", 1, "--concurrency", 2), 2, "exactly one"),
        (("--concurrency", 0), 2, "--concurrency must be"),
        (("--rps", -1), 2, "--rps must be"),
        (("--concurrency", 1, "--lengths", "zipf"), 2, "--lengths 'zipf'"),
        (("--concurrency", 1, "--acceptance", 0.5), 2, "--draft-tokens"),
        (("--concurrency", 1, "--draft-tokens", 99), 2, "--draft-tokens must be"),
        (("--concurrency", 1, "--transfer", "1 GB/s"), 2, "--prefill-workers"),
        (("--concurrency", 1, "--prefill-tp", 2), 2, "--prefill-workers"),
        (("--concurrency", 1, "--prefill-workers", 1, "--transfer", "1 GB"), 4, "--transfer"),
        (("--concurrency", 1, "--token-budget", 0), 2, "--token-budget"),
        (("--concurrency", 1, "--memory-share", 2), 2, "--memory-share"),
        (("--concurrency", 1, "--token-budget", 10**9), 2, "--token-budget"),
        (("--concurrency", 1, "--ttft", -1), 2, "--ttft must be"),
        (("--rps", "nan"), 2, "--rps must be"),
        (("--concurrency", 1, "--warmup", 10), 2, "--warmup 10"),
        (("--concurrency", 1, "--tp", 3), 2, "--tp"),
        (("--concurrency", 1, "--prefix-hit", 2), 2, "--prefix-hit must be"),
        (("--rps", 1, "--burstiness", 0), 2, "--burstiness must be"),
        (("--concurrency", 1, "--isl", 4_000_000, "--memory-share", 0.002), 3, "KV cache"),
        (("--requests-file", "nowhere.csv"), 4, "nowhere.csv"),
    ],
)
def test_what_is_refused(capsys, config, words, code, says):
    answer = serve(capsys, config, *words)
    assert answer.code == code
    error = answer.json["error"]
    assert says in error["message"]
    assert "fix:" in error["message"]
