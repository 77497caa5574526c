"""Sweeps on Ray: started once, on loopback, with two workers."""

import json
import signal
import sys

import numpy as np
import pytest

from moesim.cli.app import app
from moesim.cli.console import run
from moesim.errors import InputError, UsageError
from moesim.executors.protocol import ExecutorName, open_executor
from moesim.sweep.execute import compute, peak_worker_bytes
from moesim.sweep.grid import Grid
from moesim.sweep.store import Store
from moesim.sweep.table import collect
from moesim.traces import spread, statistics
from moesim.traces.bundle import open_trace, sample_path
from tests.sweep import runs

GRID = Grid("v", {"x": tuple(range(40))})
KEYS = GRID.keys("1")
POINTS = list(zip(KEYS, GRID.points(), strict=True))

STEPS = """verb: simulate step
model: [deepseek-v3, qwen3-30b-a3b]
cluster: [1xh100_sxm, 4xh100_sxm]
batch: [1, 8, 64]
"""


def test_a_missing_package_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    grid = tmp_path / "grid.yaml"
    grid.write_text(STEPS)
    assert run(app, ["sweep", str(grid), "--out", str(tmp_path / "o"), "--executor", "ray"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].endswith("pip install 'moesim[ray]'")


@pytest.fixture(scope="module")
def ray():
    with open_executor(ExecutorName.RAY, 2):  # those that follow find it running
        import ray  # behind what the executor sets for Ray's import

        # Workers cannot import the tests by name.
        ray.cloudpickle.register_pickle_by_value(runs)
        yield ray


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "results.sqlite")
    yield store
    store.close()


def test_it_is_reached_from_this_machine_alone(ray):
    assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]


def test_tables_are_those_of_any_executor(ray, tmp_path, capsys):
    grid = tmp_path / "grid.yaml"
    grid.write_text(STEPS)
    for name in ("ray", "serial"):
        out = str(tmp_path / name)
        assert run(app, ["sweep", str(grid), "--out", out, "--executor", name, "--json"]) == 5
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["failed"] > 0
    for table in ("sweep.json", "sweep.csv"):
        on_ray, alone = (tmp_path / name / table for name in ("ray", "serial"))
        assert on_ray.read_bytes() == alone.read_bytes()


def test_a_point_that_kills_its_worker_fails_alone(ray, store):
    with open_executor(ExecutorName.RAY) as executor:
        assert executor.workers == 2
        assert peak_worker_bytes(runs.double, POINTS[0], store, executor) > 1e6
        assert sum(compute(runs.dies_of_seven, POINTS[1:], store, executor)) == 39
    found = collect(GRID, KEYS, store)
    assert [p["options"]["x"] for p in found if not p["ok"]] == [7, 13]
    assert found[7]["error"]["type"] == "WorkerDied"


def test_an_interrupt_keeps_what_was_done(ray, store):
    def interrupted():
        with open_executor(ExecutorName.RAY, 2) as executor:
            for _ in compute(runs.slow, POINTS, store, executor):
                signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert signal.getsignal(signal.SIGINT) is before
    kept = store.keys()
    assert 0 < len(kept) < 40
    with open_executor(ExecutorName.RAY, 2) as executor:
        missing = [point for point in POINTS if point[0] not in kept]
        assert sum(compute(runs.slow, missing, store, executor)) == 40 - len(kept)
    assert len(collect(GRID, KEYS, store)) == 40


def test_errors_of_a_task_are_raised_as_they_are(ray):
    with open_executor(ExecutorName.RAY) as executor, pytest.raises(UsageError, match=r"^so$"):
        list(executor.map(runs.refuses, [1, 2, 3]))


def test_a_cluster_that_fails_is_no_bug_of_ours(ray, monkeypatch):
    def gone(_):
        raise ray.exceptions.RaySystemError("nobody answers\n and more")

    with open_executor(ExecutorName.RAY) as executor:
        monkeypatch.setattr(ray, "get", gone)
        with pytest.raises(InputError, match=r"Ray cannot go on: .*nobody answers\nfix"):
            list(executor.map(runs.double, [{"x": 1}]))


def test_an_address_where_nobody_listens_is_named(ray):
    with pytest.raises(UsageError, match=r"at '127\.0\.0\.1:1': .*refused\nfix: ") as error:
        open_executor(ExecutorName.RAY, address="127.0.0.1:1")
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize("name", [ExecutorName.PROCESS, ExecutorName.SERIAL])
def test_an_address_belongs_to_ray(name):
    with pytest.raises(UsageError, match="--executor ray"):
        open_executor(name, address="auto")


def test_statistics_of_a_trace_are_those_of_this_process(ray):
    trace = open_trace(sample_path())
    with open_executor(ExecutorName.RAY) as executor:
        np.testing.assert_array_equal(spread.loads(trace, executor), statistics.loads(trace))
        np.testing.assert_array_equal(
            spread.windowed_loads(trace, 1000, executor), statistics.windowed_loads(trace, 1000)
        )
