"""``moesim kernels check`` and ``select`` through the whole command line."""

from __future__ import annotations

import json

import numpy as np
import pytest

from moesim.kernels.config import GemmConfig
from moesim.kernels.config_table import default_table
from tests.cli.commands import moesim

pytest.importorskip("triton", reason="there is no Triton for this system")


def test_check_reports_facts(capsys, tmp_path):
    page = tmp_path / "page.md"
    marks = "<!-- facts: moesim kernels check --readme -->", "<!-- end of facts -->"
    page.write_text("\n".join(["before", marks[0], "stale facts", marks[1], "after", ""]))
    words = ("--targets", "sm_90a,gfx942", "--only", "permute-count", "--workers", 1, "--json")
    answer = moesim(capsys, "kernels", "check", *words, "--readme", page)
    assert answer.code == 0, answer.err
    data = answer.json
    assert (data["schema"], data["kind"], data["ok"]) == ("moesim.kernels/1", "check", True)
    assert data["targets"] == ["sm_90a", "gfx942"]
    for case in data["cases"]:
        assert case["ok"]
        assert case["name"] == "permute-count"
        assert case["facts"]["spills"] == case["facts"]["stack_bytes"] == 0
        assert case["facts"]["registers"] > 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "stale" not in text
    assert text.count("| `permute-count` |") == 2


def spilling_table(tmp_path):
    """The shipped table with a tile that is far too large in it."""
    data = default_table().to_dict()
    entries = data["targets"]["sm_90a"]["entries"]
    entries[0]["config"] = GemmConfig("tile", 256, 256, 128, 8, 4).to_dict()
    file = tmp_path / "table.json"
    file.write_text(json.dumps(data))
    return file


def test_check_fails_with_a_broken_fact(capsys, tmp_path):
    name = "tile-256x256x128-w8-s4/bf16/down"
    words = ("--targets", "sm_90a", "--only", name, "--workers", 1, "--json")
    answer = moesim(capsys, "kernels", "check", *words, "--table", spilling_table(tmp_path))
    assert answer.code == 6
    assert answer.json["ok"] is False
    said = "; ".join(answer.json["cases"][0]["violations"])
    assert "spills" in said
    assert "bytes of shared memory" in said
    shown = moesim(capsys, "kernels", "check", *words[:-1], "--table", spilling_table(tmp_path))
    assert shown.code == 6
    assert "0 of 1 hold" in shown.out


def test_select_answers_for_a_histogram(capsys, tmp_path):
    answer = moesim(capsys, "kernels", "select", "--histogram", "4096,0,12,1", "--json")
    assert answer.code == 0, answer.err
    data = answer.json
    assert (data["schema"], data["kind"]) == ("moesim.kernels/1", "select")
    assert data["histogram"] == [4096, 0, 12, 1]
    assert data["choice"]["parts"][0]["fewest"] == 1
    assert data["choice"]["evidence"] == "measured"  # on an H200
    assert data["choice"]["predicted_s"] == data["considered"][0]["predicted_s"]
    np.save(tmp_path / "h.npy", np.array([4096, 0, 12, 1]))
    (tmp_path / "h.json").write_text("[4096, 0, 12, 1]")
    for name in ("h.npy", "h.json"):
        again = moesim(capsys, "kernels", "select", "--histogram", tmp_path / name, "--json")
        assert again.json == data
    shown = moesim(capsys, "kernels", "select", "--rows", 3000, "--skew", 1, "--dtype", "fp8")
    assert shown.code == 0, shown.err
    assert "coefficients measured" in shown.out
    other = moesim(capsys, "kernels", "select", "--rows", 3000, "--target", "sm_80")
    assert "coefficients assumed" in other.out, other.err


def test_tuning_an_existing_table_with_measurements(capsys, tmp_path):
    name = default_table().of("sm_90a", "bf16")[0].config.name
    entries = [
        {
            "kernel": "moesim", "config": name, "op": "grouped-gemm", "dtype": "bf16",
            "case": str(rows), "time_s": 1e-5 + rows * 3e-8, "shape": {"n": 4096, "k": 2048},
        }
        for rows in (64, 256, 1024, 2048, 4096, 8192, 16384)
    ]  # fmt: skip
    bench = {
        "schema": "moesim.kernels/1", "kind": "bench", "cases": entries,
        "environment": {"compute_capability": "9.0", "cores": 132},
        "loads": {entry["case"]: [int(entry["case"])] for entry in entries},
    }  # fmt: skip
    file, shipped, tuned = (tmp_path / name for name in ("bench.json", "in.json", "out.json"))
    file.write_text(json.dumps(bench))
    table = default_table().to_dict()
    for entry in table["targets"]["sm_90a"]["entries"]:
        entry["evidence"] = "assumed"
    shipped.write_text(json.dumps(table))
    words = ("--tune", "--table", shipped, "--measured", file, "--out", tuned, "--json")
    answer = moesim(capsys, "kernels", "select", *words)
    assert answer.code == 0, answer.err
    assert (answer.json["fitted"], answer.json["points"]) == (1, 7)
    shown = moesim(
        capsys, "kernels", "select", "--histogram", "16384", "--n", 4096, "--table", tuned, "--json"
    )
    first = next(c for c in shown.json["considered"] if c["name"] == name)
    assert first["evidence"] == "measured"
    assert first["predicted_s"] == pytest.approx(entries[-1]["time_s"], rel=0.2)
