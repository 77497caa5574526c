"""Dense GEMM: counts by hand, monotonicity, and coefficients found again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.calibrate.fit_gemm import GEMM, fitted_dispatch
from moesim.calibrate.fit_gemm import Shapes as MeasuredShapes
from moesim.errors import InputError
from moesim.operators.gemm import (
    FORMATS,
    GemmCoefficients,
    GemmKernel,
    Tile,
    gemm_bytes,
    gemm_flops,
    gemm_geometry,
    gemm_seconds,
)
from moesim.operators.systems import processor_of
from tests.calibrate.synthetic_operators import H200, H200_FP8, grid, held_out, table

COEFFICIENTS = GemmCoefficients(
    launch_s=2e-6,
    host_s=1e-6,
    tile_s=1e-6,
    compute_efficiency=0.8,
    core_bytes_per_s=120e9,
    memory_efficiency=0.85,
    split_s=2.5e-6,
    overlap_exponent=2.5,
    wave_quantisation=0.4,
)
SIZES = np.array([64, 256, 512, 1024, 2048, 4096, 7168, 16384])
ROWS = grid(m=np.array([1, 8, 16, 33, 64, 100, 129, 256, 513, 1024, 2048, 4096]), n=SIZES, k=SIZES)


def kernel(**changes):
    values = {"system": "h200_sxm", "engine": "vllm", "version": "1.0", "kernel": "k"}
    values |= {"dtype": "bfloat16", "processor": H200, "tiling": "split"}
    return GemmKernel(**(values | {"coefficients": COEFFICIENTS} | changes))


def seconds(m, n, k, **changes):
    return gemm_seconds(np.array([m]), np.array([n]), np.array([k]), kernel(**changes))[0]


def test_flops_and_bytes_by_hand():
    assert gemm_flops(3, 5, 7) == 2 * 3 * 5 * 7
    # A 3·7 and B 5·7 of two bytes, the result 3·5 of two
    assert gemm_bytes(3, 5, 7, FORMATS["bfloat16"]) == 2 * (21 + 35 + 15)
    assert gemm_bytes(3, 5, 7, FORMATS["fp8"]) == 21 + 35 + 2 * 15
    assert gemm_bytes(3, 5, 7, FORMATS["fp8"], batch=4) == 4 * (21 + 35 + 2 * 15)


def test_tiles_waves_and_steps_by_hand():
    """m 130 in tiles of 128: two; n 300 in 256: two; k 1000 in steps of 64: 16, split in 4."""
    tiles = (Tile(rows=128, columns=256), Tile(rows=128, columns=256, splits=4))
    one = np.array([1])
    g = gemm_geometry(130 * one, 300 * one, 1000 * one, "bfloat16", tiles, H200)
    assert (g.waves * H200.cores).tolist() == [[4, 16]]
    assert g.steps.tolist() == [[16, 4]]
    assert g.tile_flops.tolist() == [2 * 128 * 256 * 64] * 2
    assert g.tile_bytes.tolist() == [(128 + 256) * 64 * 2] * 2
    assert g.partial_bytes.tolist() == [[0, 4 * 130 * 300 * 4]]
    assert g.is_split.tolist() == [[False, True]]


def test_a_full_wave_by_hand():
    """132 tiles of 128 × 128 on 132 cores, compute and memory simply added (p = 1)."""
    coefficients = COEFFICIENTS.model_copy(update={"overlap_exponent": 1.0, "host_s": 0.0})
    tiles = (Tile(rows=128, columns=128),)
    found = seconds(128, 128 * 132, 640, tiling="dispatch", tiles=tiles, coefficients=coefficients)
    step = max(
        2 * 128 * 128 * 64 / (989.4e12 / 132 * 0.8),
        (128 + 128) * 64 * 2 / 120e9,
    )
    moved = 2 * (128 * 640 + 128 * 132 * 640 + 128 * 128 * 132)
    assert found == pytest.approx(2e-6 + (1e-6 + 10 * step) + moved / (4.8e12 * 0.85), rel=1e-9)


def test_the_host_hides_a_short_kernel_but_not_a_long_one():
    slow_host = COEFFICIENTS.model_copy(update={"host_s": 80e-6})
    assert seconds(16, 256, 256, coefficients=slow_host) == pytest.approx(80e-6, rel=0.01)
    alone, behind = seconds(4096, 8192, 8192), seconds(4096, 8192, 8192, coefficients=slow_host)
    assert behind == pytest.approx(alone, rel=0.001)


def test_splitting_k_pays_where_few_tiles_meet_a_long_k():
    split, whole = seconds(16, 128, 16384), seconds(16, 128, 16384, tiling="whole")
    assert split < 0.5 * whole
    assert seconds(8192, 8192, 256) == pytest.approx(seconds(8192, 8192, 256, tiling="whole"))


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    st.integers(1, 20_000),
    st.integers(1, 20_000),
    st.integers(1, 20_000),
    st.sampled_from(["split", "whole", "narrow"]),
)
def test_no_result_beats_the_roofline_and_more_work_takes_no_less(m, n, k, tiling):
    now = seconds(m, n, k, tiling=tiling)
    flops_s = gemm_flops(m, n, k) / H200.peak_flop_per_s
    bytes_s = gemm_bytes(m, n, k, FORMATS["bfloat16"]) / H200.memory_bytes_per_s
    assert now > max(flops_s, bytes_s) + COEFFICIENTS.launch_s
    assert seconds(2 * m, n, k, tiling=tiling) >= now * (1 - 1e-12)
    assert seconds(m, 2 * n, k, tiling=tiling) >= now * (1 - 1e-12)
    assert seconds(m, n, 4 * k, tiling=tiling) >= now * (1 - 1e-12)


def test_known_coefficients_are_found_again():
    true_s = gemm_seconds(ROWS["m"], ROWS["n"], ROWS["k"], kernel())
    rows = table("gemm", ROWS, true_s, noise=0.02)
    errors, [fitted] = held_out(GEMM, rows)
    assert np.median(errors) < 0.02
    assert np.quantile(errors, 0.95) < 0.07
    assert fitted.tiling == "split"
    assert fitted.processor == H200
    assert fitted.rows == np.count_nonzero(GEMM.shape_key(rows) % 3)
    for name in ("launch_s", "compute_efficiency", "core_bytes_per_s", "memory_efficiency"):
        expected = getattr(COEFFICIENTS, name)
        assert getattr(fitted.coefficients, name) == pytest.approx(expected, rel=0.15), name


def test_a_choice_of_tile_by_m_is_found_again():
    tiles = (
        Tile(rows=64, columns=64, up_to_m=64),
        Tile(rows=64, columns=128, above_m=64, up_to_m=128),
        Tile(rows=128, columns=128, above_m=128),
    )
    same = kernel(tiling="dispatch", tiles=tiles)
    true_s = gemm_seconds(ROWS["m"], ROWS["n"], ROWS["k"], same)
    shapes = MeasuredShapes(ROWS["m"], ROWS["n"], ROWS["k"], true_s, "bfloat16")
    found = fitted_dispatch(shapes, COEFFICIENTS.model_dump(), H200)
    by_range = {tile.up_to_m: (tile.rows, tile.columns) for tile in found}
    assert by_range[64] == (64, 64)
    assert by_range[128] == (64, 128)
    assert by_range[1024] == by_range[None] == (128, 128)
    errors, [fitted] = held_out(GEMM, table("gemm", ROWS, true_s, noise=0.01))
    assert fitted.tiling == "dispatch"
    assert np.median(errors) < 0.02


def test_quantisation_is_charged_to_one_byte_formats_only():
    changed = COEFFICIENTS.model_copy(
        update={"quantise_s_per_byte": 5e-13, "row_s": 5e-9, "misaligned_s": 1e-5}
    )
    options = {"dtype": "fp8", "processor": H200_FP8}
    extra = seconds(1001, 64, 512, coefficients=changed, **options) - seconds(
        1001, 64, 512, **options
    )
    assert extra == pytest.approx(5e-13 * 1001 * 512 * 3 + 1001 * 5e-9 + 1e-5, rel=0.01)


def test_rows_without_a_fit_take_the_nearest_on_their_own_device():
    true_s = gemm_seconds(ROWS["m"], ROWS["n"], ROWS["k"], kernel())
    fits = {"k": kernel(), "fp8": kernel(dtype="fp8", processor=H200_FP8)}
    other = table("gemm", ROWS, true_s, kernel="another")
    assert GEMM.predict(other, fits) == pytest.approx(true_s)
    elsewhere = table("gemm", ROWS, true_s, system="h100_sxm")
    h100 = processor_of("h100_sxm", "bf16")
    moved = gemm_seconds(ROWS["m"], ROWS["n"], ROWS["k"], kernel(), h100)
    assert GEMM.predict(elsewhere, fits) == pytest.approx(moved)
    assert np.isnan(GEMM.predict(other, {})).all()


def test_a_fit_survives_its_file():
    again = GemmKernel.parse(kernel().to_dict())
    assert again == kernel()
    with pytest.raises(InputError, match="overlap_exponent"):
        GemmKernel.parse(
            kernel().to_dict()
            | {"coefficients": COEFFICIENTS.to_dict() | {"overlap_exponent": 0.5}}
        )
