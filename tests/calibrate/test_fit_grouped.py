"""Kernels of a benchmark's file, fitted and scored on cases that the fit has not seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.calibrate import fit_grouped
from moesim.calibrate.fit_grouped import (
    fit_work,
    held_out_kernels,
    is_bench_file,
    kernel_times,
)
from moesim.calibrate.grouped_file import fit_file
from moesim.calibrate.validate_cost import fit_gpu
from moesim.errors import InputError
from moesim.kernels.bench_cases import plan_cases
from moesim.kernels.bench_file import add_samples, read_bench, write_bench
from moesim.operators.grouped_gemm import (
    GroupedCoefficients,
    GroupedFits,
    GroupedWork,
    grouped_s,
)
from moesim.planners.validation import RunScale

from ..cli.commands import moesim

GPU = GroupedCoefficients(
    serial=False,
    call_s=2e-5,
    expert_s=5e-8,
    weight_bytes_per_s=3e12,
    flop_per_s=6e14,
    row_bytes_per_s=2.5e12,
    tile_rows=64,
    overlap_exponent=3.0,
)
LOOP = GPU.model_copy(update={"serial": True, "call_s": 1e-5, "expert_s": 4e-6, "tile_rows": 1})


@pytest.fixture(autouse=True)
def _few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The made-up kernels have one way of running; two candidates show that it is found."""
    monkeypatch.setattr(fit_grouped, "FEW_ROWS", (0, 4))
    monkeypatch.setattr(fit_grouped, "TILES", (1, 64))


def work_of(rows: list[list[int]], expert_bytes: float = 8e6) -> GroupedWork:
    count = len(rows)
    ones = np.ones(count)
    return GroupedWork(np.array(rows, float), ones * expert_bytes, ones * 8e6, ones * 8e3)


def bench_file(noise: float = 0.0) -> dict[str, Any]:
    """A made-up file whose two kernels run by the physics."""
    document: dict[str, Any] = {
        "schema": "moesim.kernels/1",
        "kind": "bench",
        "device": "cuda",
        "system": "made_up",
        "date": "2026-01-01",
        "environment": {
            "processor": "host",
            "gpu": "made up",
            "clock": "cuda-event",
            "cores": 132,
            "memory_bytes": 150e9,
        },
        "ceilings": {"copy_bytes_per_s": 3e12, "dense_flop_per_s": 7e14},
        "loads": {},
        "cases": [],
    }
    rng = np.random.default_rng(2)
    for case in plan_cases(True):
        if case.op != "grouped-gemm" or case.dtype != "bf16":
            continue
        weights = float(case.n * case.k)
        ones = np.ones(1)
        work = GroupedWork(
            np.array([case.rows], float), ones * 2 * weights, ones * 2 * weights,
            ones * 2.0 * (case.n + case.k),
        )  # fmt: skip
        samples = {}
        for kernel, truth in (("moesim", GPU), ("torch-loop", LOOP)):
            seconds = float(grouped_s(truth, work)[0]) * np.exp(noise * rng.standard_normal())
            samples[kernel, ""] = ("cuda-graph", [float(seconds)])
        samples["moesim", "tile-64"] = ("cuda-graph", [1e-3])
        add_samples(document, case, samples)
    return document


def test_a_call_by_hand() -> None:
    work = work_of([[64, 1, 0]])
    read_s, compute_s = 2 * 8e6 / 3e12, 128 * 8e6 / 6e14
    both_s = (read_s**3 + compute_s**3) ** (1 / 3)
    expected = 2e-5 + 2 * 5e-8 + both_s + 65 * 8e3 / 2.5e12
    assert grouped_s(GPU, work)[0] == pytest.approx(expected)
    one_by_one = [grouped_s(LOOP, work_of([[rows]]))[0] for rows in (64, 1)]
    together = grouped_s(LOOP, work)[0]
    assert together == pytest.approx(sum(one_by_one) - LOOP.call_s)


@given(st.lists(st.integers(0, 500), min_size=1, max_size=12), st.booleans(), st.randoms())
def test_order_does_not_matter_and_more_rows_take_longer(rows, serial, random) -> None:
    truth = GPU.model_copy(update={"serial": serial})
    seconds = grouped_s(truth, work_of([rows]))[0]
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert grouped_s(truth, work_of([shuffled]))[0] == pytest.approx(seconds)
    assert grouped_s(truth, work_of([[row + 1 for row in rows]]))[0] > seconds


def test_the_fit_recovers_predictions() -> None:
    times = {kernel.name: kernel for kernel in kernel_times(bench_file())}
    assert set(times) == {"moesim/grouped-gemm/bf16", "torch-loop/grouped-gemm/bf16"}
    for kernel in times.values():
        assert kernel.serial == ("loop" in kernel.name)
        found, _ = fit_work(kernel.work, kernel.time_s, kernel.serial)
        error = np.abs(grouped_s(found, kernel.work) / kernel.time_s - 1)
        assert np.median(error) < 0.01, kernel.name


def test_errors_on_cases_not_seen_are_those_of_the_noise() -> None:
    scores = held_out_kernels(kernel_times(bench_file(noise=0.05)))
    assert scores.all.covered == scores.all.rows
    assert scores.all.median_ape is not None
    assert 0.02 < scores.all.median_ape < 0.06


