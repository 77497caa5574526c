"""Points into the store, by any number of workers, whatever happens to them."""

import json
import os

import pytest

from moesim.errors import InputError
from moesim.executors.process import ProcessExecutor
from moesim.executors.protocol import SerialExecutor
from moesim.sweep.execute import compute, peak_worker_bytes
from moesim.sweep.grid import Grid
from moesim.sweep.store import Store
from moesim.sweep.table import collect, write_csv
from tests.sweep.runs import dies_of_seven, double, holds, where

GRID = Grid("v", {"x": tuple(range(40))})
KEYS = GRID.keys("1")
POINTS = list(zip(KEYS, GRID.points(), strict=True))


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "results.sqlite")
    yield store
    store.close()


@pytest.mark.parametrize("executor", [SerialExecutor(), ProcessExecutor(2)])
def test_all_points_are_computed_once(store, executor):
    with executor:
        assert sum(compute(double, POINTS, store, executor)) == 40
    found = collect(GRID, KEYS, store)
    assert [p["result"]["y"] for p in found if p["ok"]] == [2 * x for x in range(40) if x != 13]
    assert [p["options"]["x"] for p in found if not p["ok"]] == [13]


def test_a_point_that_kills_its_worker_fails_alone(store):
    with ProcessExecutor(2) as executor:
        assert sum(compute(dies_of_seven, POINTS, store, executor)) == 40
    found = collect(GRID, KEYS, store)
    assert [p["options"]["x"] for p in found if not p["ok"]] == [7, 13]
    assert found[7]["error"]["type"] == "WorkerDied"


def test_memory_of_a_worker_is_measured(store):
    with ProcessExecutor(1) as executor:
        assert peak_worker_bytes(double, POINTS[0], store, executor) > 1e6
    assert store.keys() == {KEYS[0]}


def test_memory_of_a_point_is_estimated_within_a_fifth(store):
    needs = []
    for size in (1, 400 * 2**20):
        with ProcessExecutor(1) as executor:
            needs.append(peak_worker_bytes(holds, (str(size), {"x": size}), store, executor))
    assert needs[1] - needs[0] == pytest.approx(400 * 2**20, rel=0.2)


def test_fewer_workers_go_on_with_a_smaller_pool():
    with ProcessExecutor(3) as executor:
        assert dict(executor.map(abs, [-1, -2])) == {0: 1, 1: 2}
        executor.limit(1)
        assert executor.workers == 1
        assert {pid for _, pid in executor.map(where, range(4))} != {os.getpid()}
        assert len({pid for _, pid in executor.map(where, range(4))}) == 1
        executor.limit(5)
        assert executor.workers == 1


def test_what_is_there_stays(store):
    store.put([("a", "1")])
    store.put([("a", "2"), ("b", "3")])
    assert (store.get("a"), store.get("b"), store.get("c")) == ("1", "3", None)


def test_two_processes_share_a_store(tmp_path, store):
    other = Store(tmp_path / "results.sqlite")
    store.put([("a", "1")])
    other.put([("b", "2")])
    assert store.keys() == other.keys() == {"a", "b"}
    other.close()


def test_a_file_that_is_no_store_is_refused(tmp_path):
    path = tmp_path / "other.sqlite"
    path.write_bytes(b"no data base" * 100)
    with pytest.raises(InputError, match="store of results"):
        Store(path)


def test_the_table_has_a_row_per_point(tmp_path, store):
    list(compute(double, POINTS[:14], store, SerialExecutor()))
    lines = write_csv(tmp_path / "t.csv", collect(GRID, KEYS, store)).read_text().splitlines()
    assert lines[0] == "x,ok,y,error"
    assert lines[1] == "0,True,0,"
    assert lines[14] == "13,False,,thirteen"
    assert json.loads(store.get(KEYS[1]))["result"] == {"y": 2, "many": [1, 2]}
