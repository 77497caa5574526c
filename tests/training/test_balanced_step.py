"""Iterations under balancing systems."""

from dataclasses import replace

import pytest

from moesim.errors import InfeasibleError, UsageError
from moesim.training.balance.request import BalancedRequest, run_balanced

from ..cli.commands import moesim

BASE = BalancedRequest("olmoe-1b-7b", "2x8xa100_sxm", sequence=1024, micro_batch=4, room=6)
SYSTEMS = ("ep", "fastermoe", "smartmoe", "flexmoe", "hecate", "hecate-rm")


@pytest.fixture(scope="module")
def answers():
    return {name: run_balanced(replace(BASE, system=name)) for name in SYSTEMS}


def test_parts_add_up(answers):
    for found in answers.values():
        step = found.step
        parts = (
            step.other_s, step.alltoall_s, step.experts_s, step.exposed_s, step.moved_s,
            step.reduce_s, step.optimizer_s,
        )  # fmt: skip
        assert all(part >= 0 for part in parts)
        assert step.step_s == pytest.approx(sum(parts))
        assert step.exposed_s <= step.sparse_s * (1 + 1e-9) + 1e-12
        assert 0 < step.balance <= 1
        assert 0 < step.mfu < 1
        low, high = step.interval()
        assert low <= step.step_s <= high


def test_all_systems_are_measured_against_the_same_plain_one(answers):
    plain = answers["ep"].step
    assert answers["ep"].speedup == 1
    for found in answers.values():
        assert found.plain.step_s == pytest.approx(plain.step_s)


def test_balancing_pays_under_skew(answers):
    for name in ("fastermoe", "hecate", "hecate-rm"):
        assert answers[name].speedup > 1.05
        assert answers[name].step.balance > answers["ep"].step.balance


def test_dropping_copies_saves_memory_and_costs_time(answers):
    kept, again = answers["hecate"], answers["hecate-rm"]
    assert again.step.step_s >= kept.step.step_s
    assert again.step.sparse_bytes == pytest.approx(1.5 * kept.step.sparse_bytes)
    plain = answers["ep"].step.memory.total
    assert plain < again.step.memory.total < kept.step.memory.total
    assert kept.step.memory.total < answers["flexmoe"].step.memory.total


def test_the_cost_model_of_shadows_does_not_make_layers_slower(answers):
    shadowed, plain = answers["fastermoe"].step, answers["ep"].step
    assert shadowed.moe_s <= plain.moe_s * 1.01


def test_even_loads_leave_nothing_to_gain():
    found = run_balanced(replace(BASE, system="fastermoe", routing="balanced", sequence=512))
    assert found.speedup == pytest.approx(1, abs=0.02)


def test_hidden_copies_are_free():
    """Whatever the room, what Hecate gathers behind attention costs no forward time."""
    none = run_balanced(replace(BASE, room=0)).step
    some = run_balanced(replace(BASE, room=4)).step
    assert none.sparse_s == none.exposed_s == 0
    assert some.sparse_s > 0
    assert some.alltoall_s < none.alltoall_s


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"system": "other"}, "--system"),
        ({"routing": "uniform"}, "--routing"),
        ({"drift": 2.0}, "--drift"),
        ({"micro_batch": 0}, "--micro-batch"),
        ({"interval": 0}, "--interval"),
        ({"slowdown": 0.1}, "--slowdown"),
        ({"cluster": "3x8xa100_sxm"}, "experts|--ep"),
    ],
)
def test_contradictions_are_named(changes, named):
    with pytest.raises(UsageError, match=named):
        run_balanced(replace(BASE, **changes))


def test_what_does_not_fit_is_refused():
    with pytest.raises(InfeasibleError, match="activations"):
        run_balanced(replace(BASE, model="mixtral-8x22b", cluster="8xa100_sxm", room=None))


def test_room_comes_out_of_memory():
    """With much time to hide in, what a device holds still fits."""
    found = run_balanced(replace(BASE, room=None, micro_batch=8))
    step = found.step
    assert step.memory.total + step.dense_bytes + step.activation_bytes <= 81920 * 2**20


COMMON = (
    "simulate", "training", "--model", "olmoe-1b-7b", "--cluster", "2x8xa100_sxm",
    "--sequence", 1024,
)  # fmt: skip


def test_the_command(capsys):
    answer = moesim(capsys, *COMMON, "--system", "hecate", "--room", 4, "--json")
    assert answer.code == 0
    data = answer.json
    assert data["step_s"] == pytest.approx(sum(data["parts_s"].values()))
    assert data["memory_bytes_per_device"] == pytest.approx(sum(data["memory"].values()))
    assert data["speedup_vs"]["ep"] > 1
    text = moesim(capsys, *COMMON, "--system", "flexmoe")
    assert text.code == 0
    assert "times as fast as expert parallelism" in " ".join(text.out.split())


@pytest.mark.parametrize(
    "words",
    [
        ("--system", "hecate", "--tp", 2),
        ("--system", "megascale", "--room", 2),
        ("--system", "hecate", "--routing", "uniform"),
    ],
)
def test_options_of_others_are_refused(capsys, words):
    assert moesim(capsys, *COMMON, *words).code == 2
