"""``moesim sweep`` as a user calls it."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pytest

from moesim.cli.app import app
from moesim.cli.console import run
from moesim.cli.sweep_point import SweptVerb
from moesim.errors import UsageError

GRID = """verb: simulate step
model: qwen3-30b-a3b
cluster: [4xh100_sxm, 2xh100_sxm]
batch: [1, 8, 64]
context: [512, 4096]
"""


@pytest.fixture
def grid(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(GRID)
    return str(path)


def call(capsys, *arguments):
    code = run(app, ["sweep", *arguments, "--json", "--quiet"])
    return code, json.loads(capsys.readouterr().out)


def test_points_are_what_the_verb_says(tmp_path, capsys, grid):
    code, found = call(capsys, grid, "--out", str(tmp_path / "o"), "--executor", "serial")
    assert code == 0
    assert (found["total"], found["failed"]) == (12, 0)
    point = found["points"][7]
    assert point["options"] == {
        "model": "qwen3-30b-a3b", "cluster": "2xh100_sxm", "batch": 1, "context": 4096
    }  # fmt: skip
    run(app, ["simulate", "step", "--model", "qwen3-30b-a3b", "--cluster", "2xh100_sxm",
              "--batch", "1", "--context", "4096", "--json"])  # fmt: skip
    alone = json.loads(capsys.readouterr().out)
    assert point["result"]["step_s"] == alone["step_s"]
    assert (tmp_path / "o" / "sweep.csv").read_text().count("\n") == 13


def test_failed_points_stop_nothing(tmp_path, capsys):
    path = tmp_path / "grid.yaml"
    path.write_text("verb: simulate step\nmodel: deepseek-v3\ncluster: [1xh100_sxm, 8xh200_sxm]\n")
    code, found = call(capsys, str(path), "--out", str(tmp_path / "o"), "--executor", "serial")
    assert code == 5
    assert [point["ok"] for point in found["points"]] == [False, True]
    assert "does not fit" in found["points"][0]["error"]["message"]


def test_dry_run_counts_and_writes_nothing(tmp_path, capsys, grid):
    code, found = call(capsys, grid, "--out", str(tmp_path / "o"), "--dry-run")
    assert (code, found["total"], found["finished"]) == (0, 12, 0)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("verb: simulate steps\n", "no verb"),
        ("verb: simulate\n", "group of verbs"),
        ("verb: sweep\n", "no verb"),
        ("verb: simulate step\nbatches: [1]\n", "no option 'batches'"),
        ("verb: simulate step\njson: [true]\n", "no option 'json'"),
    ],
)
def test_what_cannot_be_swept_is_named(tmp_path, capsys, text, words):
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    code = run(app, ["sweep", str(path), "--out", str(tmp_path / "o")])
    assert code == 2
    assert words in capsys.readouterr().err


def test_a_store_is_not_overwritten(tmp_path, capsys, grid):
    arguments = [grid, "--out", str(tmp_path / "o"), "--executor", "serial"]
    _, first = call(capsys, *arguments)
    assert run(app, ["sweep", *arguments]) == 2
    assert "--resume" in capsys.readouterr().err
    code, again = call(capsys, *arguments, "--resume")
    assert (code, again) == (0, first)


def test_too_little_memory_is_said_before(tmp_path, capsys, grid):
    out = str(tmp_path / "o")
    code = run(app, ["sweep", grid, "--out", out, "--jobs", "2", "--max-memory", "0.01"])
    assert code == 3
    assert "--max-memory" in capsys.readouterr().err


def test_interrupted_it_keeps_its_points_and_resumes(tmp_path, capsys):
    grid, out = tmp_path / "grid.yaml", tmp_path / "o"
    grid.write_text(GRID.replace("batch: [1, 8, 64]", f"batch: {list(range(1, 400))}"))
    command = [sys.executable, "-m", "moesim", "sweep", str(grid), "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--jobs", "2", "--quiet"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    while not (out / "results.sqlite").exists() or len(stored(out)) < 3:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it, to all processes
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.decode() == "moesim: interrupted\n"
    saved = json.loads((out / "sweep.json").read_text())
    assert 0 < len(saved["points"]) < saved["total"]
    assert not saved["ok"]
    grid.write_text(GRID)
    code, found = call(capsys, str(grid), "--out", str(out), "--resume", "--executor", "serial")
    assert (code, len(found["points"])) == (0, 12)


def stored(out):
    with closing(sqlite3.connect(out / "results.sqlite")) as store:
        try:
            return store.execute("SELECT key FROM points").fetchall()
        except sqlite3.Error:  # before its table is there
            return []


def test_workers_with_other_code_are_refused():
    there = SweptVerb("simulate step", code="0.0.1+another")
    with pytest.raises(UsageError, match="the same moesim everywhere"):
        there({"model": "qwen3-30b-a3b", "cluster": "4xh100_sxm"})


def test_killed_at_any_moment_it_resumes_to_the_same_table(tmp_path, capsys, grid):
    call(capsys, grid, "--out", str(tmp_path / "whole"), "--executor", "serial")
    command = [sys.executable, "-m", "moesim", "sweep", grid, "--out", str(tmp_path / "killed")]
    chance = random.Random(0)
    for _ in range(2):
        process = subprocess.Popen(
            [*command, "--jobs", "2", "--resume", "--quiet"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        time.sleep(chance.uniform(0.5, 2.5))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    code, _ = call(capsys, grid, "--out", str(tmp_path / "killed"), "--resume")
    assert code == 0
    for name in ("sweep.json", "sweep.csv"):
        whole, killed = (tmp_path / folder / name for folder in ("whole", "killed"))
        assert whole.read_bytes() == killed.read_bytes()
