"""Writing and reading the fits of operators, and finding the one for a device."""

import numpy as np
import pytest

from moesim.calibrate.fit_gemm import GEMM
from moesim.calibrate.operator_file import bands, fitted_operator, write_operator
from moesim.errors import InputError, UsageError
from moesim.hardware import load_device
from moesim.operators.fitted import nearest, version_key
from moesim.operators.gemm import gemm_seconds
from moesim.operators.shipped import find_fit, shipped_fits
from moesim.operators.systems import processor_of
from moesim.schema import Evidence
from tests.calibrate.synthetic_operators import table
from tests.calibrate.test_gemm import ROWS, kernel

SHAPE = {"m": np.array([8, 4096]), "n": np.array([4096, 4096]), "k": np.array([7168, 7168])}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A file of fits to rows that the model made, and the document that was written."""
    true_s = gemm_seconds(ROWS["m"], ROWS["n"], ROWS["k"], kernel())
    rows = table("gemm", ROWS, true_s, noise=0.05)
    document = fitted_operator(GEMM, rows, source="here", date="2026-01-01", command="again")
    path = write_operator(tmp_path_factory.mktemp("fitted") / "gemm.json", document)
    return path, document


def test_what_is_written_is_read(written):
    path, document = written
    again = shipped_fits("gemm", path)
    assert (again.source, again.date, again.command) == ("here", "2026-01-01", "again")
    assert again.rows == len(ROWS["m"])
    own, read = document.fits[0], again.fits[0]
    assert read.labels == own.labels
    assert read.time(**SHAPE).time_s == pytest.approx(own.time(**SHAPE).time_s, rel=1e-3)
    # One line per fit: a change of one is a change of one line.
    assert sum('"kernel"' in line for line in path.read_text().splitlines()) == 1


def test_intervals_hold_what_they_promise(written):
    path, _ = written
    fit = shipped_fits("gemm", path).fits[0]
    found = fit.time(ROWS["m"], ROWS["n"], ROWS["k"])
    true_s = gemm_seconds(ROWS["m"], ROWS["n"], ROWS["k"], kernel())
    measured = true_s * np.exp(0.05 * np.random.default_rng(9).standard_normal(len(true_s)))
    inside = (found.lo_s <= measured) & (measured <= found.hi_s)
    assert 0.72 < inside.mean() < 0.9


def test_bands_are_quantiles_of_each_third():
    predicted = np.repeat([1.0, 2.0, 3.0], 100)
    ratio = np.concatenate([np.linspace(a, b, 100) for a, b in ((0.5, 1.5), (0.9, 1.1), (2, 4))])
    found = bands(predicted, predicted * ratio)
    assert [band.lo for band in found] == pytest.approx([0.6, 0.92, 2.2], abs=0.02)
    assert [band.hi for band in found] == pytest.approx([1.4, 1.08, 3.8], abs=0.02)
    assert found[-1].up_to_s is None
    assert bands(predicted[:40], predicted[:40]) == ()


def test_another_system_is_read_with_its_own_peaks(written):
    path, document = written
    h100 = load_device("h100_sxm")
    found = find_fit("gemm", h100, dtype="bfloat16", fits=path)
    assert found.instead_of == {"system": "h100_sxm"}
    assert found.evidence is Evidence.SPEC
    moved = gemm_seconds(
        **SHAPE, kernel=document.fits[0], processor=processor_of("h100_sxm", "bf16")
    )
    assert found.time(**SHAPE).time_s == pytest.approx(moved, rel=1e-3)
    own = find_fit("gemm", "h200_sxm", dtype="bfloat16", engine="vllm", fits=path)
    assert (own.instead_of, own.evidence) == ({}, Evidence.FITTED)


def test_the_nearest_fit_agrees_in_what_matters_most():
    fits = [
        kernel(kernel="a", version="0.9.0"),
        kernel(kernel="b", version="0.10.0"),
        kernel(kernel="c", dtype="fp8"),
        kernel(kernel="d", dtype="fp8", system="b200_sxm", engine="sglang"),
        kernel(kernel="e", system="b200_sxm"),
    ]

    def found(**wanted):
        return nearest(fits, wanted).kernel

    assert found(system="h200_sxm", dtype="bfloat16") == "b"  # the newest version
    assert found(system="h200_sxm", dtype="bfloat16", version="0.9.0") == "a"
    assert found(system="b200_sxm", dtype="fp8", engine="vllm") == "d"  # system before engine
    assert found(system="b300_sxm", dtype="bfloat16") == "e"  # same architecture
    assert found(system="h100_sxm", dtype="fp8") == "c"
    assert nearest([], {}) is None


def test_versions_are_ordered():
    order = ["unheard", "0.5.9", "0.5.10", "1.3.0rc20", "1.3.0", "1.3.0.post1"]
    assert sorted(reversed(order), key=version_key) == order


def test_what_finding_refuses(written):
    path, _ = written
    with pytest.raises(UsageError, match="no fits of operator gem\n"):
        find_fit("gem", "h200_sxm")
    with pytest.raises(UsageError, match="no label kv_dtype"):
        find_fit("gemm", "h200_sxm", kv_dtype="fp8", fits=path)
    with pytest.raises(InputError, match="how many cores"):
        find_fit(
            "gemm",
            load_device("h200_sxm").model_copy(update={"name": "mine", "cores": None}),
            fits=path,
        )
