"""The token scheduler: by hand, and against every division."""

from __future__ import annotations

import itertools

import numpy as np

from moesim.offload.token_scheduler import active_experts, divide, scheduling_gain


def test_two_kinds_of_requests_are_parted():
    kinds = np.array([0, 1, 0, 1, 1, 0, 1, 0])
    active = np.zeros((8, 12), bool)
    active[kinds == 0, :4] = True
    active[kinds == 1, 6:10] = True
    second = divide(active)
    assert second.sum() == 4
    assert len(set(kinds[second])) == len(set(kinds[~second])) == 1
    # As they come each batch of four uses 8 experts, parted 4.
    assert scheduling_gain(active, 4) == 2.0


def test_never_more_experts_than_as_they_come_and_near_the_best_division():
    rng = np.random.default_rng(0)
    excess = []
    for _ in range(20):
        favour = rng.gumbel(size=(2, 24))
        kind = rng.integers(0, 2, 8)
        keys = favour[kind] + rng.gumbel(size=(8, 24))
        active = keys.argsort(axis=1) >= 20
        assert scheduling_gain(active, 4) >= 1.0
        best = min(
            active_experts(active, np.isin(np.arange(8), chosen))
            for chosen in itertools.combinations(range(8), 4)
        )
        excess.append(active_experts(active, divide(active)) / best)
    assert np.mean(excess) < 1.1
