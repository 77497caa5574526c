"""Splits that never leak, and errors counted by hand."""

import numpy as np
import pytest

from moesim.calibrate.frame import Frame, concatenate
from moesim.calibrate.metrics import by_regime, interval_coverage, regimes, score
from moesim.calibrate.splits import SPLITS, split
from moesim.errors import InputError, UsageError
from tests.calibrate.synthetic import moe_frame, pair


@pytest.fixture(scope="module")
def rows():
    return concatenate([pair(), moe_frame("h100_sxm", "1.1")])


@pytest.mark.parametrize("kind", [kind for kind in SPLITS if kind != "leave-nodes-out"])
def test_no_row_is_both_fitted_and_tested(rows, kind):
    folds = list(split(rows, kind))
    assert folds
    for _, fit, test in folds:
        assert fit.any()
        assert test.any()
        assert not (fit & test).any()


def test_random_takes_its_share_and_repeats_itself(rows):
    [(name, fit, test)] = split(rows, "random", fit_fraction=0.25, seed=3)
    assert name == "random"
    assert fit.sum() == round(len(rows) / 4)
    assert (fit ^ test).all()
    [(_, again, _)] = split(rows, "random", fit_fraction=0.25, seed=3)
    [(_, other, _)] = split(rows, "random", fit_fraction=0.25, seed=4)
    assert (fit == again).all()
    assert (fit != other).any()


def test_shapes_are_left_out_whole(rows):
    folds = list(split(rows, "leave-shape-out"))
    assert [name for name, *_ in folds] == [
        f"hidden={h},inter=512,top_k=2,experts=16" for h in (1024, 2048, 3072, 4096)
    ]
    for _, fit, test in folds:
        assert (fit ^ test).all()
        assert not set(rows["hidden"][fit]) & set(rows["hidden"][test])
    assert np.sum([test for *_, test in folds], axis=0).tolist() == [1] * len(rows)


def test_systems_and_versions_are_left_out_whole(rows):
    systems = {name: (fit, test) for name, fit, test in split(rows, "leave-system-out")}
    assert set(systems) == {"system=h100_sxm", "system=h200_sxm"}
    _, test = systems["system=h200_sxm"]
    assert (test == rows.is_label("system", "h200_sxm")).all()
    versions = {name: (fit, test) for name, fit, test in split(rows, "leave-version-out")}
    assert set(versions) == {"engine=sglang,version=1.0", "engine=sglang,version=1.1"}
    assert (versions["engine=sglang,version=1.1"][1] == rows.is_label("version", "1.1")).all()


def test_held_out_folds_may_fit_on_a_share(rows):
    for _, fit, test in split(rows, "leave-system-out", fit_fraction=0.1, seed=1):
        assert 0.05 < fit.sum() / (~test).sum() < 0.15


def test_splits_without_an_answer(rows):
    one = moe_frame()
    for kind in ("leave-system-out", "leave-version-out"):
        with pytest.raises(UsageError, match="nothing to fit on"):
            split(one, kind)
    with pytest.raises(UsageError, match="unknown split"):
        split(one, "leave-one-out")
    for fraction in (0.0, 1.0, -1.0, 2.0, float("nan")):
        with pytest.raises(UsageError, match="fit fraction"):
            split(one, "random", fit_fraction=fraction)


def test_errors_by_hand():
    measured = np.array([1.0, 2.0, 4.0, 5.0, 8.0])
    predicted = np.array([1.1, 1.0, 4.0, np.nan, 16.0])  # +10 %, -50 %, 0, none, +100 %
    found = score(predicted, measured, 0.9 * predicted, 1.1 * predicted)
    assert (found.rows, found.covered) == (5, 4)
    assert found.mape == pytest.approx(0.4)
    assert found.median_ape == pytest.approx(0.3)
    assert found.p90_ape == pytest.approx(0.85)  # 0.5 and 1.0 at ranks 2 and 3, 2.7 wanted
    assert found.bias == pytest.approx(0.05)
    assert found.interval_coverage == pytest.approx(0.5)
    nothing = score(np.full(5, np.nan), measured)
    assert (nothing.covered, nothing.mape) == (0, None)


def test_scores_of_no_sense_are_refused():
    one = np.ones(1)
    with pytest.raises(InputError, match="differ in number"):
        score(np.ones(2), one)
    for bad in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(InputError, match="not a positive number"):
            score(one, np.array([bad]))
    with pytest.raises(InputError, match="lo not above hi"):
        interval_coverage(one, one + 1, one)


def test_regimes_part_the_rows(rows):
    found = regimes(rows)
    tokens = [found[name] for name in ("tokens<=64", "64<tokens<=1024", "tokens>1024")]
    assert np.sum(tokens, axis=0).tolist() == [1] * len(rows)
    assert rows["tokens"][tokens[1]].min() == 128
    assert rows["tokens"][tokens[1]].max() == 1024
    assert found["system=h100_sxm"].sum() == 2 * found["system=h200_sxm"].sum()
    assert all(
        found[name].all() for name in ("dtype=fp8", "kernel=triton", "distribution=balanced")
    )
    predicted = np.where(found["tokens<=64"], 2.0, 1.0) * rows["latency_s"]
    scores = by_regime(rows, predicted)
    assert scores["tokens<=64"].mape == pytest.approx(1.0)
    assert scores["tokens>1024"].mape == pytest.approx(0.0)
    assert set(scores) == set(found)


def test_very_many_shapes_are_dealt_into_few_folds():
    side = np.arange(8)
    n, k = (axis.ravel() for axis in np.meshgrid(side, side))
    columns = {"n": np.repeat(n, 3), "k": np.repeat(k, 3), "m": np.tile(side[:3], 64)}
    frame = Frame("gemm", columns, {})
    folds = list(split(frame, "leave-shape-out", seed=3))
    assert [name for name, _, _ in folds] == [f"shapes {i} of 8" for i in range(1, 9)]
    held = np.sum([test for _, _, test in folds], axis=0)
    assert (held == 1).all()
    for _, fit, test in folds:
        assert (fit == ~test).all()
        assert np.count_nonzero(test) == 24  # 8 of 64 shapes, whole
    again = list(split(frame, "leave-shape-out", seed=4))
    assert any((one[2] != other[2]).any() for one, other in zip(folds, again, strict=True))
