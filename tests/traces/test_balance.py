"""Imbalance, drift and mutual information against definitions, scipy and closed forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import jensenshannon

from moesim.errors import InputError, UsageError
from moesim.traces.balance import drift, imbalance, mutual_information

bounded = settings(deadline=None, derandomize=True, max_examples=100)
counts = st.integers(0, 10_000)


def test_imbalance_of_known_loads():
    found = imbalance(np.array([[5, 5, 5, 5], [8, 0, 0, 0], [1, 2, 3, 6], [0, 0, 0, 0]]))
    np.testing.assert_allclose(found.mean_over_max, [1, 1 / 4, 1 / 2, 1])
    np.testing.assert_allclose(found.max_over_mean, [1, 4, 2, 1])
    np.testing.assert_allclose(found.imbalance_ratio, [0, 3, 1, 0])
    # (-3·1 - 1·2 + 1·3 + 3·6)/(4·12)
    np.testing.assert_allclose(found.gini, [0, 3 / 4, 1 / 3, 0], atol=1e-15)


@bounded
@given(arrays(np.int64, (3, 7), elements=counts), st.floats(1e-6, 1e300))
def test_imbalance_by_definition(loads, scale):
    found = imbalance(loads * scale)
    for row, values in enumerate(loads.astype(float)):
        if not values.any():
            continue
        pairwise = np.abs(values[:, None] - values).sum() / (2 * 7**2 * values.mean())
        assert found.gini[row] == pytest.approx(pairwise, abs=1e-12)
        assert found.max_over_mean[row] == pytest.approx(values.max() / values.mean())
    assert (found.gini >= -1e-12).all()
    assert (found.gini <= 6 / 7 + 1e-12).all()
    assert (found.mean_over_max <= 1 + 1e-12).all()


@pytest.mark.parametrize(
    "loads", [np.array(3.0), np.zeros((2, 0)), [1.0, -1.0], [1.0, np.nan], [1.0, np.inf]]
)
def test_loads_that_are_none(loads):
    with pytest.raises(InputError):
        imbalance(loads)


@bounded
@given(arrays(np.int64, (4, 2, 9), elements=counts))
def test_drift_against_scipy_and_definition(windowed):
    windowed = windowed + 1
    found = drift(windowed, top=3)
    whole = windowed.sum(axis=0)
    for layer in range(2):
        for w in range(4):
            p, all_p = (x[layer] / x[layer].sum() for x in (windowed[w], whole))
            expected = jensenshannon(p, all_p, base=2)
            assert found.jensen_shannon_from_whole[w, layer] == pytest.approx(expected, abs=1e-7)
            expected = np.abs(p - all_p).sum() / 2
            assert found.total_variation_from_whole[w, layer] == pytest.approx(expected)
            if w == 3:
                continue
            q = windowed[w + 1, layer] / windowed[w + 1, layer].sum()
            assert found.jensen_shannon[w, layer] == pytest.approx(
                jensenshannon(p, q, base=2), abs=1e-7
            )
            assert found.total_variation[w, layer] == pytest.approx(np.abs(p - q).sum() / 2)
            tops = [
                set(sorted(range(9), key=lambda e, x=x: (-x[e], e))[:3])
                for x in windowed[w : w + 2, layer]
            ]
            assert found.top_churn[w, layer] == pytest.approx(len(tops[0] - tops[1]) / 3)


def test_drift_at_its_ends():
    same, apart, nothing = [4, 2, 0, 0], [0, 0, 1, 5], [0, 0, 0, 0]
    found = drift(np.array([[same], [np.multiply(same, 3)], [apart], [nothing]]), top=2)
    np.testing.assert_array_equal(found.total_variation[:, 0], [0, 1, 0])
    np.testing.assert_array_equal(found.jensen_shannon[:, 0], [0, 1, 0])
    np.testing.assert_array_equal(found.top_churn[:, 0], [0, 1, 0])
    assert found.total_variation_from_whole[3, 0] == 0


def test_drift_shapes():
    found = drift(np.ones((1, 3, 20)))
    assert found.total_variation.shape == found.jensen_shannon.shape == (0, 3)
    assert found.top_churn.shape == (0, 3)
    assert found.total_variation_from_whole.shape == (1, 3)
    assert found.top == 3  # an eighth of 20, rounded up


def test_drift_of_what_is_no_windowed_load():
    for windowed in (np.ones((2, 3)), np.ones((0, 2, 3))):
        with pytest.raises(InputError, match=r"\[windows, layers, experts\]"):
            drift(windowed)
    bad = np.ones((2, 3, 4))
    bad[1, 2, 0] = np.nan
    with pytest.raises(InputError, match=r"windowed\[:, 2\]"):
        drift(bad)
    for top in (0, 5):
        with pytest.raises(UsageError, match="top must be in 1 … 4"):
            drift(np.ones((2, 3, 4)), top=top)


def test_mutual_information_of_known_tables():
    independent = np.outer([1, 2, 3, 4], [5, 1, 1, 1])
    pairs = np.stack([np.eye(4) * 7, independent, np.zeros((4, 4))])
    np.testing.assert_allclose(mutual_information(pairs), [2, 0, 0], atol=1e-12)
    assert mutual_information(np.zeros((0, 4, 4))).shape == (0,)


@bounded
@given(arrays(np.int64, (5, 5), elements=counts))
def test_mutual_information_by_entropies(pairs):
    def entropy(p):
        p = p[p > 0] / p.sum()
        return -(p * np.log2(p)).sum()

    pairs = pairs + np.eye(5, dtype=np.int64)
    expected = entropy(pairs.sum(axis=0)) + entropy(pairs.sum(axis=1)) - entropy(pairs.ravel())
    assert mutual_information(pairs) == pytest.approx(expected, abs=1e-9)
