"""The cheap GELU and softmax against the exact ones."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moesim.fpga.approximations import gelu, gelu_by_table, single_pass_softmax


def test_gelu_by_table():
    x = np.linspace(-9, 9, 20001)
    error = np.abs(gelu_by_table(x) - gelu(x))
    assert error.max() < 1.3e-4  # (1/32)² / 8 of the largest second derivative, 0.8, and rounding
    assert error.max() > 1e-5  # it is an approximation
    grid = np.arange(-64, 65) / 32
    assert np.abs(gelu_by_table(grid) - gelu(grid)).max() <= 2.0**-22
    assert gelu_by_table(np.array([-9.0, 0.0, 9.0])).tolist() == [0.0, 0.0, 9.0]


@given(st.lists(st.floats(-400, 400), min_size=1, max_size=40))
def test_single_pass_softmax_is_softmax(scores):
    row = np.array(scores)
    exact = np.exp(row - row.max())
    found = single_pass_softmax(np.stack([row, row[::-1]]))
    np.testing.assert_allclose(found[0], exact / exact.sum(), rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(found[1], found[0][::-1], rtol=1e-12, atol=1e-300)
