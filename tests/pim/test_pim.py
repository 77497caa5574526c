"""Two processors over one memory: the split, the choice, and the loop."""

import json
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.cli.app import app
from moesim.cli.console import run
from moesim.cluster import load_cluster
from moesim.errors import InputError, UsageError
from moesim.forward.layout import Sequences, StepLoad
from moesim.hardware import load_device
from moesim.model import load_model
from moesim.pim.closed_loop import run_loop
from moesim.pim.processors import break_even_op_per_byte, processors_of
from moesim.pim.split import makespan, split_experts
from moesim.pim.systems import system_pricer

TIMES = st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=7)


@given(TIMES, st.integers(1, 4))
@settings(deadline=None)
def test_the_split_is_the_best_of_all(times, spaces):
    main, near = (np.array([column], float) for column in zip(*times, strict=True))
    found = makespan(main, near, split_experts(main, near, spaces), spaces)[0]
    best = min(
        makespan(main, near, np.array([choice]), spaces)[0]
        for choice in product([False, True], repeat=len(times))
    )
    assert found == best


@given(TIMES, st.integers(1, 4))
@settings(deadline=None)
def test_no_schedule_is_shorter_than_its_parts(times, spaces):
    main, near = (np.array([column], float) for column in zip(*times, strict=True))
    least = np.minimum(main, near)
    chosen = split_experts(main, near, spaces)
    length = makespan(main, near, chosen, spaces)[0]
    assert length >= max(least.max(), least.sum() / 2) * (1 - 1e-9)
    assert length <= min(main.sum(), near.sum()) * (1 + 1e-9)


def test_many_experts_are_split_by_a_threshold():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 64, (3, 32))
    main, near = np.maximum(tokens / 50, 1.0), np.maximum(tokens / 5, 0.25)
    chosen = split_experts(main, near)
    worse = [makespan(main, near, np.full(main.shape, flag)) for flag in (False, True)]
    assert (makespan(main, near, chosen) <= np.minimum(*worse)).all()
    # Those near the memory are those with the fewest tokens.
    for row, flags in zip(tokens, chosen, strict=True):
        assert row[flags].max(initial=0) <= row[~flags].min(initial=64) + 1


def test_processors_follow_the_profile():
    main, near = processors_of(load_device("duplex"), (1.0, 1.0))
    assert near.bytes_per_s == pytest.approx(4 * main.bytes_per_s)
    assert near.flop_per_s / near.bytes_per_s == pytest.approx(8, rel=0.01)
    assert break_even_op_per_byte(main, near) == pytest.approx(32, rel=0.01)
    with pytest.raises(InputError, match="no second processor"):
        processors_of(load_device("h100_sxm"))


def test_logic_beats_bank_pim_from_few_operations_per_byte_on():
    bank = processors_of(load_device("duplex_bank_pim"))[1]
    logic = processors_of(load_device("duplex"))[1]
    for op_per_byte in (1, 2, 3):
        assert bank.seconds(op_per_byte, 1.0) < logic.seconds(op_per_byte, 1.0)
    for op_per_byte in (8, 16, 32):
        assert logic.seconds(op_per_byte, 1.0) < bank.seconds(op_per_byte, 1.0)


@pytest.mark.parametrize("batch", [1, 32, 256])
def test_a_second_processor_never_slows_a_stage(batch):
    model, cluster = load_model("mixtral-8x7b"), load_cluster("4xduplex")
    load = StepLoad((Sequences(batch, 1, 1024),))
    main, choose, split = (
        system_pricer(model, cluster, way).price(load) for way in ("main", "choose", "split")
    )
    assert choose.time_s <= main.time_s * (1 + 1e-9)
    assert split.time_s <= main.time_s * (1 + 1e-9)
    assert choose.joules < main.joules
    for call in split.calls:
        assert call.time_s >= call.roofline_s * (1 - 1e-9)


def test_the_loop_keeps_its_books():
    model, cluster = load_model("mixtral-8x7b"), load_cluster("4xduplex")
    pricer = system_pricer(model, cluster, "choose")
    found = run_loop(pricer, 256, 64, 16)
    assert found.tbt_p50_s <= found.tbt_p90_s <= found.tbt_p99_s
    # Little's law: requests in flight are rate times time in the system.
    assert found.tokens_per_s / 64 * found.latency_s == pytest.approx(16, rel=0.2)
    slow = run_loop(pricer, 256, 64, 16, arrivals_per_s=1.0)
    assert slow.tokens_per_s < found.tokens_per_s


def test_unknown_ways_are_refused():
    with pytest.raises(UsageError, match="no way"):
        system_pricer(load_model("mixtral-8x7b"), load_cluster("4xduplex"), "both")


def test_command(capsys):
    words = ["simulate", "pim", "--model", "mixtral-8x7b", "--isl", "256", "--osl", "64"]
    assert run(app, [*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["ways"]) == {"main", "choose", "split", "split-et"}
    gains = {way: one["tokens_per_s"] for way, one in found["ways"].items()}
    assert gains["choose"] > gains["main"]
    assert run(app, words) == 0
    assert "Op/B" in capsys.readouterr().out
    assert run(app, [*words, "--cluster", "4xh100_sxm"]) != 0
    assert "no second processor" in capsys.readouterr().err
