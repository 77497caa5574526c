"""Bundled benchmarks of GPUs: a fit to one run predicts the loads of another."""

from pathlib import Path

import numpy as np
import pytest

from moesim.calibrate.fit_grouped import fit_work
from moesim.calibrate.grouped_file import interval, read_times
from moesim.operators.grouped_gemm import grouped_s

FOLDER = Path(__file__).resolve().parents[2] / "kernels" / "measured"


@pytest.mark.parametrize("kernel", ["moesim", "torch-grouped-mm"])
@pytest.mark.parametrize("system", ["h100_sxm", "h200_sxm"])
def test_a_fit_predicts_another_runs_loads_within_its_interval(system, kernel):
    name = f"{kernel}/grouped-gemm/bf16"
    old, new = (
        next(times for times in read_times(FOLDER / file)[1] if times.name == name)
        for file in (f"{system}.json", f"{system}_fresh_loads.json")
    )
    (low, high), held_out = interval(old)
    assert held_out == "model"
    coefficients, _ = fit_work(old.work, old.time_s, old.serial)
    ratio = new.time_s / grouped_s(coefficients, new.work)
    assert np.median(np.abs(ratio - 1)) < 0.06
    assert np.mean((ratio >= low) & (ratio <= high)) >= 0.8
    assert 0.85 < low < 1 < high < 1.2
