"""Rows of small chains: the best combination by trying all, and never a worse placement."""

from itertools import product

import numpy as np
import pytest

from moesim.planners.chain_combine import ChainCost, _best_of, _swapped, combine


def make_cost(rng, layers, copies, devices, nodes, batches=2):
    return ChainCost(
        rng.gamma(0.5, 1.0, (layers - 1, copies, copies)).astype(np.float32),
        rng.gamma(0.5, 1.0, (layers, batches, 2, copies)).astype(np.float32),
        rng.uniform(0.5, 1.5, devices),
        np.arange(devices) // (devices // nodes),
        0.2,
        1.5,
    )


def seconds(cost, device_of):
    """In plain loops."""
    layers, copies = device_of.shape
    total = 0.0
    for layer in range(layers):
        for batch in cost.copy_s[layer].astype(float):
            busy = np.zeros((2, len(cost.speed)))
            for copy in range(copies):
                busy[:, device_of[layer, copy]] += batch[:, copy]
            total += max(busy[0] / cost.speed + busy[1]) / cost.copy_s.shape[1]
        if layer + 1 == layers:
            continue
        for i, j in product(range(copies), repeat=2):
            here, there = device_of[layer, i], device_of[layer + 1, j]
            near = cost.node_of[here] == cost.node_of[there]
            hop = 0.0 if here == there else cost.near_s if near else cost.far_s
            total += cost.flow[layer, i, j] * hop
    return total


@pytest.mark.parametrize("shape", [(3, 6, 2, 1), (2, 6, 3, 1), (3, 8, 4, 2), (1, 6, 2, 2)])
def test_the_best_combination_of_rows(shape):
    layers, copies, devices, _ = shape
    rng = np.random.default_rng(shape)
    cost = make_cost(rng, *shape)
    start = np.arange(copies) // (copies // devices)
    rows = [np.stack([rng.permutation(start) for _ in range(4)]) for _ in range(layers)]
    best, found_s = _best_of(cost, rows)
    every = [np.stack(chosen) for chosen in product(*rows)]
    assert found_s == pytest.approx(min(seconds(cost, one) for one in every), rel=1e-6)
    assert seconds(cost, best) == pytest.approx(found_s, rel=1e-6)


def test_swaps_keep_the_sizes_and_reach_what_two_swaps_can():
    row = np.array([0, 0, 0, 1, 1, 1])
    rows = _swapped(row)
    assert (np.sort(rows, axis=1) == row).all()
    # Of all 20 rows only the one that exchanges all three pairs is further away.
    assert len(rows) == 19
    assert len(np.unique(rows, axis=0)) == len(rows)


@pytest.mark.parametrize("shape", [(3, 8, 2, 1), (4, 6, 3, 3), (3, 10, 5, 1)])
def test_no_worse_than_any_combination(shape):
    layers, copies, devices, _ = shape
    rng = np.random.default_rng(shape)
    cost = make_cost(rng, *shape)
    start = np.arange(copies) // (copies // devices)
    found = [np.stack([rng.permutation(start) for _ in range(layers)]) for _ in range(3)]
    given = [placement.copy() for placement in found]
    best = combine(cost, found)
    assert (np.sort(best, axis=1) == start).all()
    mixed = [np.stack(rows) for rows in product(*np.stack(found, axis=1))]
    assert seconds(cost, best) <= min(seconds(cost, one) for one in mixed) * (1 + 1e-6)
    assert all((one == before).all() for one, before in zip(found, given, strict=True))
    # Nothing two swaps away in a single layer is cheaper.
    for layer in range(layers):
        for row in _swapped(best[layer]):
            other = best.copy()
            other[layer] = row
            assert seconds(cost, best) <= seconds(cost, other) * (1 + 1e-6)
