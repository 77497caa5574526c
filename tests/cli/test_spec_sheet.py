"""A device that exists only as a spec sheet: in a step and in a plan, and evidence says so."""

from __future__ import annotations

import re

import pytest

from .commands import moesim, tiny_model, tiny_trace

DEVICE = """\
schema: moesim.device/1
name: next_gpu
title: A GPU that nobody has measured
vendor: Someone
kind: gpu
peak:
  bf16: {value: 1500 TFLOP/s, source: sheet}
  fp8: {value: 3000 TFLOP/s, source: sheet}
memory:
  capacity: {value: 192 GB, source: sheet}
  bandwidth: {value: 6 TB/s, source: sheet}
scale_up:
  name: Fabric
  topology: switch
  domain_devices: 8
  bandwidth: {value: 600 GB/s, source: sheet}
  latency: {value: 3 us, source: sheet}
cores: {value: 160, source: sheet}
tdp: {value: 900 W, source: sheet}
sources:
  sheet: {title: The sheet}
"""
CLUSTER = """\
schema: moesim.cluster/1
name: next
device: ./next_gpu.yaml
nodes: 1
devices_per_node: {devices}
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "next_gpu.yaml").write_text(DEVICE)
    (tmp_path / "eight.yaml").write_text(CLUSTER.format(devices=8))
    (tmp_path / "two.yaml").write_text(CLUSTER.format(devices=2))
    tiny_model(tmp_path)
    tiny_trace(tmp_path / "trace")
    return tmp_path


def test_a_step(folder, capsys):
    words = ["simulate", "step", "--model", "deepseek-v3", "--dp", 8, "--batch", 64, "--json"]
    new = moesim(capsys, *words, "--cluster", folder / "eight.yaml").json
    known = moesim(capsys, *words, "--cluster", "8xh200_sxm").json
    assert (new["evidence"], new["device"]) == ("spec", "next_gpu")
    assert new["energy"]["evidence"] == "spec"
    experts, measured = (
        next(op for op in data["ops"] if op["name"] == "moe.experts") for data in (new, known)
    )
    assert (experts["evidence"], measured["evidence"]) == ("spec", "fitted")
    assert experts["kernel"] != "roofline"
    # A quarter more bandwidth, and efficiencies of others: not far from what that makes.
    assert 0.5 < experts["time_s"] / (measured["time_s"] * 4.8 / 6) < 1.5
    assert experts["hi_s"] / experts["lo_s"] > measured["hi_s"] / measured["lo_s"]


def test_a_plan(folder, capsys):
    answer = moesim(
        capsys, "plan", folder / "trace", "--model", folder / "config.json", "--cluster",
        folder / "two.yaml", "--planner", "lpt", "--export", "none", "--out", folder / "plan",
        "--json",
    )  # fmt: skip
    assert answer.code == 0
    assert answer.json["evidence"] == "spec"
    assert "(spec)" in answer.json["kernels"]["experts"]
    objective = answer.json["objective"]
    assert objective["lo"] < objective["hi"]
    assert objective["lower_bound"] <= objective["value"]


def test_a_plan_on_recalled_figures_is_assumed(folder, capsys):
    """The weakest evidence of what went into a price, not of what could have."""
    sheet = (folder / "next_gpu.yaml").read_text()
    (folder / "next_gpu.yaml").write_text(
        re.sub(
            r"(bandwidth: \{value: [^,]+, source: \w+)", r"\1, evidence: assumed", sheet, count=1
        )
    )
    words = ["plan", folder / "trace", "--model", folder / "config.json", "--planner", "lpt"]
    words += ["--cluster", folder / "two.yaml", "--tokens-per-device", 64, "--out", folder / "out"]
    words += ["--cost", "roofline"]
    answer = moesim(capsys, *words, "--json").json
    assert answer["kernels"]["experts"] == "roofline (assumed)"
    assert answer["evidence"] == "assumed"
