"""``moesim sweep`` as a user calls it."""

import json
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest

from moesim.cli.app import app
from moesim.cli.console import Console, run
from moesim.cli.sweep import _fit_into_memory
from moesim.cli.sweep_point import SweptVerb
from moesim.errors import InfeasibleError, UsageError
from moesim.executors.process import ProcessExecutor

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
    call(capsys, grid, "--out", str(tmp_path / "o"), "--executor", "serial")
    code, found = call(capsys, grid, "--out", str(tmp_path / "o"), "--dry-run")
    assert (code, found["total"], found["finished"], found["points"]) == (0, 12, 12, [])


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
    while len(stored(out)) < 3:
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
    if not (out / "results.sqlite").exists():
        return []
    with closing(sqlite3.connect(out / "results.sqlite")) as store:
        try:
            return store.execute("SELECT key, result FROM points").fetchall()
        except sqlite3.Error:  # before its table is there
            return []


def test_as_many_workers_as_fit_into_memory(capsys):
    executor, console = ProcessExecutor(4), Console(as_json=False, quiet=False)
    _fit_into_memory(console, executor, 2**30, 100, max_memory=3.5)
    assert executor.workers == 3
    assert capsys.readouterr().err == "3 workers, about 3.00 GiB of 3.50 GiB\n"
    _fit_into_memory(console, executor, 2**30, 100, max_memory=1.0)
    assert capsys.readouterr().err == "1 worker, about 1.00 GiB of 1.00 GiB\n"
    with pytest.raises(InfeasibleError, match=r"needs 1\.00 GiB; allowed: 0\.50 GiB\nfix: "):
        _fit_into_memory(console, executor, 2**30, 100, max_memory=0.5)


def test_what_one_point_gives_is_not_the_default_of_another():
    sweep = SweptVerb("simulate step")
    point = {"model": "qwen3-30b-a3b", "cluster": "4xh100_sxm"}
    before = sweep(point)
    assert sweep(point | {"context": 512})["result"]["context"] == 512
    assert sweep(point | {"batch": 3})["result"]["context"] == 4096
    assert sweep(point) == before


def test_workers_with_other_code_are_refused():
    there = SweptVerb("simulate step", code="0.0.1+another")
    with pytest.raises(UsageError, match="the same moesim everywhere"):
        there({"model": "qwen3-30b-a3b", "cluster": "4xh100_sxm"})


MANY = f"""verb: simulate step
model: qwen3-30b-a3b
cluster: [4xh100_sxm, 2xh100_sxm]
batch: {list(range(1, 101))}
"""
"""200 points: enough of them for a process to be stopped between two."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The grid, and the tables of a sweep that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "grid.yaml").write_text(MANY)
    words = [str(folder / "grid.yaml"), "--out", str(folder / "o"), "--executor", "serial"]
    assert run(app, ["sweep", *words, "--quiet"]) == 0
    return folder / "grid.yaml", tables(folder / "o")


def tables(out):
    return [(out / name).read_bytes() for name in ("sweep.json", "sweep.csv")]


def started(grid, out, *, most_bytes=None):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    return subprocess.Popen(
        [sys.executable, "-m", "moesim", "sweep", str(grid), "--out", str(out), "--jobs", "2",
         "--resume", "--quiet"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=None if most_bytes is None else limit,
    )  # fmt: skip


def resumed(capsys, grid, out):
    code, found = call(capsys, str(grid), "--out", str(out), "--resume", "--executor", "serial")
    assert (code, found["failed"]) == (0, 0)
    return tables(out)


def test_killed_again_and_again_it_resumes_to_the_same_tables(tmp_path, capsys, whole):
    grid, expected = whole
    out, chance, kept = tmp_path / "o", random.Random(0), {}
    for _ in range(3):
        process = started(grid, out)
        while process.poll() is None and len(stored(out)) <= len(kept):
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.1))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        now = dict(stored(out))
        assert kept.items() < now.items()
        kept = now
    assert resumed(capsys, grid, out) == expected


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked up in /proc")
def test_workers_end_with_a_parent_that_is_killed(tmp_path, whole):
    process = started(whole[0], tmp_path / "o")
    while len(members(process.pid)) < 3 or not stored(tmp_path / "o"):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    end = time.monotonic() + 30
    while members(process.pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not members(process.pid)


def members(session):
    """Processes of a session that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it may end meanwhile
            fields = stat.read_text().rpartition(")")[2].split()
            if fields[3] == str(session) and fields[0] != "Z":
                found.append(int(stat.parent.name))
    return found


def test_two_at_once_on_one_store_end_in_the_same_tables(tmp_path, whole):
    grid, expected = whole
    both = [started(grid, tmp_path / "o") for _ in range(2)]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said == [b"", b""]
    assert tables(tmp_path / "o") == expected
    assert len(stored(tmp_path / "o")) == 200


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no limit on the size of files")
def test_on_a_full_disk_what_was_stored_stays(tmp_path, capsys, whole):
    grid, expected = whole
    process = started(grid, tmp_path / "o", most_bytes=150_000)
    said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 4
    assert "make room or choose another --out; what is in it stays" in said
    assert 0 < len(stored(tmp_path / "o")) < 200
    assert resumed(capsys, grid, tmp_path / "o") == expected