def test_intervals_are_those_of_models_not_seen(tmp_path: Path) -> None:
    document = bench_file(noise=0.05)
    file = tmp_path / "bench.json"
    write_bench(file, document)
    for fit in fit_file(file).fits:
        low, high = fit.interval
        assert fit.held_out == "model"
        assert 0.85 < low < 1 < high < 1.15
    # One model runs twice as long as the physics says: only those held out can tell.
    for entry in document["cases"]:
        if entry["shape"]["model"] == "deepseek-v3":
            entry["time_s"] *= 2
    write_bench(file, document)
    assert fit_file(file).fits[0].interval[1] > 1.5
    document["cases"] = [
        entry
        for entry in document["cases"]
        if entry["shape"]["model"] in ("deepseek-v3", "mixtral-8x7b")
    ]
    write_bench(file, document)
    assert {fit.held_out for fit in fit_file(file).fits} == {"case"}


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bench.json"
    write_bench(file, bench_file(noise=0.02))
    assert is_bench_file(file)
    answer = moesim(capsys, "calibrate", "evaluate", "--source", file, "--json")
    assert answer.code == 0, answer.err
    assert answer.json["operator"] == "grouped_gemm"
    assert answer.json["median_ape"] < 0.03
    assert set(answer.json["by_regime"]) == {
        "moesim/grouped-gemm/bf16",
        "torch-loop/grouped-gemm/bf16",
    }
    answer = moesim(
        capsys, "calibrate", "fit", "--source", file, "--out", tmp_path / "fits", "--json"
    )
    assert answer.code == 0, answer.err
    fits = GroupedFits.load(answer.json["file"])
    assert [fit.kernel for fit in fits.fits] == ["moesim", "torch-loop"]
    assert fits.processor == "made up"
    assert fits.copy_bytes_per_s == 3e12
    words = ("simulate", "step", "--model", "qwen3-30b-a3b", "--json")
    answer = moesim(
        capsys, *words, "--cluster", "2xh200_sxm", "--cost", f"{answer.json['file']}:moesim"
    )
    assert answer.code == 0, answer.err
    experts = next(op for op in answer.json["ops"] if op["name"] == "moe.experts")
    assert experts["kernel"].startswith("moesim, bf16, measured on made up")


def test_too_few_cases_are_refused(tmp_path: Path) -> None:
    document = bench_file()
    document["cases"] = document["cases"][:9]
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(document))
    with pytest.raises(InputError, match="too few measured calls") as error:
        fit_file(file)
    assert str(file) in str(error.value)


def test_a_gpus_placements_are_predicted_by_the_grouped_model() -> None:
    scale = RunScale(2048, 768, 1, 1, "bf16")
    rng = np.random.default_rng(0)
    loads = [tuple(int(r) for r in rng.integers(1, 4000, rng.integers(1, 9))) for _ in range(60)]
    weights = 3.0 * 2048 * 768

    def true_s(loads: list[tuple[int, ...]]) -> np.ndarray:
        rows = np.zeros((len(loads), 16))
        for place, load in enumerate(loads):
            rows[place, : len(load)] = load
        ones = np.ones(len(loads))
        row_bytes = 2.0 * (2 * 2048 + 6 * 768)
        return grouped_s(
            GPU, GroupedWork(rows, ones * 2 * weights, ones * 2 * weights, ones * row_bytes)
        )

    found = fit_gpu(scale, loads[:40], true_s(loads[:40]), loads[40:])
    assert np.abs(found / true_s(loads[40:]) - 1).max() < 0.05


def test_the_measured_files_can_be_fitted() -> None:
    folder = Path(__file__).resolve().parents[2] / "kernels" / "measured"
    for file in folder.glob("*.json"):
        assert kernel_times(read_bench(file)), file


def test_our_kernels_compute_the_layer_that_is_timed() -> None:
    import torch

    from moesim.calibrate.measurements import Workload
    from moesim.calibrate.torch_workloads import CudaWorkloads, TritonWorkloads

    workload = Workload(kind="experts", dtype="fp32", hidden=64, inter=32, expert_rows=(5, 3, 1))
    torch.manual_seed(0)
    run = TritonWorkloads([workload], 2**20, device="cpu")
    ours = run.experts(workload)()
    torch.manual_seed(0)
    other = CudaWorkloads([workload], 2**20, device="cpu")
    layer = other.experts(workload)
    # The same numbers, but gate and up lie row by row in turn: bring them into that order.
    assert ours.shape == layer().shape == (9, 64)
    weights = run._pool
    weights._cursor = 0
    flat = weights.take(3 * 3 * 64 * 32, "fp32")
    gate_up = flat[: 3 * 64 * 64].view(3, 64, 64)
    down = flat[3 * 64 * 64 :].view(3, 64, 32)
    torch.manual_seed(0)
    states = torch.randn(9, 64)
    start = 0
    for expert, rows in enumerate(workload.expert_rows):
        part = slice(start, start + rows)
        start += rows
        both = states[part] @ gate_up[expert].T
        product = torch.nn.functional.silu(both[:, 0::2]) * both[:, 1::2]
        torch.testing.assert_close(ours[part], product @ down[expert].T, rtol=1e-4, atol=1e-5)
