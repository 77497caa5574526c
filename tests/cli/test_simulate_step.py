"""``moesim simulate step`` from the command line."""

from __future__ import annotations

import math

import pytest

from .commands import moesim, tiny_model, tiny_trace

KEYS = {
    "name", "flops", "bytes", "op_per_byte", "time_s", "lo_s", "hi_s", "bound", "device",
    "evidence",
}  # fmt: skip
BOUNDS = {"memory", "compute", "link", "latency"}


def check_step(data):
    """What holds for every step."""
    assert (data["schema"], data["ok"]) == ("moesim.simulate/1", True)
    assert data["step_s"] == pytest.approx(sum(op["time_s"] for op in data["ops"]))
    assert data["tokens_per_s"] > 0
    assert data["tokens_per_s_per_device"] * data["devices"] == pytest.approx(data["tokens_per_s"])
    assert data["memory_bytes_per_device"] == pytest.approx(sum(data["memory"].values()))
    assert 0 < data["lo_s"] < data["hi_s"]
    for op in data["ops"]:
        assert op.keys() >= KEYS
        assert all(math.isfinite(op[key]) for key in ("flops", "bytes", "time_s", "lo_s", "hi_s"))
        assert op["time_s"] > 0
        assert 0 < op["lo_s"] <= op["hi_s"]
        assert op["bound"] in BOUNDS
        if op["flops"]:
            assert op["op_per_byte"] == pytest.approx(op["flops"] / op["bytes"])


@pytest.mark.parametrize("cost", ["fitted", "roofline"])
@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_a_step(capsys, phase, cost):
    answer = moesim(
        capsys, "simulate", "step", "--model", "deepseek-v3", "--cluster", "8xh200_sxm",
        "--phase", phase, "--batch", 16, "--dp", 8, "--cost", cost, "--json",
    )  # fmt: skip
    assert answer.code == 0
    data = answer.json
    check_step(data)
    assert data["layout"] == {
        "tp": 1, "dp": 8, "ep": 8, "moe_tp": 1, "pp": 1, "dispatch": "deepep", "redundant": 0
    }  # fmt: skip
    experts = next(op for op in data["ops"] if op["name"] == "moe.experts")
    assert experts["evidence"] == ("fitted" if cost == "fitted" else "spec")
    if cost == "roofline":
        assert {op["kernel"] for op in data["ops"]} == {"roofline"}


def test_fitted_steps_are_slower_than_rooflines(capsys):
    words = ["simulate", "step", "--model", "qwen3-235b-a22b-fp8", "--cluster", "8xh100_sxm"]
    fitted = moesim(capsys, *words, "--json").json
    roofline = moesim(capsys, *words, "--cost", "roofline", "--json").json
    assert fitted["step_s"] > roofline["step_s"]


@pytest.fixture
def tiny(tmp_path):
    tiny_model(tmp_path)
    tiny_trace(tmp_path / "trace")
    return tmp_path


def test_a_trace_and_a_plan(capsys, tiny):
    """A plan for skewed routing makes the same step faster, or at least no slower."""
    planned = moesim(
        capsys, "plan", tiny / "trace", "--model", tiny / "config.json", "--cluster",
        "2xh100_sxm", "--planner", "lpt", "--export", "none", "--out", tiny / "plan", "--json",
    )  # fmt: skip
    assert planned.code == 0
    words = [
        "simulate", "step", "--model", tiny / "config.json", "--cluster", "2xh100_sxm", "--dp", 2,
        "--phase", "prefill", "--batch", 8, "--context", 4096, "--cost", "roofline", "--trace",
        tiny / "trace", "--json",
    ]  # fmt: skip
    before = moesim(capsys, *words).json
    after = moesim(capsys, *words, "--plan", tiny / "plan" / "plan.json").json
    check_step(after)
    assert after["routing"] == "trace"
    assert after["step_s"] < before["step_s"]


def test_for_a_person(capsys, tmp_path):
    answer = moesim(
        capsys, "simulate", "step", "--model", "mixtral-8x7b", "--cluster", "8xh100_sxm",
        "--out", tmp_path / "step.json",
    )  # fmt: skip
    assert answer.code == 0
    assert "A decode step of mixtral-8x7b takes" in answer.out
    assert "evidence" in answer.out
    assert (tmp_path / "step.json").is_file()


def test_pipeline_stages_share_memory_and_keep_the_throughput(capsys):
    words = ["simulate", "step", "--model", "qwen3-235b-a22b", "--json", "--batch", 64]
    two = moesim(capsys, *words, "--cluster", "8xh200_sxm", "--pp", 2, "--tp", 4).json
    check_step(two)
    assert two["layout"]["pp"] == 2
    assert any(op["name"] == "stage.send" for op in two["ops"])
