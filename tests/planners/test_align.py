"""Renaming devices so that experts stay, against all renamings."""

import json
from itertools import permutations

import numpy as np
import pytest

from moesim.cluster import load_cluster
from moesim.placement import Placement
from moesim.planners.align import align
from moesim.planners.moves import count_moves

EXPERTS, SLOTS = 6, 8
NODES = load_cluster("2x2xh100_sxm")


def random_placement(rng, layers=3):
    rows = []
    for _ in range(layers):
        copies = np.concatenate([np.arange(EXPERTS), rng.integers(0, EXPERTS, SLOTS - EXPERTS)])
        rows.append(rng.permutation(copies))
    return Placement(np.array(rows, np.int32), 4, EXPERTS, tuple(range(layers)))


def renamings():
    """Old device of every new one: nodes exchanged or not, devices within them exchanged or not."""
    for order in permutations(range(4)):
        if {order[0] // 2, order[1] // 2} != {0, 1} and {order[2] // 2, order[3] // 2} != {0, 1}:
            yield list(order)


def renamed(placement, order, layers):
    table = placement.physical_to_logical.copy().reshape(placement.layers, 4, -1)
    for layer in layers:
        table[layer, order] = placement.physical_to_logical[layer].reshape(4, -1)
    flat = table.reshape(placement.layers, -1)
    return Placement(flat, 4, EXPERTS, placement.moe_layers)


@pytest.mark.parametrize("seed", range(25))
def test_no_renaming_moves_less(seed):
    rng = np.random.default_rng(seed)
    current, target = random_placement(rng), random_placement(rng)
    assert len(list(renamings())) == 8
    moves = np.array(
        [count_moves(current, renamed(target, order, range(3))) for order in renamings()]
    )
    ours = align(current, target, NODES, by_layer=True)
    np.testing.assert_array_equal(count_moves(current, ours), moves.min(0))
    together = align(current, target, NODES, by_layer=False)
    assert count_moves(current, together).sum() == moves.sum(1).min()
    for found in (ours, together):  # the same shelves under other names
        for layer in range(3):
            shelves = [
                sorted(map(tuple, np.sort(p.physical_to_logical[layer].reshape(4, -1), 1).tolist()))
                for p in (found, target)
            ]
            assert shelves[0] == shelves[1]


def test_a_renamed_placement_comes_back():
    current = random_placement(np.random.default_rng(1))
    for order in renamings():
        back = align(current, renamed(current, order, range(3)), NODES, by_layer=False)
        assert count_moves(current, back).sum() == 0


def test_devices_that_differ_keep_their_names(tmp_path):
    body = {"schema": "moesim.cluster/1", "name": "mixed", "device": "h100_sxm", "nodes": 1}
    body |= {"devices_per_node": 4, "speed_factors": [2.0, 1.0, 1.0, 1.0]}
    (tmp_path / "mixed.json").write_text(json.dumps(body))
    mixed = load_cluster(str(tmp_path / "mixed.json"))
    current = random_placement(np.random.default_rng(2))
    target = renamed(current, [1, 2, 3, 0], range(3))
    found = align(current, target, mixed, by_layer=True)
    rows = [p.physical_to_logical.reshape(3, 4, -1)[:, 0] for p in (found, target)]
    np.testing.assert_array_equal(*rows)
    apart = tmp_path / "apart.json"  # nodes that hold different devices
    apart.write_text(json.dumps(body | {"nodes": 2, "devices_per_node": 2}))
    same = align(current, target, load_cluster(str(apart)), by_layer=True)
    np.testing.assert_array_equal(same.physical_to_logical, target.physical_to_logical)
