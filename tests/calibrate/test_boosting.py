"""Boosted trees: they learn steps, know their range, and predict as they were grown."""

import numpy as np
import pytest

from moesim.calibrate.boosting import DEPTH, boost

SOURCE = np.random.default_rng(0)
FEATURES = SOURCE.uniform(-1, 1, (3, 2000))
STEP = np.where(FEATURES[0] > 0.25, 1.0, -0.5) + np.where(FEATURES[2] > -0.5, 0.3, 0.0)


def test_a_function_of_steps_is_learnt():
    trees = boost(FEATURES, STEP, 80)
    fresh = np.random.default_rng(1).uniform(-0.9, 0.9, (3, 500))
    truth = np.where(fresh[0] > 0.25, 1.0, -0.5) + np.where(fresh[2] > -0.5, 0.3, 0.0)
    assert np.median(np.abs(trees.predict(fresh) - truth)) < 0.02
    # Bins are as coarse as 1/32 of the rows: only points beside a step may be off.
    assert (np.abs(trees.predict(fresh) - truth) > 0.1).mean() < 0.05


def test_outside_the_training_range_nothing_is_corrected():
    trees = boost(FEATURES, STEP, 5)
    outside = np.array([[0.5, 2.0, 0.5], [0.0, 0.0, 0.0], [0.0, 0.0, -1.5]])
    assert trees.predict(outside)[0] != 0
    assert (trees.predict(outside)[1:] == 0).all()


def test_predictions_are_the_sums_of_the_leaves_that_rows_fell_into():
    """Independent walk through every tree, one row at a time."""
    trees = boost(FEATURES, STEP + SOURCE.normal(0, 0.1, 2000), 7)
    rows = range(0, 2000, 100)
    expected = []
    for row in rows:
        total = 0.0
        for feature, threshold, value in zip(
            trees.feature, trees.threshold, trees.value, strict=True
        ):
            place = 0
            for _ in range(DEPTH):
                place = 2 * place + (2 if FEATURES[feature[place], row] > threshold[place] else 1)
            total += value[place - (2**DEPTH - 1)]
        expected.append(total)
    assert trees.predict(FEATURES[:, list(rows)]) == pytest.approx(expected, abs=1e-12)


def test_more_trees_fit_the_training_rows_no_worse():
    errors = [np.mean((boost(FEATURES, STEP, n).predict(FEATURES) - STEP) ** 2) for n in (1, 5, 20)]
    assert errors[0] > errors[1] > errors[2]


def test_a_constant_feature_and_target_are_harmless():
    flat = np.ones((2, 50))
    trees = boost(flat, np.zeros(50), 3)
    assert (trees.predict(flat) == 0).all()
