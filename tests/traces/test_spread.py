"""Parts of a trace counted in workers against the whole counted here."""

import numpy as np
import pytest

from moesim.cli.app import app
from moesim.cli.console import run
from moesim.errors import InputError, UsageError
from moesim.executors.process import ProcessExecutor
from moesim.executors.protocol import SerialExecutor
from moesim.traces import spread, statistics
from moesim.traces.bundle import Trace, open_trace, sample_path, write_trace


@pytest.fixture(params=[False, True], ids=["whole", "ragged"])
def trace(request, tmp_path, monkeypatch):
    monkeypatch.setattr(spread, "PART_IDS", 100)  # of 1000 per layer
    rng = np.random.default_rng(0)
    routing = rng.permuted(np.tile(np.arange(16), (3, 250, 1)), axis=2)[..., :4]
    valid_k = rng.integers(0, 5, (3, 250)) if request.param else None
    return write_trace(
        tmp_path / "t", routing, model="test", experts=16, source="test", valid_k=valid_k
    )


def test_parts_add_up_to_the_whole(trace):
    alone = SerialExecutor()
    for name in ("loads", "transitions", "coactivation"):
        found, whole = getattr(spread, name)(trace, alone), getattr(statistics, name)(trace)
        np.testing.assert_array_equal(found, whole)
        assert found.dtype == whole.dtype
    for window in (1, 7, 40, 249, 250, 1000):
        np.testing.assert_array_equal(
            spread.windowed_loads(trace, window, alone), statistics.windowed_loads(trace, window)
        )


class Deadly(SerialExecutor):
    """Kills the worker of every third task."""

    def map(self, function, tasks):
        for index, result in super().map(function, tasks):
            yield index, None if index % 3 == 0 else result


def test_parts_of_dead_workers_are_counted_here(trace):
    np.testing.assert_array_equal(spread.loads(trace, Deadly()), statistics.loads(trace))


def test_every_token_is_in_one_part(trace):
    parts = spread._parts(trace, 3, 1, multiple=7)
    assert len(parts) == 3 * 12
    assert all(part.start % 7 == 0 for part in parts)
    seen = [(part.layer, token) for part in parts for token in range(part.start, part.stop)]
    assert seen == [(layer, token) for layer in range(3) for token in range(250)]


def test_processes_count_the_sample_alike(monkeypatch):
    monkeypatch.setattr(spread, "PART_IDS", 2**16)
    trace = open_trace(sample_path())
    with ProcessExecutor(2) as executor:
        for name in ("loads", "transitions"):
            np.testing.assert_array_equal(
                getattr(spread, name)(trace, executor), getattr(statistics, name)(trace)
            )


def test_a_bad_id_is_named_by_its_place_in_the_whole(trace):
    routing = np.load(trace.path / "routing.npy")
    routing[2, 200] = 99
    if trace.valid_k is not None:
        valid_k = np.load(trace.path / "valid_k.npy")
        valid_k[2, 200] = 4
        np.save(trace.path / "valid_k.npy", valid_k)
    np.save(trace.path / "routing.npy", routing)
    damaged = open_trace(trace.path)
    for count in (spread.loads, spread.transitions, spread.coactivation):
        with pytest.raises(InputError, match="layer 2, token 200"):
            count(damaged, SerialExecutor())


def test_workers_need_files(trace):
    unwritten = Trace(trace.manifest, np.array(trace.routing))
    with pytest.raises(UsageError, match="never written"):
        spread.loads(unwritten, SerialExecutor())
    with pytest.raises(UsageError, match="at least 1; found 0"):
        spread.windowed_loads(trace, 0, SerialExecutor())


def test_the_command_says_the_same_with_any_executor(tmp_path, capsys):
    answers = []
    for words in ([], ["--executor", "process", "--jobs", "2"]):
        out = tmp_path / str(len(answers))
        assert run(app, ["trace", "stats", "--json", "--quiet", "--out", str(out), *words]) == 0
        answers.append(capsys.readouterr().out.replace(str(out), "OUT"))
    assert answers[0] == answers[1]
    for name in ("loads", "windowed_loads", "transitions", "coactivation"):
        alone, spread_out = ((tmp_path / n / f"{name}.npy").read_bytes() for n in ("0", "1"))
        assert alone == spread_out
    assert run(app, ["trace", "stats", "--executor", "process", "--threads", "2"]) == 2
    assert "--jobs instead of --threads" in capsys.readouterr().err
