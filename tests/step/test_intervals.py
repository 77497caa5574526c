"""Intervals of sums."""

import numpy as np
import pytest

from moesim.intervals import add_intervals


def test_one_operator_errs_together_and_two_by_their_squares():
    same = [("a", 10.0, 9.0, 14.0), ("a", 10.0, 9.0, 14.0)]
    assert add_intervals(same) == (20.0, 18.0, 28.0)
    apart = [("a", 10.0, 7.0, 13.0), ("b", 10.0, 6.0, 14.0)]
    assert add_intervals(apart) == (20.0, 15.0, 25.0)


def test_a_roofline_lies_below_its_interval():
    assert add_intervals([("a", 1.0, 3.0, 8.0)]) == (1.0, 3.0, 8.0)
    total, low, high = add_intervals([("a", 1.0, 3.0, 7.0), ("b", 10.0, 7.0, 13.0)])
    assert (total, low, high) == (11.0, 10.0, 18.0)


def test_sums_lie_within_their_interval_where_their_parts_do():
    rng = np.random.default_rng(0)
    for _ in range(500):
        parts = []
        for _ in range(rng.integers(1, 8)):
            time_s = rng.gamma(1.0)
            low, high = time_s * rng.uniform(0.2, 1), time_s * rng.uniform(1, 9)
            parts.append((str(rng.integers(0, 3)), time_s, low, high))
        total, low, high = add_intervals(parts)
        assert low <= total * (1 + 1e-12)
        assert total <= high * (1 + 1e-12)
        assert low >= sum(part[2] for part in parts) - 1e-12
        assert high <= sum(part[3] for part in parts) + 1e-12
        assert total == pytest.approx(sum(part[1] for part in parts))
