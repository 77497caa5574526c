import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.cluster import load_cluster
from moesim.errors import UsageError
from moesim.model import load_model
from moesim.planners.moves import count_moves, limit_moves
from moesim.step import StepEvaluator
from tests.step.problems import random_batches, random_placement


@settings(deadline=None, derandomize=True, max_examples=40)
@given(seed=st.integers(0, 2**32), budget=st.integers(0, 40), redundant=st.sampled_from([0, 4]))
def test_moves_stay_within_the_budget_and_help(seed, budget, redundant):
    rng = np.random.default_rng(seed)
    priced = StepEvaluator(
        random_batches(rng, layers=4),
        load_model("small-moe-30b-dims"),
        load_cluster("2x2xh100_sxm"),
        "home-rank",
        "decode",
    )
    current = random_placement(rng, layers=4, redundant=redundant)
    target = random_placement(rng, layers=4, redundant=redundant)
    before, wanted = priced.evaluate(current), priced.evaluate(target)
    limited = limit_moves(current, target, before, wanted, budget)
    assert limited.moves == count_moves(current, limited.placement).sum() <= budget
    # Layers do not interact in the home-rank form, so taking over gains never hurts.
    assert priced.evaluate(limited.placement).step_s <= before.step_s * (1 + 1e-12)
    # Experts that stay on their device keep their slot.
    stays = limited.placement.physical_to_logical == current.physical_to_logical
    assert (~stays).sum() == limited.moves


def test_no_budget_changes_nothing():
    rng = np.random.default_rng(0)
    current = random_placement(rng)
    assert count_moves(current, current).sum() == 0
    with pytest.raises(UsageError, match="--max-moves"):
        limit_moves(current, current, None, None, -1)
