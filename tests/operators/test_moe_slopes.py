"""Derivatives of the time of expert layers against differences."""

import numpy as np

from moesim.calibrate.moe_rows import moe_table
from moesim.operators.moe import MoeCoefficients, moe_time_s
from moesim.operators.moe_slopes import moe_time_and_slopes
from tests.calibrate.test_fit_moe import TRUTH, rows


def test_slopes_are_those_of_the_time():
    table = moe_table(rows())
    shapes, device = table.shapes, table.device
    shapes = shapes.take(np.arange(len(shapes.hidden)))
    shapes.variant[:] = np.arange(len(shapes.variant)) % 3
    seconds, slopes = moe_time_and_slopes(shapes, device, TRUTH)
    np.testing.assert_allclose(seconds, moe_time_s(shapes, device, TRUTH), rtol=1e-12)
    step = 1e-6
    for number, name in enumerate(MoeCoefficients.model_fields):
        ends = []
        for sign in (-1, 1):
            vector = TRUTH.vector()
            vector[number] *= np.exp(sign * step)
            ends.append(moe_time_s(shapes, device, MoeCoefficients.of_vector(vector)))
        difference = (ends[1] - ends[0]) / (2 * step)
        error = np.abs(slopes[:, number] - difference) / seconds
        # Where two tiles cost the same, the slope has a kink.
        assert np.quantile(error, 0.99) < 1e-5, name
        assert np.abs(difference).max() > 0, name
