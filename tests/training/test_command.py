"""``moesim simulate training`` from the command line."""

import math

import pytest

from ..cli.commands import moesim

KEYS = {
    "name", "flops", "bytes", "op_per_byte", "time_s", "lo_s", "hi_s", "bound", "device",
    "evidence",
}  # fmt: skip
COMMON = ("simulate", "training", "--model", "mixtral-8x7b", "--cluster", "4x8xh800_sxm")


def test_an_iteration(capsys):
    answer = moesim(capsys, *COMMON, "--pp", 2, "--global-batch", 32, "--json")
    assert answer.code == 0
    data = answer.json
    assert (data["schema"], data["ok"]) == ("moesim.simulate/1", True)
    assert data["memory_bytes_per_device"] == pytest.approx(sum(data["memory"].values()))
    assert data["tokens_per_s"] == pytest.approx(32 * 4096 / data["step_s"])
    assert 0 < data["mfu"] < 1
    assert {"forward", "backward"} == {op["way"] for op in data["ops"]}
    for op in data["ops"]:
        assert op.keys() >= KEYS
        assert all(math.isfinite(op[key]) for key in ("flops", "bytes", "time_s", "lo_s", "hi_s"))
        assert op["time_s"] > 0


def test_what_a_person_reads(capsys):
    answer = moesim(capsys, *COMMON, "--pp", 2, "--system", "megatron", "--tp", 4)
    assert answer.code == 0
    for part in ("An iteration of mixtral-8x7b takes", "utilisation", "optimizer", "backward"):
        assert part in answer.out


def test_a_bad_layout_ends_with_usage(capsys):
    answer = moesim(capsys, *COMMON, "--sp-attention", 3, "--json")
    assert answer.code == 2
    assert "--sp-attention 3" in answer.json["error"]["message"]
