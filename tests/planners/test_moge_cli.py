"""``moesim plan moge`` beside ``moesim plan``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moesim.placement import read_plan
from tests.cli.commands import moesim, tiny_model, tiny_trace


def test_regroup_writes_groups_and_a_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace, model, out = tiny_trace(tmp_path / "trace"), tiny_model(tmp_path), tmp_path / "out"
    words = ("plan", "moge", "regroup", trace, "--groups", 2, "--model", model, "--out", out)
    found = moesim(capsys, *words, "--export", "sglang", "--json").json
    assert found["schema"] == "moesim.moge/1"
    assert found["weights"] == "choices"
    assert found["per_group"] == 1
    assert {row["method"] for row in found["layers"]} == {"ilp"}
    _, placement = read_plan(out / "plan.json")
    assert placement.physical_to_logical.tolist() == found["physical_to_logical"]
    assert placement.devices == 2
    assert Path(found["files"]["sglang"]).is_file()


def test_a_person_gets_words(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = moesim(capsys, "plan", "moge", "regroup", "--out", tmp_path)
    assert found.code == 0
    assert "32 experts in 4 groups" in " ".join(found.out.split())


def test_a_trace_named_moge_is_planned_by_its_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_trace(tmp_path / "moge")
    model = tiny_model(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = ("--model", model, "--cluster", "2xh100_sxm", "--planner", "contiguous", "--json")
    found = moesim(capsys, "plan", "./moge", *words)
    assert found.json["schema"] == "moesim.plan/1"
    assert "--redundant" in moesim(capsys, "plan", "--help").out


def test_imbalance(capsys: pytest.CaptureFixture[str]) -> None:
    routing = moesim(capsys, "plan", "moge", "imbalance", "--json").json["routing"]
    assert routing["grouped"]["mean"] == 0
    assert routing["top-k"]["mean"] == pytest.approx(0.67, rel=0.05)


def bad_gates(folder: Path) -> None:
    gates = np.load(folder / "gates.npy")
    gates[1, 5, 0] = np.nan
    np.save(folder / "gates.npy", gates)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--groups", 3), 2, "--groups 3"),
        (("--groups", 2, "--time-limit", 0), 2, "--time-limit"),
        (("--groups", 2, "--holdout", 1), 2, "--holdout"),
        (("--groups", 2, "--export", "sglang"), 2, "--model"),
        (("--groups", 2), 4, "gates.npy"),
    ],
)
def test_bad_input_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[object, ...],
    code: int,
    says: str,
) -> None:
    gates = np.random.default_rng(0).random((3, 1500, 2)).astype(np.float16)
    trace = tiny_trace(tmp_path / "trace", gates=gates)
    bad_gates(trace)
    found = moesim(capsys, "plan", "moge", "regroup", trace, *words)
    assert found.code == code
    assert says in found.err
    assert "Traceback" not in found.err
