"""Running the experts of placements: loads, scale, comparison, an outcome, and one real run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.calibrate.measurements import Workload
from moesim.calibrate.validate_loads import (
    choose_scale,
    device_loads,
    fit_loads,
    scaled_rows,
)
from moesim.calibrate.validate_plan import ValidateOptions, validate_plan
from moesim.calibrate.validate_score import (
    DeviceRuns,
    bootstrap_slowest,
    compare_pairs,
    gains,
    rank_correlation,
)
from moesim.errors import InfeasibleError, UsageError
from moesim.model import load_model
from moesim.operators.cpu_experts import (
    CpuExpertCoefficients,
    CpuExpertFit,
    CpuExpertProfile,
    ExpertShape,
    cpu_experts_s,
)
from moesim.planners.outcome import PlanOutcome, PlanRequest
from moesim.planners.plan import make_plan
from moesim.planners.validation import PlacementValidation
from moesim.reports.html import render_html
from moesim.reports.markdown import render_markdown
from moesim.safe_io import write_json

from ..cli.commands import EXPERTS, LAYERS, TOP_K, moesim, tiny_model, tiny_trace

TRUTH = CpuExpertCoefficients(
    dtype="fp32",
    call_s=1e-6,
    expert_s=2e-5,
    memory_bytes_per_s=6e9,
    few_rows=0,
    few_rows_flop_per_s=6e10,
    flop_per_s=6e10,
    activation_bytes_per_s=1e10,
    overlap_exponent=1.2,
)


class Machine:
    """Runs by the physics, with noise and slow minutes, on a clock of its own."""

    def __init__(self, noise: float = 0.0, stop_after: int | None = None) -> None:
        self.rng = np.random.default_rng(3)
        self.noise, self.stop_after = noise, stop_after
        self.now_s, self.calls = 0.0, 0

    def true_s(self, workload: Workload) -> float:
        shape = ExpertShape(workload.hidden, workload.inter, dtype=workload.dtype)
        return float(cpu_experts_s(TRUTH, np.array(workload.expert_rows), shape).total_s)

    def seconds(self, workload: Workload) -> float:
        self.calls += 1
        if self.calls == self.stop_after:
            raise KeyboardInterrupt
        taken_s = self.true_s(workload) * np.exp(self.noise * self.rng.standard_normal())
        if int(self.now_s / 10) % 3 == 1:  # a slow phase of ten seconds in thirty
            taken_s *= 1.15
        self.now_s += taken_s
        return float(taken_s)


class Unrelated(Machine):
    """Every load takes a time of its own that has nothing to do with its rows."""

    def true_s(self, workload: Workload) -> float:
        drawn = np.random.default_rng(list(workload.expert_rows)).standard_normal()
        return float(1e-3 * np.exp(0.3 * drawn))


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> PlanOutcome:
    folder = tmp_path_factory.mktemp("plan")
    request = PlanRequest(
        trace=tiny_trace(folder / "trace"),
        model=str(tiny_model(folder)),
        cluster="4xh100_sxm",
        planner="lpt-swap",
        beside=("eplb",),
        tokens_per_device=512,
    )
    return make_plan(request)


def run(outcome: PlanOutcome, machine: Machine, seconds: float = 60.0, **options: Any):
    given = ValidateOptions(
        minutes=seconds / 60, machine=machine, now=lambda: machine.now_s, **options
    )
    return validate_plan(outcome, given)


@pytest.fixture(scope="module")
def quiet(outcome: PlanOutcome) -> tuple[PlacementValidation, int]:
    """A validation without noise, and how many calls it made."""
    machine = Machine()
    return run(outcome, machine), machine.calls


def test_devices_get_all_tokens(outcome: PlanOutcome) -> None:
    batches = outcome.holdout_batches
    assert batches is not None
    placements = [outcome.scores[name].placement for name in ("contiguous", "lpt-swap")]
    loads = device_loads(
        batches, placements, outcome.cluster, outcome.comm, outcome.phase, rows_divisor=1, seed=0
    )
    assert loads.load_of.shape == (2, batches.count * LAYERS, 4)
    rows = np.array([sum(load) for load in loads.loads])
    assert (rows[loads.load_of].sum(-1) == 4 * 512 * TOP_K).all()
    assert sorted(set(zip(loads.batch.tolist(), loads.layer.tolist(), strict=True))) == [
        (batch, layer) for batch in range(batches.count) for layer in range(LAYERS)
    ]
    place = int(np.flatnonzero((loads.batch == 0) & (loads.layer == 1))[0])
    counts = np.bincount(batches.routing[0, 1].ravel(), minlength=EXPERTS)
    for device in range(4):
        own = counts[2 * device : 2 * device + 2]  # contiguous
        assert loads.loads[loads.load_of[0, place, device]] == tuple(sorted(own, reverse=True))


def test_scaled_rows_keep_who_is_active() -> None:
    assert scaled_rows(np.array([0, 1, 5, 100]), 8).tolist() == [0, 1, 1, 12]


def test_other_loads_are_never_those_that_are_judged(outcome: PlanOutcome) -> None:
    batches = outcome.holdout_batches
    assert batches is not None
    placements = [outcome.scores["contiguous"].placement]
    loads = device_loads(
        batches, placements, outcome.cluster, outcome.comm, outcome.phase, rows_divisor=64, seed=0
    )
    others = fit_loads(loads, 2, seed=0)
    assert len(others) == 40
    assert not set(others) & set(loads.loads)
    assert {len(load) for load in others} >= {1, 2, 3}


@pytest.mark.parametrize("name", ["mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v3"])
def test_a_cpu_runs_less(name: str) -> None:
    model = load_model(name)
    scale = choose_scale(model, device_rows=16384, expert_rows=2048, dtype="fp32")
    shape = ExpertShape(scale.hidden, scale.inter, dtype="fp32")
    assert float(shape.weight_bytes) <= 2**21
    assert 16384 / scale.rows_divisor * float(shape.row_flops) < 1e9
    assert 2048 / scale.rows_divisor >= 16
    assert scale.hidden == pytest.approx(model.expert_input_size / scale.width_divisor, abs=16)


def test_slowest_device_and_pairs_by_hand() -> None:
    # Two placements, three layers of a batch, two devices; loads 0..3 take 1, 2, 3, 4 s.
    load_of = np.array([[[0, 3], [0, 1], [2, -1]], [[1, 2], [1, 0], [3, 0]]])
    samples_s = np.tile([1.0, 2.0, 3.0, 4.0], (6, 1))
    runs = DeviceRuns(load_of, samples_s, np.array([1.0, 2.0, 3.0, 2.5]))
    assert runs.slowest_s(runs.times_s).tolist() == [[4, 2, 3], [3, 2, 4]]
    assert runs.slowest_s(runs.predicted_s).tolist() == [[2.5, 2, 3], [3, 2, 2.5]]
    draws = bootstrap_slowest(runs)
    assert (draws == runs.slowest_s(runs.times_s)).all(), "without noise every draw is the same"
    pairs = compare_pairs(runs, draws)
    # The second layer has the same loads on other devices; the others are predicted wrongly.
    assert (pairs.compared, pairs.beyond_noise, pairs.agreeing) == (2, 2, 0)
    found = gains(("a", "b"), "a", runs, draws)
    assert found["b"].measured_speedup == 1.0
    assert found["b"].predicted_speedup == pytest.approx(7.5 / 7.5)
    assert found["a"].gain_holds is None


def test_noise_hides_small_differences() -> None:
    rng = np.random.default_rng(0)
    load_of = np.array([[[0]], [[1]], [[2]]])
    noisy = np.array([1.0, 1.01, 1.5]) * np.exp(0.05 * rng.standard_normal((8, 3)))
    runs = DeviceRuns(load_of, noisy, np.array([1.0, 1.01, 1.5]))
    pairs = compare_pairs(runs, bootstrap_slowest(runs))
    assert (pairs.compared, pairs.beyond_noise, pairs.agreeing) == (3, 2, 2)


def test_rank_correlation_is_spearmans() -> None:
    from scipy import stats

    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 9, 40).astype(float), rng.integers(0, 9, 40).astype(float)
    assert rank_correlation(one, other) == pytest.approx(stats.spearmanr(one, other).statistic)
    assert rank_correlation(np.ones(4), np.arange(4.0)) is None


def test_without_noise_the_prediction_holds(quiet: tuple[PlacementValidation, int]) -> None:
    found, _ = quiet
    assert found.planner_names == ("contiguous", "eplb", "lpt-swap")
    assert found.median_ape < 0.02
    assert found.spearman is not None
    assert found.spearman > 0.98
    assert found.pairs_beyond_noise > 10
    assert found.agreement == 1.0
    chosen = found.planners["lpt-swap"]
    assert chosen.gain_holds
    assert chosen.measured_speedup == pytest.approx(chosen.predicted_speedup, rel=0.02)
    assert all(found.goals().values())


def test_with_noise_and_slow_phases(outcome: PlanOutcome) -> None:
    found = run(outcome, Machine(noise=0.05), seconds=120)
    assert found.rounds >= 12
    assert 0 < found.noise < 0.06
    assert found.median_ape < 0.05
    assert found.agreement is not None
    assert found.agreement > 0.9


def test_a_prediction_that_fails_is_seen_to_fail(outcome: PlanOutcome) -> None:
    found = run(outcome, Unrelated())
    assert found.agreement is not None
    assert found.agreement < 0.8
    assert found.spearman is not None
    assert found.spearman < 0.6
    assert not all(found.goals().values())


def test_interruption_keeps_what_is_there(
    outcome: PlanOutcome, quiet: tuple[PlacementValidation, int]
) -> None:
    found = run(outcome, Machine(stop_after=quiet[1] // 2))
    assert found.interrupted
    assert found.layers_run > 0
    with pytest.raises(KeyboardInterrupt):
        run(outcome, Machine(stop_after=3))


def test_too_little_time(outcome: PlanOutcome) -> None:
    with pytest.raises(InfeasibleError, match="validate-minutes"):
        run(outcome, Machine(), seconds=0.01)
    with pytest.raises(UsageError, match="validate-minutes"):
        run(outcome, Machine(), seconds=0)


def test_reports_show_it(outcome: PlanOutcome, quiet: tuple[PlacementValidation, int]) -> None:
    found, _ = quiet
    told = replace(outcome, validation=found)
    markdown, page = render_markdown(told), render_html(told)
    assert found.scale.rows_divisor > 1
    tokens = f"1/{found.scale.rows_divisor} of the tokens"
    for text in ("Run for real", "lpt-swap", tokens, "ank correlation"):
        assert text in markdown
        assert text in page
    assert page.count("<svg") == render_html(outcome).count("<svg") + 1
    assert "Run for real" not in render_markdown(outcome)


def test_a_real_run_through_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_trace(tmp_path / "trace")
    model = tiny_model(tmp_path, hidden_size=64, intermediate_size=64)
    words = ["plan", tmp_path / "trace", "--model", model, "--cluster"]
    words += ["4xh100_sxm", "--planner", "lpt", "--tokens-per-device", "64", "--export", "none"]
    words += ["--validate", "--validate-minutes", "0.2", "--out", tmp_path / "out", "--json"]
    answer = moesim(capsys, *words)
    assert answer.code == 0, answer.err
    found = answer.json["validation"]
    assert found["device"] == "cpu"
    assert found["clock"] == "thread-cpu"
    assert set(found["planners"]) == {"contiguous", "eplb", "lpt"}
    assert len(found["points"]) == 3 * found["layers_of_batches"]
    assert all(0 < point["measured_s"] < 60 for point in found["points"])
    assert found["median_ape"] < 2
    assert answer.json["planner"] == "lpt"
    assert "Run for real" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    json.dumps(found, allow_nan=False)


def test_the_plan_is_kept_whatever_becomes_of_the_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from moesim.calibrate import validate_plan as runs

    tiny_trace(tmp_path / "trace")
    words = ["plan", tmp_path / "trace", "--model", tiny_model(tmp_path), "--cluster"]
    words += ["4xh100_sxm", "--planner", "lpt", "--tokens-per-device", "64", "--export", "none"]
    words += ["--validate", "--json", "--out"]
    for name, error, code in (
        ("short", InfeasibleError("too short\nfix: allow more"), 5),
        ("stopped", KeyboardInterrupt(), 130),
    ):

        def fail(*_: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(runs, "validate_plan", fail)
        answer = moesim(capsys, *words, tmp_path / name)
        assert answer.code == code
        assert answer.json["ok"] is False
        assert ("validation" in answer.json) == (code == 5)
        assert (tmp_path / name / "plan.json").is_file()
        assert str(tmp_path / name) in answer.err


def test_a_profile_predicts_other_widths(outcome: PlanOutcome, tmp_path: Path) -> None:
    profile = CpuExpertProfile(
        system="made_up",
        processor="made up",
        threads=1,
        clock="thread-cpu",
        fits=(
            CpuExpertFit(
                system="made_up",
                engine="torch",
                version="1",
                kernel="linear-loop",
                rows=99,
                coefficients=TRUTH,
            ),
        ),
        versions={},
        date="2026-01-01",
        command="none",
    )
    file = write_json(tmp_path / "made_up.cpu-experts.json", profile.to_dict())
    found = run(outcome, Machine(), profile=file)
    assert found.fitted_points == 0
    assert found.model == str(file)
    # Samples are divided by how slow their round was, so a slow phase does not count.
    assert found.median_ape < 0.08
    assert found.agreement == 1.0
