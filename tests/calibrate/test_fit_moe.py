"""Fitting expert layers: known coefficients come back, and no held-out row is looked at."""

import numpy as np
import pytest

from moesim.calibrate.fit_moe import PRIOR, MoeOperator, fit_coefficients
from moesim.calibrate.frame import Frame, concatenate
from moesim.calibrate.moe_rows import moe_table
from moesim.calibrate.operator import evaluate
from moesim.calibrate.splits import split
from moesim.errors import UsageError
from moesim.operators.moe import MoeCoefficients, moe_time_s
from tests.calibrate.synthetic import changed

TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384)
SHAPES = ((4096, 1536, 8, 128), (7168, 2048, 8, 256), (4096, 14336, 2, 8), (2048, 768, 8, 128))
TRUTH = MoeCoefficients.of_vector(
    np.array([value for value, _ in PRIOR.values()])
    * np.exp(0.4 * np.random.default_rng(5).standard_normal(len(PRIOR)))
)


def rows(system="h200_sxm", kernel="moe_torch_flow_cutlass", version="1.0", shapes=SHAPES):
    """Every shape, token count and a few splits, without times."""
    grid = [
        (tokens, *shape, tp, ep, law)
        for shape in shapes
        for tokens in TOKENS
        for tp, ep in ((1, 1), (4, 1), (1, 4), (2, 2), (1, 8), (8, 1))
        for law in (0, 1)
    ]
    names = ("tokens", "hidden", "inter", "top_k", "experts", "moe_tp", "moe_ep", "distribution")
    columns = dict(zip(names, np.array(grid).T, strict=True))
    text = {
        "system": system,
        "engine": "trtllm",
        "version": version,
        "device": "",
        "kernel": kernel,
        "dtype": "bfloat16",
    }
    count = len(grid)
    columns |= {name: np.zeros(count, np.int32) for name in text}
    columns["distribution"] = columns["distribution"].astype(np.int32)
    columns |= dict.fromkeys(("latency_s", "power_w", "power_limit_w"), np.ones(count))
    labels = {name: (value,) for name, value in text.items()}
    return Frame("moe", columns, labels | {"distribution": ("balanced", "power_law_1.2")})


def timed(frame, noise=0.0, seed=0):
    """The table with the times of ``TRUTH``, and a little noise."""
    table = moe_table(frame)
    seconds = moe_time_s(table.shapes, table.device, TRUTH)
    seconds = seconds * np.exp(np.random.default_rng(seed).normal(0, noise, len(seconds)))
    return moe_table(changed(frame, latency_s=seconds))


def test_known_coefficients_come_back():
    table = timed(rows())
    found, on_bounds = fit_coefficients(table.shapes, table.device, table.frame["latency_s"])
    predicted = moe_time_s(table.shapes, table.device, found)
    assert np.median(np.abs(predicted / table.frame["latency_s"] - 1)) < 0.03
    assert not on_bounds
    # These are decisive on their own; others trade against each other.
    for name in ("launch_s", "weight_bandwidth_share", "row_cost"):
        assert getattr(found, name) == pytest.approx(getattr(TRUTH, name), rel=0.25), name


def test_a_coefficient_on_its_bound_is_named():
    table = timed(rows())
    _, on_bounds = fit_coefficients(table.shapes, table.device, np.full(len(table.group), 1e-9))
    assert "launch_s" in on_bounds or on_bounds


@pytest.mark.parametrize("kind", ["random", "leave-shape-out"])
def test_held_out_rows_do_not_reach_the_fit(kind):
    """Times of held-out rows may be anything: the coefficients stay the same."""
    frame = timed(rows(), noise=0.02).frame
    name, fit, test = next(split(frame, kind, seed=3))
    poisoned = changed(frame, latency_s=np.where(test, 7.0, frame["latency_s"]))
    honest = MoeOperator().fit(moe_table(frame), fit)
    assert MoeOperator().fit(moe_table(poisoned), fit) == honest, name


@pytest.mark.parametrize("kind", ["random", "leave-shape-out"])
def test_evaluation_of_a_true_model_is_as_good_as_the_noise(kind):
    found = evaluate(MoeOperator(), timed(rows(), noise=0.03), kind, fit_fraction=0.5)
    data = found.to_dict()
    assert data["covered"] == data["rows"] > 0
    assert data["median_ape"] < 0.06
    assert 0.6 < data["interval_coverage"] < 0.95
    assert set(data) >= {"mape", "p90_ape", "by_regime", "coefficients"}
    assert "tokens<=64" in data["by_regime"]


def test_the_interval_of_a_fold_ignores_its_own_residuals():
    """A shape three times off the physics must fall out of its interval, not widen it."""
    table = timed(rows(), noise=0.02)
    odd = (table.frame["hidden"] == 7168).astype(float)
    strange = changed(table.frame, latency_s=table.frame["latency_s"] * (1 + 2 * odd))
    found = evaluate(MoeOperator(), moe_table(strange), "leave-shape-out")
    name = next(name for name in found.by_fold if "hidden=7168" in name)
    assert found.by_fold[name].interval_coverage < 0.3
    assert found.by_fold[name].bias < -0.4


def test_a_held_out_system_borrows_from_the_others():
    frame = concatenate([rows("h100_sxm"), rows("h200_sxm"), rows("a100_sxm")])
    table = timed(frame)
    found = evaluate(MoeOperator(), table, "leave-system-out", hold_out=["h200_sxm"])
    (fits,) = found.coefficients.values()
    fit = fits["h200_sxm/trtllm/1.0/moe_torch_flow_cutlass/bfloat16"]
    assert fit.borrowed_from == ("h100_sxm/trtllm/1.0/moe_torch_flow_cutlass/bfloat16",)
    assert found.score.rows == found.score.covered == len(frame) // 3
    assert found.score.median_ape < 0.05  # shares of the specification carry over


def test_unknown_hold_out():
    frame = concatenate([rows("h100_sxm"), rows("h200_sxm")])
    with pytest.raises(UsageError, match="nothing is held out under b200"):
        evaluate(MoeOperator(), timed(frame), "leave-system-out", hold_out=["b200"])
