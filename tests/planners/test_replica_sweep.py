"""Redundant slots against step time: every figure once more by another way."""

import numpy as np
import pytest

from moesim.errors import InfeasibleError, InputError, UsageError
from moesim.placement import read_plan
from moesim.planners.outcome import PlanRequest
from moesim.planners.plan import make_plan
from moesim.planners.replica_sweep import LARGEST, default_redundant, replica_sweep
from tests.cli.commands import EXPERTS, LAYERS, moesim, tiny_counts

TOKENS = 256


def request(folder, **fields):
    given = {
        "trace": folder / "trace",
        "model": str(folder / "config.json"),
        "cluster": "4xh100_sxm",
        "tokens_per_device": TOKENS,
        "time_limit_s": 2.0,
    }
    return PlanRequest(**(given | fields))


def test_even_division_is_the_price_that_a_plan_states(folder):
    swept = replica_sweep(request(folder, planner="lpt-swap"), [0, 4, 8])
    for point in swept.points:
        plan = make_plan(request(folder, planner="lpt-swap", redundant=point.redundant))
        score = plan.scores["lpt-swap"]
        np.testing.assert_array_equal(
            point.placement.physical_to_logical, score.placement.physical_to_logical
        )
        assert point.step.step_s == score.holdout.step_s


def test_more_slots_cost_bytes_and_bring_balance(folder):
    swept = replica_sweep(request(folder), [8, 0, 4])
    assert [point.redundant for point in swept.points] == [0, 4, 8]
    expert_bytes = 3 * 256 * 512 * 2
    for point in swept.points:
        slots = EXPERTS + point.redundant
        assert point.device_bytes == LAYERS * expert_bytes * slots / 4
        assert point.added_bytes == LAYERS * expert_bytes * point.redundant
        assert point.placement.slots == slots
        # The ideal division is at least as even as any, and what is even takes no longer here.
        assert point.ideal_balance >= point.step.balance - 1e-9
        assert point.ideal_s <= point.step.step_s * (1 + 1e-9)
    none, some, many = swept.points
    assert none.copied == 0
    assert none.most_copies == 1
    assert none.fixed_share_s == none.ideal_s == none.step.step_s
    assert none.step.balance < some.step.balance
    assert none.ideal_balance < min(some.ideal_balance, many.ideal_balance)
    best = swept.points[swept.recommended].step.step_s
    assert best <= min(point.step.step_s for point in swept.points) * 1.01


def test_counts_are_priced_on_what_was_planned_on(folder, tmp_path):
    swept = replica_sweep(
        request(folder, trace=None, load=tiny_counts(tmp_path / "counts.npy")), [0, 4]
    )
    assert swept.work.holdout is None
    assert swept.points[0].step.balance < swept.points[1].ideal_balance


def test_which_numbers_are_swept():
    assert default_redundant(256, 32) == [0, 32, 64]
    assert default_redundant(128, 16) == [0, 16, 32, 48, 64]
    assert default_redundant(160, 72) == [56, 128]
    numbers = default_redundant(64, 1)
    assert numbers[0] == 0
    assert len(numbers) <= 9
    assert numbers[-1] == LARGEST


def test_refusals(folder):
    with pytest.raises(InputError, match="multiple of the devices"):
        replica_sweep(request(folder), [3])
    with pytest.raises(UsageError, match="moetuner-free places no copies"):
        replica_sweep(request(folder, planner="moetuner-free"))
    with pytest.raises(UsageError, match="unknown planner"):
        replica_sweep(request(folder, planner="lptt"))
    big = {"trace": None, "load": None, "model": "deepseek-v3", "cluster": "4xh100_sxm"}
    with pytest.raises(InfeasibleError, match=r"does not fit.*\nfix: use more"):
        replica_sweep(request(folder, **big), [0, 8])


def test_on_the_command_line(folder, capsys, tmp_path):
    words = ["whatif", "replicas", "--trace", folder / "trace", "--model", folder / "config.json"]
    words += ["--cluster", "4xh100_sxm", "--tokens-per-device", TOKENS, "--redundant", "0,4"]
    words += ["--time-limit", 2, "--planner", "lpt-swap"]
    answer = moesim(capsys, *words, "--out", tmp_path / "out", "--json")
    assert answer.code == 0
    data = answer.json
    assert data["schema"] == "moesim.whatif-replicas/1"
    assert [point["redundant"] for point in data["points"]] == [0, 4]
    _, placement = read_plan(data["files"]["plan"])
    assert placement.slots == EXPERTS + data["recommended"]["redundant"]
    shown = moesim(capsys, *words, "--quiet")
    assert shown.code == 0
    for said in ("redundant", "fixed shares", "kept back from planning"):
        assert said in shown.out
    wrong = moesim(capsys, *words[:-6], "--redundant", "0,x")
    assert (wrong.code, "fix:" in wrong.err) == (2, True)
