"""Measuring a CPU: plan, rounds, rules for noise, file, fit, score, and one real run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.calibrate import measure as measuring
from moesim.calibrate import score_cpu
from moesim.calibrate.cpu_device import measured_device
from moesim.calibrate.cpu_layers import expert_frame
from moesim.calibrate.fit_cpu import CPU_EXPERTS
from moesim.calibrate.measure import MeasureOptions, measure, time_in_rounds
from moesim.calibrate.measure_plan import PlanLimits, plan_workloads
from moesim.calibrate.measurements import (
    Environment,
    Measurements,
    Workload,
    finish,
    is_measurements_file,
)
from moesim.calibrate.score_cpu import HeldOut, fit_profile, held_out, repeat_noise
from moesim.cli import calibrate_measure
from moesim.cli.console import run
from moesim.errors import InputError, MissingExtraError, UsageError
from moesim.hardware import load_device
from moesim.operators.cpu_experts import (
    CpuExpertCoefficients,
    CpuExpertProfile,
    ExpertShape,
    cpu_experts_s,
)
from moesim.safe_io import write_json

TRUTH = {
    "fp32": CpuExpertCoefficients(
        dtype="fp32",
        call_s=1e-6,
        expert_s=2e-5,
        memory_bytes_per_s=15e9,
        cache_bytes_per_s=40e9,
        few_rows=4,
        few_rows_flop_per_s=3e10,
        flop_per_s=1.5e11,
        pack_bytes_per_s=12e9,
        activation_bytes_per_s=2e10,
        overlap_exponent=1.3,
    ),
    "int8": CpuExpertCoefficients(
        dtype="int8",
        call_s=1e-6,
        expert_s=4e-5,
        memory_bytes_per_s=10e9,
        cache_bytes_per_s=30e9,
        few_rows=0,
        few_rows_flop_per_s=5e11,
        flop_per_s=5e11,
        activation_bytes_per_s=6e9,
        overlap_exponent=1.1,
    ),
}
LIMITS = PlanLimits(shapes=20, loads=4, dtypes=("fp32", "int8"), cache_bytes=20e6)


def layer_s(workload: Workload) -> float:
    if workload.kind != "experts":
        return 1e-6 + workload.moved_bytes / 12e9
    shape = ExpertShape(workload.hidden, workload.inter, dtype=workload.dtype)
    cached = workload.residency == "cache"
    rows = np.array(workload.expert_rows)
    return float(cpu_experts_s(TRUTH[workload.dtype], rows, shape, cached).total_s)


class Machine:
    """A machine that runs by the physics, with noise, and its own clock."""

    def __init__(self, noise: float = 0.03, stop_after: int | None = None) -> None:
        self.rng = np.random.default_rng(5)
        self.noise = noise
        self.now_s = 0.0
        self.calls = 0
        self.stop_after = stop_after
        self.slow = lambda: 1.0

    def seconds(self, workload: Workload) -> float:
        self.calls += 1
        if self.calls == self.stop_after:
            raise KeyboardInterrupt
        stall = 10.0 if self.rng.random() < 0.02 else 1.0
        taken_s = layer_s(workload) * np.exp(self.noise * self.rng.standard_normal()) * stall
        taken_s *= self.slow()
        self.now_s += taken_s
        return float(taken_s)


def measurements_of(machine: Machine, limits: PlanLimits = LIMITS, budget_s: float = 100.0):
    plan = plan_workloads(limits, seed=1)
    rounds = time_in_rounds(plan, machine, budget_s=budget_s, seed=2, now=lambda: machine.now_s)
    points, slow = finish(rounds.workloads, rounds.samples_s)
    return Measurements(
        system="made_up",
        device="cpu",
        engine="torch",
        version="1",
        kernel="linear-loop",
        date="2026-01-01T00:00:00+00:00",
        command="none",
        seed=1,
        planned=len(plan),
        rounds=rounds.rounds,
        slow_rounds=slow,
        interrupted=rounds.interrupted,
        environment=Environment(
            processor="made up",
            processors_usable=2,
            threads=1,
            clock="thread-cpu",
            memory_bytes=2**34,
            weight_pool_bytes=2**28,
            load_average=(0.5, 0.6),
        ),
        points=points,
    )


@pytest.fixture(scope="module")
def measured() -> Measurements:
    return measurements_of(Machine())


@pytest.fixture(scope="module")
def scores(measured: Measurements) -> HeldOut:
    return held_out(measured, seed=0)


# Physics


def test_time_of_one_expert_by_hand() -> None:
    # 64 rows > few_rows: weights 3*1024*512*4 B read at 15 GB/s and packed at 12 GB/s.
    weight_bytes = 3 * 1024 * 512 * 4
    weights_s = weight_bytes / 15e9 + weight_bytes / 12e9
    arithmetic_s = 64 * 6 * 1024 * 512 / 1.5e11
    both_s = (weights_s**1.3 + arithmetic_s**1.3) ** (1 / 1.3)
    activations_s = 64 * 4 * (2 * 1024 + 6 * 512) / 2e10
    expected = 1e-6 + 2e-5 + both_s + activations_s
    time = cpu_experts_s(TRUTH["fp32"], np.array([0, 64, 0]), ExpertShape(1024, 512, dtype="fp32"))
    assert time.total_s == pytest.approx(expected, rel=1e-12)
    # Few rows: not packed, slower arithmetic, weights from the cache.
    weights_s, arithmetic_s = weight_bytes / 40e9, 2 * 6 * 1024 * 512 / 3e10
    both_s = (weights_s**1.3 + arithmetic_s**1.3) ** (1 / 1.3)
    expected = 1e-6 + 2e-5 + both_s + 2 * 4 * (2 * 1024 + 6 * 512) / 2e10
    few = cpu_experts_s(TRUTH["fp32"], np.array([2]), ExpertShape(1024, 512, dtype="fp32"), True)
    assert few.total_s == pytest.approx(expected, rel=1e-12)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    rows=st.lists(st.integers(0, 600), min_size=1, max_size=12),
    hidden=st.integers(64, 8192),
    inter=st.integers(64, 8192),
    dtype=st.sampled_from(["fp32", "int8"]),
)
def test_layers_are_sums_of_experts_in_any_order(rows, hidden, inter, dtype) -> None:
    c, shape = TRUTH[dtype], ExpertShape(hidden, inter, dtype=dtype)
    whole = cpu_experts_s(c, np.array(rows), shape)
    single = cpu_experts_s(c, np.array(rows)[:, None], shape)
    assert whole.total_s - c.call_s == pytest.approx((single.total_s - c.call_s).sum(), rel=1e-9)
    mixed = cpu_experts_s(c, np.array([0, *reversed(rows), 0]), shape)
    assert mixed.total_s == pytest.approx(whole.total_s, rel=1e-9)
    # The smooth maximum lies between the larger part and the sum of the parts.
    parts = whole.fixed_s + whole.memory_s + whole.compute_s
    assert whole.total_s <= parts * (1 + 1e-9)
    assert whole.total_s >= max(whole.memory_s, whole.compute_s) * (1 - 1e-9)
    more = cpu_experts_s(c, np.array(rows) + 5 * (np.array(rows) > c.few_rows), shape)
    assert more.total_s >= whole.total_s * (1 - 1e-9)


def test_cache_that_was_not_measured_has_no_prediction() -> None:
    c = TRUTH["fp32"].model_copy(update={"cache_bytes_per_s": None})
    rows, shape = np.array([[3, 1], [3, 1]]), ExpertShape(512, 512, dtype="fp32")
    total_s = cpu_experts_s(c, rows, shape, np.array([True, False])).total_s
    assert np.isnan(total_s).tolist() == [True, False]


# Plan


def test_plan_is_deterministic_within_limits_and_fair_from_its_start() -> None:
    limits = PlanLimits()
    plan = plan_workloads(limits, 3)
    assert plan == plan_workloads(limits, 3)
    assert plan != plan_workloads(limits, 4)
    experts = [w for w in plan if w.kind == "experts"]
    assert len(experts) == limits.shapes * limits.loads * len(limits.dtypes)
    first = experts[: limits.shapes * len(limits.dtypes)]
    assert len({(w.hidden, w.inter, w.dtype) for w in first}) == len(first)
    for w in experts:
        shape = ExpertShape(w.hidden, w.inter, dtype=w.dtype)
        weight_bytes = len(w.expert_rows) * shape.weight_bytes
        assert weight_bytes <= max(limits.call_bytes, shape.weight_bytes)
        # Rounding of skewed rows may exceed the limit a little.
        rows = max(sum(w.expert_rows), 1)
        assert rows * shape.row_flops <= max(1.1 * limits.call_flops, 20 * shape.row_flops)
        assert w.residency == "memory" or weight_bytes <= limits.cache_bytes
    assert {w.residency for w in experts} == {"memory", "cache"}
    assert any(len(set(w.expert_rows)) > 2 for w in experts), "some loads are skewed"
    rows = np.array([max(w.expert_rows) for w in experts])
    assert (rows <= 2).sum() >= 10
    assert (rows >= 128).sum() >= 10


# Rounds and rules


def test_budget_cuts_the_plan_and_bounds_the_rounds() -> None:
    machine = Machine()
    small = measurements_of(machine, budget_s=2.0)
    assert small.rounds >= 3
    assert 10 < len(small.points) < small.planned
    # Rounds are not begun that would not fit; a last one may run a little longer than the one
    # before, by stalls.
    assert machine.now_s < 2.0 * 1.15
    large = measurements_of(Machine(), budget_s=1e6)
    assert len(large.points) == large.planned
    assert large.rounds == measuring.MOST_ROUNDS


def test_slow_rounds_and_noisy_points_are_set_aside_by_name() -> None:
    plan = [Workload(kind="read", moved_bytes=100 + i) for i in range(8)]
    samples = [[1.0, 1.01, 2.0, 0.99, 1.02] for _ in plan]
    samples[3] = [1.0, 1.8, 2.0, 0.6, 1.4]
    samples[5] = [1.0]
    samples[6] = []
    points, slow = finish(plan, samples[:5])
    assert slow == (2,)
    assert [p.noisy for p in points] == [None, None, None, "spread", None]
    assert points[0].time_s == pytest.approx(np.median([1.0, 1.01, 0.99, 1.02]))
    points, slow = finish(plan, samples)
    assert slow == ()
    assert [p.workload.moved_bytes for p in points] == [100, 101, 102, 103, 104, 105, 107]
    assert points[5].noisy == "few-rounds"


def test_never_more_than_half_of_the_rounds_are_slow() -> None:
    samples = [[1.0, 1.0, 3.0, 3.0, 3.0] for _ in range(4)]
    plan = [Workload(kind="read", moved_bytes=1 + i) for i in range(4)]
    _, slow = finish(plan, samples)
    assert len(slow) <= 2


def test_stalls_and_a_slow_phase_do_not_move_the_times() -> None:
    machine = Machine(noise=0.01)
    machine.slow = lambda: 2.0 if 10 < machine.now_s < 18 else 1.0
    result = measurements_of(machine, budget_s=60.0)
    times_s = np.array([p.time_s for p in result.points if p.noisy is None])
    true_s = np.array([layer_s(p.workload) for p in result.points if p.noisy is None])
    assert len(times_s) > 0.9 * len(result.points)
    assert np.abs(np.log(times_s / true_s)).max() < 0.05


def test_interruption_keeps_what_was_measured() -> None:
    whole = measurements_of(Machine())
    first_visit = whole.planned
    partial = measurements_of(Machine(stop_after=first_visit + 300))
    assert partial.interrupted
    assert partial.rounds == 0
    assert 50 < len(partial.points) < whole.planned
    assert all(p.noisy == "few-rounds" for p in partial.points)
    later = measurements_of(Machine(stop_after=first_visit + 9000))
    assert later.interrupted
    assert later.rounds >= 3
    assert sum(p.noisy is None for p in later.points) > 0.9 * len(later.points)


# Fit and score


def test_fit_recovers_the_physics_that_made_the_times(measured: Measurements) -> None:
    table = CPU_EXPERTS.load(_saved(measured))
    assert table.frame.operator == "cpu_experts"
    fits = CPU_EXPERTS.fit(table, np.ones(len(table.frame), bool))
    for dtype, truth in TRUTH.items():
        found = fits[dtype].coefficients
        # 3 and 4 differ in what no layer of the plan may tell apart.
        assert abs(found.few_rows - truth.few_rows) <= 1
        assert found.flop_per_s == pytest.approx(truth.flop_per_s, rel=0.1)
        assert found.memory_bytes_per_s == pytest.approx(truth.memory_bytes_per_s, rel=0.15)
    assert fits["fp32"].coefficients.cache_bytes_per_s == pytest.approx(40e9, rel=0.4)
    # One call per layer of milliseconds: 1 µs shows nowhere, 20 µs per expert does.
    assert fits["fp32"].undetermined == ("call_s",)
    predicted_s = CPU_EXPERTS.predict(table, fits)
    measured_s = table.frame["latency_s"]
    assert np.median(np.abs(predicted_s / measured_s - 1)) < 0.02
    again = CPU_EXPERTS.fit(table, np.ones(len(table.frame), bool))
    assert again == fits


def _saved(measurements: Measurements) -> Path:
    import tempfile

    folder = Path(tempfile.mkdtemp())
    return write_json(folder / "m.json", measurements.to_dict())


def test_held_out_shapes_beat_the_roofline(measured: Measurements, scores: HeldOut) -> None:
    assert scores.ours.covered == scores.ours.rows == len(expert_frame(measured))
    assert scores.ours.median_ape < 0.03
    assert scores.ours.p90_ape < 0.1
    assert scores.ratio is not None
    assert scores.ratio < 0.4
    assert 0.72 <= scores.ours.interval_coverage <= 0.9
    assert scores.shapes == LIMITS.shapes
    low, high = scores.intervals["fp32"]
    assert 0.9 < low < 1 < high < 1.1
    noise = repeat_noise(measured)
    assert noise["points"] == len(measured.points)
    assert 0.001 < noise["iqr_over_median_median"] < 0.05


def test_the_fit_never_sees_what_it_is_scored_on(measured: Measurements) -> None:
    table = CPU_EXPERTS.load(_saved(measured))
    key = CPU_EXPERTS.shape_key(table)
    fit = key % 3 != 0
    fits = CPU_EXPERTS.fit(table, fit)
    table.frame.columns["latency_s"][~fit] *= 100
    assert CPU_EXPERTS.fit(table, fit) == fits


def test_types_with_too_few_points_are_not_covered(measured: Measurements) -> None:
    table = CPU_EXPERTS.load(_saved(measured))
    rows = table.frame.is_label("dtype", "fp32").copy()
    rows[np.flatnonzero(~rows)[:5]] = True
    fits = CPU_EXPERTS.fit(table, rows)
    assert list(fits) == ["fp32"]
    predicted_s = CPU_EXPERTS.predict(table, fits)
    assert (np.isnan(predicted_s) == table.frame.is_label("dtype", "int8")).all()


def test_profile_and_device_are_documents(measured, scores, tmp_path: Path) -> None:
    profile = fit_profile(measured, scores)
    file = write_json(tmp_path / "p.json", profile.to_dict())
    assert CpuExpertProfile.load(file) == profile
    assert profile.fit("fp32").coefficients.dtype == "fp32"
    with pytest.raises(InputError, match="allowed: fp32, int8"):
        profile.fit("bf16")
    device_file = write_json(tmp_path / "d.json", measured_device(measured, profile).to_dict())
    device = load_device(device_file)
    assert device.peak_flop_per_s("fp32") == pytest.approx(1.5e11, rel=0.1)
    assert device.memory_bytes_per_s == pytest.approx(12e9, rel=0.05)


# Files


def test_file_round_trip(measured: Measurements, tmp_path: Path) -> None:
    file = write_json(tmp_path / "m.json", measured.to_dict())
    assert Measurements.load(file) == measured
    assert is_measurements_file(file)
    other = write_json(tmp_path / "o.json", {"schema": "moesim.device/1"})
    assert not is_measurements_file(other)
    assert not is_measurements_file(tmp_path / "none.json")


def _without_rows(data: dict) -> None:
    expert = next(p for p in data["points"] if p["workload"]["kind"] == "experts")
    expert["workload"]["expert_rows"] = []


def _all_noisy(data: dict) -> None:
    for point in data["points"]:
        point["noisy"] = "spread"


CHANGES = {
    "schema": lambda data: data.update(schema="moesim.measurements/9"),
    "time": lambda data: data["points"][3].update(time_s=1.5 * data["points"][3]["time_s"]),
    "missing": lambda data: data.pop("environment"),
    "unknown": lambda data: data.update(surprise=1),
    "negative": lambda data: data["points"][0]["samples_s"].append(-1.0),
    "rows": _without_rows,
    "empty": lambda data: data.update(points=[]),
    "kind": lambda data: data["points"][2]["workload"].update(kind="guess"),
    "bytes": lambda data: data["points"][1]["workload"].update(moved_bytes=0),
    "gpu": lambda data: data.update(device="cuda"),
    "noisy": _all_noisy,
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("schema", "schema: not a document of this kind"),
        ("time", "points[3].time_s: the time is not the median of the samples"),
        ("missing", "environment: a required key is missing"),
        ("unknown", "surprise: unknown key"),
        ("negative", "points[0].samples_s["),
        ("rows", "expert_rows: an expert layer needs its widths and rows"),
        ("empty", "points: "),
        ("kind", "points[2].workload.kind: "),
        ("bytes", "points[1].workload.moved_bytes: a bandwidth needs the bytes"),
        ("gpu", "device: measurements of a GPU"),
        ("noisy", "points: no usable measurement"),
    ],
)
def test_bad_files_are_named(measured, tmp_path: Path, change: str, words: str) -> None:
    data = json.loads(json.dumps(measured.to_dict()))
    CHANGES[change](data)
    file = write_json(tmp_path / "bad.json", data)
    with pytest.raises(InputError) as error:
        CPU_EXPERTS.load(file)
    text = str(error.value)
    assert text.startswith(str(file))
    assert words in text
    assert "\nfix: " in text
    assert error.value.field


def test_other_systems_are_refused(measured: Measurements) -> None:
    with pytest.raises(UsageError, match="made_up"):
        CPU_EXPERTS.load(_saved(measured), systems=["h100_sxm"])
    with pytest.raises(UsageError, match="version 1"):
        CPU_EXPERTS.load(_saved(measured), versions=["2"])


# torch


def _small_limits() -> PlanLimits:
    return PlanLimits(
        shapes=2,
        loads=2,
        dtypes=("fp32", "bf16"),
        call_bytes=8e6,
        call_flops=1e8,
        copies=("read", "copy"),
    )


def test_a_real_measurement() -> None:
    options = MeasureOptions(
        minutes=0.03, threads=1, limits=_small_limits(), pool_bytes=96 * 2**20, command="test"
    )
    said = []
    result = measure(options, lambda share, text: said.append((share, text)))
    assert result.environment.clock == "thread-cpu"
    assert result.environment.versions["torch"] == result.version
    assert result.rounds >= 1
    assert not result.interrupted
    assert any(text.startswith("round") for _, text in said)
    for point in result.points:
        work = point.workload
        if work.kind == "experts":
            flops = sum(work.expert_rows) * 6 * work.hidden * work.inter
            assert 1e6 < flops / point.time_s < 1e14
        else:
            assert 1e7 < work.moved_bytes / point.time_s < 1e13


def test_the_layers_that_are_timed_compute_what_they_claim() -> None:
    import torch

    from moesim.calibrate.torch_workloads import CpuWorkloads, CudaWorkloads

    rows, hidden, inter = 5, 64, 32
    work = Workload(kind="experts", dtype="fp32", hidden=hidden, inter=inter, expert_rows=(rows, 3))
    generator = torch.Generator().manual_seed(3)
    states = torch.randn(rows, hidden, generator=generator)
    gate_up = torch.randn(2 * inter, hidden, generator=generator) * 0.1
    down = torch.randn(hidden, inter, generator=generator) * 0.1
    both = states @ gate_up.t()
    expected = (torch.nn.functional.silu(both[:, :inter]) * both[:, inter:]) @ down.t()
    before = torch.get_num_threads()
    cpu = CpuWorkloads([work], 2**20, before, "wall")
    assert cpu.seconds(work) > 0
    for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        name = "fp32" if dtype == torch.float32 else "bf16"
        cpu._expert(name, states.to(dtype), gate_up.to(dtype).t(), down.to(dtype).t())
        found = cpu._view(cpu._output, name, rows, hidden).float()
        assert (found - expected).abs().max() < limit * expected.abs().max()

    small = {"low": -8, "high": 8, "dtype": torch.int8, "generator": generator}
    states8 = torch.randint(size=(rows, hidden), **small)
    gate_up8 = torch.randint(size=(2 * inter, hidden), **small)
    down8 = torch.randint(size=(hidden, inter), **small)
    cpu._int8_expert("int8", states8, gate_up8.t(), down8.t())
    both = (states8.float() @ gate_up8.float().t()) / 127
    product = (torch.nn.functional.silu(both[:, :inter]) * both[:, inter:]).clamp(-127, 127)
    exact = product.to(torch.int8).float() @ down8.float().t()
    found = cpu._view(cpu._output, "int32", rows, hidden).float()
    # Truncation to 8 bits may fall the other way for a product on the edge of two numbers.
    assert (found - exact).abs().max() <= 8 * 3

    gpu = CudaWorkloads([work], 2**20, device="cpu")
    layer = gpu.experts(work.model_copy(update={"dtype": "bf16"}))
    assert layer().shape == (rows + 3, hidden)
    assert gpu.seconds(work.model_copy(update={"dtype": "bf16"})) > 0


def test_options_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for options, words in (
        (MeasureOptions(device="tpu"), "unknown device tpu"),
        (MeasureOptions(minutes=0), "--minutes"),
        (MeasureOptions(threads=10_000), "--threads is 10000"),
        (MeasureOptions(threads=1, clock="cuda-event"), "cannot time"),
    ):
        with pytest.raises(UsageError, match=words):
            measure(options)
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no GPU"):
        measure(MeasureOptions(device="cuda"))


# Command line


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command("measure")(calibrate_measure.measure)
    app.callback()(lambda: None)
    return app


def _returns(monkeypatch: pytest.MonkeyPatch, result: Measurements) -> list[MeasureOptions]:
    asked: list[MeasureOptions] = []

    def fake(options: MeasureOptions, progress: object) -> Measurements:
        asked.append(options)
        return result

    monkeypatch.setattr(measuring, "measure", fake)
    return asked


def test_command_writes_scores_and_profiles(
    app, measured, scores, tmp_path, monkeypatch, capsys
) -> None:
    asked = _returns(monkeypatch, measured)
    monkeypatch.setattr(score_cpu, "held_out", lambda measurements, seed: scores)
    words = ["measure", "--minutes", "2", "--seed", "3", "--out", str(tmp_path), "--json"]
    words += ["--profile", str(tmp_path / "p.json"), "--device-profile", str(tmp_path / "d.json")]
    assert run(app, words) == 0
    printed = capsys.readouterr()
    data = json.loads(printed.out)
    assert data["schema"] == "moesim.calibrate-measure/1"
    assert data["held_out"]["ratio_to_roofline"] < 0.4
    assert data["bytes_per_s"]["read"] == pytest.approx(12e9, rel=0.05)
    assert Measurements.load(data["file"]) == measured
    assert set(CpuExpertProfile.load(tmp_path / "p.json").intervals) == {"fp32", "int8"}
    load_device(tmp_path / "d.json")
    assert (asked[0].minutes, asked[0].seed) == (2.0, 3)
    _returns(monkeypatch, measured.model_copy(update={"points": measured.points[:60]}))
    assert run(app, ["measure", "--out", str(tmp_path / "x.json"), "--quiet"]) == 0
    printed = capsys.readouterr()
    assert "max-roofline, fitted alike" in printed.out
    assert "int8" in printed.out
    assert printed.err == ""


def test_a_file_is_scored_and_fitted(measured, scores, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(score_cpu, "held_out", lambda measurements, seed: scores)
    file = write_json(tmp_path / "m.json", measured.to_dict())
    result, text = calibrate_measure.evaluate_measurements(file, seed=0)
    assert result["schema"] == "moesim.calibrate/1"
    assert result["median_ape"] == scores.ours.median_ape
    assert result["ratio_to_roofline"] < 0.4
    assert set(result["coefficients"]) == {"fp32", "int8"}
    assert "80 % intervals hold" in text
    result, _ = calibrate_measure.fit_measurements(file, tmp_path / "fitted")
    assert CpuExpertProfile.load(result["file"]).system == "made_up"
    assert load_device(result["device_file"]).kind == "cpu"
    with pytest.raises(InputError, match="schema"):
        calibrate_measure.evaluate_measurements(result["device_file"], seed=0)


def test_interrupted_command_leaves_its_file(app, tmp_path, monkeypatch, capsys) -> None:
    partial = measurements_of(Machine(stop_after=600))
    assert partial.interrupted
    _returns(monkeypatch, partial)
    file = tmp_path / "m.json"
    assert run(app, ["measure", "--out", str(file), "--json"]) == 130
    printed = capsys.readouterr()
    assert json.loads(printed.out)["error"]["exit_code"] == 130
    assert Measurements.load(file) == partial


def test_command_refuses_before_it_measures(app, tmp_path, monkeypatch, capsys) -> None:
    asked = _returns(monkeypatch, None)  # type: ignore[arg-type]
    (tmp_path / "file").write_text("x")
    assert run(app, ["measure", "--out", str(tmp_path / "file" / "m.json")]) == 4
    assert run(app, ["measure", "--clock", "sun"]) == 2
    assert asked == []
    monkeypatch.undo()

    def missing() -> None:
        raise MissingExtraError("torch", "kernels", "calibrate measure")

    monkeypatch.setattr(measuring, "torch_module", missing)
    assert run(app, ["measure", "--out", str(tmp_path)]) == 2
    assert "moesim[kernels]" in capsys.readouterr().err


class Compiling:
    """A GPU to the measurement: the first run of each of a few workloads compiles for seconds."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.calls: dict[object, int] = {}

    def seconds(self, workload: Workload) -> float:
        compiles = workload not in self.calls
        self.calls[workload] = self.calls.get(workload, 0) + 1
        self.now_s += 1.0 if compiles else 1e-3
        return 1.0 if compiles else 1e-3


def test_compilation_is_not_taken_for_the_time_of_a_workload():
    machine = Compiling()
    plan = list(dict.fromkeys(plan_workloads(LIMITS, seed=1)))[:10]
    rounds = time_in_rounds(plan, machine, budget_s=60.0, now=lambda: machine.now_s)
    assert rounds.workloads == plan
    assert all(sample == 1e-3 for own in rounds.samples_s for sample in own)
