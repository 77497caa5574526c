"""The files of fits that come with moesim."""

import numpy as np
import pytest

from moesim.hardware import load_device, profiles_folder
from moesim.operators.shipped import KINDS, find_fit, shipped_fits
from moesim.schema import Evidence

SHIPPED = sorted(
    path.stem for path in (profiles_folder() / "fitted").glob("*.json") if path.stem in KINDS
)


@pytest.mark.parametrize("operator", SHIPPED)
def test_every_file_says_where_it_comes_from(operator):
    document = shipped_fits(operator)
    assert document.operator == operator
    assert document.source.startswith("aiconfigurator-core ")
    assert document.date
    assert f"--operator {operator}" in document.command
    assert document.rows > 1000
    assert {"spike", "sibling-outlier"} <= set(document.rows_dropped)
    for fit in document.fits:
        assert fit.rows > 0
        load_device("arc_b60" if fit.system == "b60" else fit.system)
        for band in (*fit.bands, *document.transfer):
            assert 0 < band.lo <= band.hi
    # A kernel of few shapes may be far off once half of them are held out; most are not.
    far = [fit for fit in document.fits if any(b.lo > 1.3 or b.hi < 0.8 for b in fit.bands)]
    share = 0.05 if document.rows > 10_000 else 0.15  # small tables have a shape or two
    assert len(far) <= share * len(document.fits)


def test_a_product_of_deepseek_v3_on_h200():
    """[4096, 7168] × [7168, 2112] in FP8: 124 GFLOP, at 1979 TFLOP/s not below 63 µs."""
    fit = find_fit("gemm", "h200_sxm", engine="sglang", dtype="fp8_block")
    found = fit.time(np.array([4096]), np.array([2112]), np.array([7168]))
    assert 63e-6 < found.time_s[0] < 150e-6
    assert found.lo_s[0] < found.time_s[0] < found.hi_s[0]
    assert found.evidence is Evidence.FITTED


def test_a_card_that_was_never_measured_gets_the_wider_intervals():
    own = find_fit("gemm", "l40s", engine="vllm", dtype="bfloat16")
    other = find_fit("gemm", "rtx4090", engine="vllm", dtype="bfloat16")
    assert other.system == "l40s"
    assert other.evidence is Evidence.SPEC
    shape = (np.array([4096]), np.array([4096]), np.array([4096]))
    narrow, wide = own.time(*shape), other.time(*shape)
    assert wide.hi_s / wide.lo_s > narrow.hi_s / narrow.lo_s


def test_an_all_reduce_across_eight_h200():
    """1 MiB: a ring moves 1.75 times that at 450 GB/s at best: 4 µs, and a launch."""
    fit = find_fit("custom_allreduce", "h200_sxm", engine="vllm", spread="node")
    assert 4e-6 < fit.time(2**20, 8).time_s < 40e-6
