"""Policies of planning again over a drifting trace."""

import json
from dataclasses import replace

import numpy as np
import pytest

from moesim.cli.app import app
from moesim.cli.console import run
from moesim.errors import InputError, UsageError
from moesim.planners.outcome import PlanRequest
from moesim.planners.rebalancing import Drift, simulate_rebalancing
from moesim.traces.bundle import write_trace
from tests.cli.commands import EXPERTS, LAYERS, TOP_K, tiny_model

WINDOW, WINDOWS = 256, 8


def routing(rng, hot):
    """[L, WINDOW, K]: two neighbouring experts take most tokens."""
    weight = np.full(EXPERTS, 0.3)
    weight[hot : hot + 2] = 3.0
    score = rng.gumbel(size=(LAYERS, WINDOW, EXPERTS)) + np.log(weight)
    return np.argsort(-score, axis=-1)[..., :TOP_K].astype(np.uint8)


def write(folder, hots):
    rng = np.random.default_rng(0)
    tiny_model(folder)
    parts = [routing(rng, hot) for hot in hots]
    write_trace(
        folder / "trace", np.concatenate(parts, 1), model="tiny", experts=EXPERTS, source="test"
    )
    return PlanRequest(
        trace=folder / "trace", model=str(folder / "config.json"), cluster="4xh100_sxm",
        planner="lpt-swap", tokens_per_device=64, phase="decode", holdout=0.0, time_limit_s=2.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def drifting(tmp_path_factory):
    return write(tmp_path_factory.mktemp("drifting"), [0, 0, 0, 4, 4, 4, 0, 0])


@pytest.fixture(scope="module")
def steady(tmp_path_factory):
    return write(tmp_path_factory.mktemp("steady"), [2] * WINDOWS)


DRIFT = Drift(window_tokens=WINDOW, steps=100, pause_s=0.0, below=0.9)


def test_policies_keep_their_rules(drifting):
    found = simulate_rebalancing(drifting, DRIFT)
    runs = found.runs
    assert all(len(one.windows) == WINDOWS for one in runs.values())
    assert runs["contiguous"].rebalances == runs["oracle"].rebalances == 0
    assert runs["frozen"].rebalances == 1
    assert runs["frozen"].windows[1].moves > 0
    for one in runs.values():
        assert one.windows[0].moves == 0  # nothing has been counted yet
        assert one.total_s == pytest.approx(
            sum(100 * window.step_s + window.pause_s for window in one.windows)
        )
    for number in range(WINDOWS):
        best = min(one.windows[number].step_s for one in runs.values())
        assert runs["oracle"].windows[number].step_s == best
    for number in range(1, WINDOWS):  # threshold acts on what it has seen, and on nothing else
        if runs["threshold"].windows[number].moves:
            assert runs["threshold"].windows[number - 1].balance < DRIFT.below
    # The use of experts changes at windows 3 and 6: a frozen plan does not follow.
    assert runs["periodic"].stepping_s < runs["frozen"].stepping_s


def test_a_plan_reads_past_windows_only(drifting, tmp_path):
    """What comes later changes nothing of what was decided before."""
    other = write(tmp_path, [0, 0, 0, 4, 4, 2, 2, 2])
    ours, theirs = (simulate_rebalancing(one, DRIFT).runs for one in (drifting, other))
    for name in ("frozen", "periodic", "threshold"):
        assert ours[name].windows[:5] == theirs[name].windows[:5]


def test_a_long_period_is_frozen(drifting):
    runs = simulate_rebalancing(drifting, replace(DRIFT, period=100)).runs
    assert runs["periodic"] == runs["frozen"]


def test_without_drift_one_plan_is_enough(steady):
    runs = simulate_rebalancing(steady, DRIFT).runs
    balance = {
        name: np.mean([window.balance for window in one.windows[1:]]) for name, one in runs.items()
    }
    assert balance["frozen"] > balance["contiguous"] + 0.05
    assert balance["frozen"] == pytest.approx(balance["periodic"], abs=0.03)
    assert runs["frozen"].stepping_s < runs["contiguous"].stepping_s


def test_pauses_and_moves_are_charged(drifting):
    free = simulate_rebalancing(drifting, DRIFT, ["periodic"]).runs["periodic"]
    paid = simulate_rebalancing(drifting, replace(DRIFT, pause_s=3.0), ["periodic"]).runs
    assert 0 < free.paused_s < 1.0  # what the links take
    assert paid["periodic"].paused_s == 3.0 * free.rebalances
    assert paid["periodic"].stepping_s == free.stepping_s
    few = simulate_rebalancing(replace(drifting, max_moves=2), DRIFT, ["periodic"]).runs
    assert max(window.moves for window in few["periodic"].windows) <= 2


def test_rates_count_pauses(drifting):
    found = simulate_rebalancing(drifting, replace(DRIFT, pause_s=3.0), ["periodic"])
    for name, policy in found.runs.items():
        tokens = found.step_tokens * found.drift.steps * len(policy.windows)
        seconds = sum(found.drift.steps * one.step_s + one.pause_s for one in policy.windows)
        assert found.tokens_per_s(name) == pytest.approx(tokens / seconds)


def test_bad_requests(drifting):
    with pytest.raises(UsageError, match="unknown policy"):
        simulate_rebalancing(drifting, DRIFT, ["sometimes"])
    with pytest.raises(UsageError, match="unequal"):
        simulate_rebalancing(replace(drifting, planner="moetuner-free"), DRIFT)
    with pytest.raises(InputError, match=r"--window-tokens"):
        simulate_rebalancing(drifting, replace(DRIFT, window_tokens=2000))
    for field in ("window_tokens", "steps", "history", "period", "below", "pause_s"):
        with pytest.raises(UsageError, match=field.partition("_")[0]):
            replace(DRIFT, **{field: -1})


def test_frozen_placements_do_not_carry_over_to_other_domains(capsys):
    """The published finding (frozen plans gain about nothing across domains) on real routing."""
    words = ["simulate", "rebalancing", "--redundant", "16", "--tokens-per-device", "256"]
    assert run(app, [*words, "--policies", "frozen,periodic", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["schema"] == "moesim.simulate/1"
    domains = np.array(answer["domains"])
    step_s = {
        name: np.array([window["step_s"] for window in policy["windows"]])
        for name, policy in answer["policies"].items()
    }
    home, after = domains == domains[0], np.arange(len(domains)) > 0
    code = np.char.startswith(domains, "code")

    def gain(name, where):
        return step_s["contiguous"][where].sum() / step_s[name][where].sum()

    assert gain("frozen", home & after) > 1.25
    assert gain("frozen", ~code) < 1.10
    assert gain("periodic", ~code) > 1.25
