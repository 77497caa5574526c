"""Bounds on the flow that placements keep: never below the best one, and near it."""

from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.kept_flow import (
    kept_at_most,
    kept_at_most_fast,
    kept_by_entries,
    travel_at_least,
)
from tests.planners.problems import set_partitions


def best_kept(flow, parts):
    """The most flow that two equal partitions keep, by trying all of them."""
    size = len(flow) // parts
    first = [np.eye(parts)[p] for p in set_partitions(len(flow), parts, size)]
    best = 0.0
    for one in first:
        into = one.T @ flow  # [parts, E]
        best = max(best, _best_match(into, size))
    return best


def _best_match(gain, size):
    """The best equal deal of the columns to the rows, part by part."""

    def deal(row, left):
        if row == len(gain) - 1:
            return gain[row, list(left)].sum()
        return max(
            gain[row, list(taken)].sum() + deal(row + 1, left - set(taken))
            for taken in combinations(sorted(left), size)
        )

    return deal(0, frozenset(range(gain.shape[1])))


def random_flow(rng, experts):
    flow = rng.gamma(rng.uniform(0.1, 2.0), 1.0, (experts, experts))
    return flow * rng.gamma(0.5, 1.0, experts)[:, None] * rng.gamma(0.5, 1.0, experts)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(4, 2), (6, 2), (6, 3), (8, 2)]),
    st.sampled_from([0, 1, 12]),
    st.booleans(),
)
def test_no_partition_keeps_more(seed, shape, iterations, informed):
    experts, parts = shape
    flow = random_flow(np.random.default_rng(seed), experts)
    best = best_kept(flow, parts)
    aim = best if informed else None
    assert kept_at_most(flow, parts, iterations=iterations, aim=aim) >= best * (1 - 1e-12)
    assert kept_by_entries(flow, parts) >= best * (1 - 1e-12)


def best_kept_by_halves(flow):
    """The most flow that equal halves keep: every half of the rows, its best half of columns."""
    experts = len(flow)
    rows = np.zeros((comb(experts, experts // 2), experts))
    for row, taken in zip(rows, combinations(range(experts), experts // 2), strict=True):
        row[list(taken)] = 1
    ours, theirs = rows @ flow, (1 - rows) @ flow
    gain = np.sort(ours - theirs, axis=1)[:, experts // 2 :].sum(axis=1)
    return float((theirs.sum(axis=1) + gain).max())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 12, 40]), st.booleans())
def test_followed_eigenvectors_bound_the_best_halves(seed, iterations, informed):
    flow = random_flow(np.random.default_rng(seed), 16)
    best = best_kept_by_halves(flow)
    aim = best if informed else None
    assert kept_at_most_fast(flow, 2, iterations=iterations, aim=aim) >= best * (1 - 1e-12)


@pytest.mark.parametrize(("experts", "parts"), [(48, 2), (64, 4), (96, 8)])
def test_followed_eigenvectors_come_as_near_as_exact_ones(experts, parts):
    rng = np.random.default_rng(experts)
    for _ in range(4):
        flow = random_flow(rng, experts)
        exact = kept_at_most(flow, parts, iterations=40)
        followed = kept_at_most_fast(flow, parts, iterations=40)
        assert followed < exact * 1.02
        assert followed <= kept_at_most(flow, parts, iterations=0)


def test_a_hidden_placement_is_kept_by_every_bound():
    rng = np.random.default_rng(1)
    for parts in (2, 4, 8):
        here, there = (rng.permutation(np.repeat(np.arange(parts), 64 // parts)) for _ in range(2))
        same = here[:, None] == there
        flow = rng.gamma(0.5, 1.0, (64, 64)) * np.where(same, 20.0, 1.0)
        kept = flow[same].sum()
        bound = kept_at_most_fast(flow, parts, aim=kept)
        assert kept * (1 - 1e-12) <= bound <= kept * 1.02


def test_steps_close_most_of_the_gap():
    rng = np.random.default_rng(5)
    plain, stepped = [], []
    for _ in range(15):
        flow = random_flow(rng, 8)
        best = best_kept(flow, 2)
        plain.append(kept_at_most(flow, 2, iterations=0) / best - 1)
        stepped.append(kept_at_most(flow, 2, iterations=60, aim=best) / best - 1)
    assert (np.array(stepped) <= np.array(plain) + 1e-12).all()
    assert np.mean(stepped) < 0.5 * np.mean(plain)


def test_halves_by_two_ways():
    flow = random_flow(np.random.default_rng(2), 8)
    assert best_kept_by_halves(flow) == pytest.approx(best_kept(flow, 2))


def test_hand_worked():
    # Blocks of two: the identity keeps everything, and the bound says no more than everything.
    flow = np.kron(np.eye(2), np.ones((2, 2)))
    assert kept_at_most(flow, 2) == pytest.approx(8)
    # An even flow: every placement keeps a share of 1 / parts.
    assert kept_at_most(np.ones((6, 6)), 3, iterations=0) == pytest.approx(12)
    assert kept_by_entries(np.arange(16.0).reshape(4, 4), 2) == pytest.approx(
        68
    )  # rows 5 + 13 + 21 + 29


@pytest.mark.parametrize("seed", range(4))
def test_travel_of_every_placement_costs_as_much(seed):
    rng = np.random.default_rng(seed)
    layers, experts, devices, nodes, near, far = 3, 8, 4, 2, 1.0, 5.0
    flow = np.stack([random_flow(rng, experts) for _ in range(layers - 1)])
    blind = travel_at_least(flow, devices, nodes, near, far, iterations=8)
    rows = np.repeat(np.arange(devices), experts // devices)
    cheapest = np.full(layers - 1, np.inf)
    for _ in range(3000):
        here, there = rng.permutation(rows), rng.permutation(rows)
        hop = np.where(here[:, None] // 2 != there // 2, far, near)
        hop = np.where(here[:, None] == there, 0, hop)
        cheapest = np.minimum(cheapest, (flow * hop).sum(axis=(1, 2)))
    assert (blind <= cheapest * (1 + 1e-12)).all()
    assert blind.sum() > 0.3 * cheapest.sum()
    one_node = travel_at_least(flow, devices, 1, near, far, iterations=8)
    assert (one_node <= blind + 1e-9).all()  # a node alone has no slow links


def test_refused_sizes():
    with pytest.raises(ValueError, match="equal parts"):
        kept_at_most(np.ones((5, 5)), 2)
