"""Expert cost from fitted coefficients, as a step asks for it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from moesim.calibrated_cost import CalibratedCost
from moesim.errors import InputError
from moesim.hardware import load_device
from moesim.model import load_model
from moesim.operators.moe_fits import shipped_moe_fits, token_regime
from moesim.schema import Evidence
from tests.operators.test_moe import GOOD

DEVICES = 8


@pytest.fixture(scope="module")
def cost():
    fit = shipped_moe_fits().find("h200_sxm", "trtllm", "fp8_block")
    return CalibratedCost.of(load_model("deepseek-v3"), load_device("h200_sxm"), fit, DEVICES)


def test_protocol(cost):
    assert cost.evidence is Evidence.FITTED
    tokens = np.arange(2 * 3 * 32).reshape(2, 3, 32)
    found = cost.time(tokens)
    assert found.total_s.shape == (2, 3)
    assert (found.memory_s <= found.total_s).all()
    assert (found.compute_s <= found.total_s).all()
    assert (found.compute_s > 0).all()


def test_a_layer_that_was_measured(cost):
    """DeepSeek-V3, EP8, 128 tokens, balanced: 0.365 ms on an H200 (aiconfigurator-core 0.12.0)."""
    tokens = np.full(32, 128 * 8 / 256)
    assert cost.time(tokens).total_s == pytest.approx(0.365e-3, rel=0.15)


@settings(deadline=None, derandomize=True, max_examples=50)
@given(
    loads=arrays.arrays(np.int64, 64, elements=st.integers(0, 2000)),
    seed=st.integers(0, 99),
)
def test_no_placement_beats_the_lower_bound(cost, loads, seed):
    order = np.random.default_rng(seed).permutation(64)
    slowest = cost.time(loads[order].reshape(8, 8)).total_s.max()
    assert slowest >= cost.lower_bound_s(loads, 8.0, 8) * (1 - 1e-12)


def test_find():
    fits = shipped_moe_fits()
    assert fits.find("h100_sxm", "sglang", "bfloat16").kernel == "sglang_fused_moe_triton"
    with pytest.raises(InputError, match="no fitted kernel"):
        fits.find("h100_sxm", "sglang", "nvfp4")
    assert fits.rows > 1_000_000
    assert fits.source.startswith("aiconfigurator-core ")


def test_shipped_intervals_hold_their_point():
    fits = shipped_moe_fits()
    for intervals in fits.transfer_intervals.values():
        assert all(low * high == pytest.approx(1, rel=1e-3) for low, high in intervals.values())
    for fit in fits.fits:
        assert set(fit.intervals) == {"decode", "mixed", "prefill"}
        for low, high in fit.intervals.values():
            assert 0 < low < high
        assert set(fit.coefficients.model_dump()) == set(GOOD.model_dump())


def test_token_regimes():
    assert [token_regime(n) for n in (1, 64, 65, 1024, 1025)] == [
        *("decode", "decode", "mixed", "mixed", "prefill")
    ]
