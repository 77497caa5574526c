"""Intervals of what was never measured: residuals of like transfers, and of nothing else."""

import numpy as np
import pytest

from moesim.calibrate.fit_moe import MoeOperator
from moesim.calibrate.frame import concatenate
from moesim.calibrate.intervals import LEVEL, MIN_RESIDUALS, central, either_way, leave_fold_out
from moesim.calibrate.moe_rows import moe_table
from moesim.calibrate.operator import evaluate
from moesim.calibrate.splits import imitations, split
from tests.calibrate.synthetic import changed
from tests.calibrate.test_fit_moe import SHAPES, rows, timed


def test_intervals_reach_as_far_to_both_sides():
    residual = np.linspace(0.0, 1.0, 101)  # always slower than predicted
    codes = np.zeros(101, np.int64)
    found = either_way(np.ones(3), [np.zeros(3, np.int64)], residual, [codes])
    assert found.hi_s == pytest.approx(np.exp(0.8))
    assert found.lo_s == pytest.approx(np.exp(-0.8))


def test_a_division_with_few_residuals_takes_the_coarser_one():
    residual = np.concatenate([np.full(MIN_RESIDUALS - 1, 2.0), np.full(9 * MIN_RESIDUALS, 0.1)])
    fine = np.repeat([0, 1], [MIN_RESIDUALS - 1, 9 * MIN_RESIDUALS])
    found = either_way(np.ones(1), [np.array([0])], residual, [fine])
    assert found.hi_s == pytest.approx(np.exp(0.1))
    nothing = either_way(np.ones(1), [np.array([0])], np.full(3, np.nan), [np.zeros(3, np.int64)])
    assert nothing.ends() == (1.0, 1.0)


def test_few_folds_show_less_of_the_tails():
    values = np.linspace(-1, 1, 2001)
    ends = [central(values, np.arange(2001) % folds)[1] for folds in (1, 4, 100)]
    assert ends == pytest.approx([0.9, 0.84, 0.8 + 0.2 / 101], abs=2e-3)
    assert central(values, np.full(2001, -2))[1] == pytest.approx(LEVEL, abs=2e-3)


def test_a_new_fold_is_covered_as_often_as_promised():
    """Shapes that are each off by something of their own: the interval holds 80 % of a new one."""
    source = np.random.default_rng(0)
    folds = np.repeat(np.arange(12), 60)
    held = []
    for _ in range(60):
        residual = source.normal(0, 0.1, 12)[folds] + source.normal(0, 0.1, len(folds))
        found = leave_fold_out(np.ones(len(folds)), folds, residual, folds, {})
        held.append(((found.lo_s <= np.exp(residual)) & (np.exp(residual) <= found.hi_s)).mean())
    assert 0.77 < np.mean(held) < 0.83


def test_borrowed_coefficients_may_be_off_either_way():
    residual = np.concatenate([np.full(80, 0.5), np.full(80, 0.3)])
    folds = np.repeat([0, 1], 80)
    found = leave_fold_out(
        np.ones(160), folds, residual, folds, {}, borrowed=np.arange(160) % 2 == 0
    )
    assert found.hi_s[[0, 80]] == pytest.approx(np.exp([0.3, 0.5]))
    assert found.lo_s[[0, 80]] == pytest.approx(np.exp([-0.3, -0.5]))
    assert found.lo_s[[1, 81]] == pytest.approx(np.exp([0.3, 0.5]))


@pytest.mark.parametrize("kind", ["leave-system-out", "leave-version-out"])
def test_imitations_stay_within_the_fitted_rows(kind):
    frame = concatenate(
        [rows("h100_sxm"), rows("a100_sxm"), *(rows(version=v) for v in ("1.0", "2.0", "3.0"))]
    )
    for _, fit, test in split(frame, kind):
        parts = imitations(frame, kind, fit)
        assert parts
        for part in parts:
            assert part.any()
            assert not (part & ~fit).any()
            assert not (part & test).any()
            assert (fit & ~part).any()


def test_whole_architectures_are_held_out_too():
    frame = concatenate([rows("h100_sxm"), rows("h200_sxm"), rows("a100_sxm")])
    parts = imitations(frame, "leave-system-out", np.ones(len(frame), bool))
    held = {tuple(sorted(set(frame.take(part).text("system")))) for part in parts}
    assert held == {("a100_sxm",), ("h100_sxm",), ("h200_sxm",), ("h100_sxm", "h200_sxm")}


def test_the_interval_of_a_system_ignores_its_own_rows():
    """However far off the held-out system is, the others alone say how wide its interval is."""
    systems = ("h100_sxm", "h200_sxm", "a100_sxm", "b200_sxm")
    frame = concatenate([rows(system, shapes=SHAPES[:1]) for system in systems])
    table = timed(frame, noise=0.05)
    odd = table.frame.is_label("system", "b200_sxm").astype(float)
    strange = changed(table.frame, latency_s=table.frame["latency_s"] * (1 + 4 * odd))
    found = {}
    for name, measured in (("usual", table), ("strange", moe_table(strange))):
        found[name] = evaluate(MoeOperator(), measured, "leave-system-out", hold_out=["b200_sxm"])
    for usual, odd_end in zip(*(f.interval.ends() for f in found.values()), strict=True):
        own = odd > 0
        np.testing.assert_allclose(usual[own], odd_end[own])
    assert found["usual"].score.interval_coverage > 0.6
    assert found["strange"].score.interval_coverage < 0.1
