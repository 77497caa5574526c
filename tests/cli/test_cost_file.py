"""``--cost FILE``: every verb that prices kernels takes those that were measured on one's GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moesim.safe_io import write_json
from moesim.sweep.grid import read_grid
from tests.operators.measured_files import fits, written

from .commands import moesim

SERVED = ("--model", "qwen3-30b-a3b", "--isl", 256, "--osl", 8, "--concurrency", 4)
VERBS = {
    "step": ("simulate", "step", "--model", "qwen3-30b-a3b", "--cluster", "2xh200_sxm"),
    "serving": ("simulate", "serving", "--cluster", "2xh200_sxm", "--requests", 4, *SERVED),
    "training": (
        "simulate", "training", "--model", "qwen3-30b-a3b", "--cluster", "8xh200_sxm", "--ep", 8,
    ),
    "plan": ("plan", "--cluster", "4xh200_sxm", "--planner", "lpt", "--export", "none"),
    "rebalancing": (
        "simulate", "rebalancing", "--cluster", "4xh200_sxm", "--policies", "frozen",
        "--window-tokens", 8192, "--planner", "lpt-swap",
    ),
    "replicas": (
        "whatif", "replicas", "--cluster", "4xh200_sxm", "--redundant", "0,4", "--planner",
        "lpt-swap",
    ),
    "capacity": ("capacity", "--devices", "h200_sxm", "--max-devices", 1, *SERVED),
}  # fmt: skip
SECONDS = {
    "step": lambda found: found["step_s"],
    "serving": lambda found: found["tpot_s"],
    "training": lambda found: found["step_s"],
    "plan": lambda found: found["objective"]["value"],
    "rebalancing": lambda found: found["policies"]["frozen"]["stepping_s"],
    "replicas": lambda found: found["points"][0]["step_s"],
    "capacity": lambda found: found["best"]["tpot_s"],
}


def answer(capsys, verb, folder, cost, *more):
    out = ("--out", folder / f"{verb}-{len(list(folder.iterdir()))}")
    words = (*VERBS[verb], *(out if verb in ("plan", "capacity") else ()))
    found = moesim(capsys, *words, "--cost", cost, *more)
    assert found.code == 0, found.err
    return found


@pytest.mark.parametrize("verb", VERBS)
def test_slower_kernels_make_everything_slower(capsys, tmp_path, verb):
    files = [written(tmp_path, fits(scale), f"{scale}.json") for scale in (1.0, 0.25)]
    found = [answer(capsys, verb, tmp_path, file, "--json").json for file in files]
    quick, slow = map(SECONDS[verb], found)
    assert quick < slow
    said = json.dumps(found[0])
    assert str(files[0]) in said or "measured on NVIDIA H200" in said


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_measured_is_named(capsys, tmp_path, verb):
    said = " ".join(answer(capsys, verb, tmp_path, written(tmp_path)).out.split())
    assert "measured on NVIDIA H200" in said


@pytest.mark.parametrize(
    ("changes", "suffix", "code", "words"),
    [
        ({"cores": 78}, "", 4, "78 cores"),
        ({}, ":nix", 4, "no such kernel"),
        ({"processor": None}, "", 4, "processor: a required key is missing"),
    ],
)
def test_what_cannot_be_used_is_refused(capsys, tmp_path, changes, suffix, code, words):
    body = fits().to_dict() | changes
    path = write_json(tmp_path / "mine.json", {k: v for k, v in body.items() if v is not None})
    found = moesim(capsys, *VERBS["step"], "--cost", f"{path}{suffix}")
    assert found.code == code
    assert words in found.err
    assert "Traceback" not in found.err


def test_words_that_are_neither_a_choice_nor_a_file(capsys):
    found = moesim(capsys, *VERBS["step"], "--cost", "fited")
    assert found.code == 2
    assert "fitted, roofline, or a file" in found.err


@pytest.mark.parametrize("suffix", ["", ":moesim"])
def test_points_of_a_sweep_follow_the_file(tmp_path: Path, suffix: str) -> None:
    grid = tmp_path / "grid.yaml"

    def keys():
        grid.write_text(
            "verb: simulate step\nmodel: qwen3-30b-a3b\ncluster: 2xh200_sxm\n"
            f"cost: [fitted, '{tmp_path}/mine.json{suffix}']\n"
        )
        return list(read_grid(grid).keys("code"))

    written(tmp_path)
    before = keys()
    written(tmp_path, fits(0.5))
    after = keys()
    assert before[0] == after[0]
    assert before[1] != after[1]
