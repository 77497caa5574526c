"""EPLB slot by slot.

The golden tables come from the published code, https://github.com/deepseek-ai/EPLB commit d52c72d,
run with torch 2.13.0 (CPU, Linux). The loads are those of ``tests.benchmarks.eplb.zipf_loads`` with
seed 0 and exponent 0.8; ``python -m tests.benchmarks.eplb --reference eplb.py`` compares every slot
again.
"""

import hashlib

import numpy as np
import pytest

from moesim.errors import InfeasibleError
from moesim.planners.eplb import (
    _group_sums,
    eplb,
    eplb_global,
    eplb_hierarchical,
    rebalance,
)
from tests.benchmarks.eplb import DEVICES, POLICIES, SLOTS, zipf_loads
from tests.planners.problems import make_problem, random_loads, random_problem

README_LOADS = [
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]
README_TABLE = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]
GOLDEN = {
    ("hierarchical", 1e6): "747799db33dd5a0b3b5de3a2c5f5991f",
    ("hierarchical", 2e3): "2ef2ad0e73198ea3c11d4cbdcf64e378",
    ("global", 1e6): "3b01b2b16c9bf9cf04ce0c504bce1613",
    ("global", 2e3): "11935addd3ba0cd86f592ea904bc60cd",
}


def test_readme_example():
    problem = make_problem(README_LOADS, 8, 16, nodes=2, routing_groups=4)
    assert eplb(problem).tolist() == README_TABLE


@pytest.mark.parametrize(("policy", "tokens"), GOLDEN)
def test_published_tables(policy, tokens):
    groups, nodes = POLICIES[policy]
    table = rebalance(zipf_loads(0, 0.8, tokens), SLOTS, groups, nodes, DEVICES)
    digest = hashlib.sha256(table.astype("<i4").tobytes()).hexdigest()
    assert digest.startswith(GOLDEN[policy, tokens])


def test_against_plain_loops():
    from tests.planners import plain_eplb

    rng = np.random.default_rng(0)
    for _ in range(250):
        problem = random_problem(rng, experts_max=90, layers_max=2)
        groups, nodes = problem.routing_groups, problem.nodes
        for group_count, node_count in ((groups, nodes), (1, 1)):
            shape = (problem.slots, group_count, node_count, problem.devices)
            ours = rebalance(problem.loads, *shape)
            np.testing.assert_array_equal(ours, plain_eplb.rebalance(problem.loads, *shape))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 100, 160, 511])
def test_group_sums_are_rounded_as_in_torch(size):
    import torch

    rng = np.random.default_rng(size)
    # Between 1 and 2 nearly every addition rounds.
    loads = rng.uniform(1, 2, (20, 4 * size)).astype(np.float32)
    torch_sums = torch.from_numpy(loads).unflatten(-1, (4, size)).sum(-1).numpy()
    np.testing.assert_array_equal(_group_sums(loads, 4), torch_sums)
    if size == 160:
        plain = np.add.accumulate(loads.reshape(20, 4, size), axis=2, dtype=np.float32)[..., -1]
        assert (plain != torch_sums).any()


def test_policy_follows_groups_and_nodes():
    rng = np.random.default_rng(3)
    loads = random_loads(rng, 2, 16) + rng.random((2, 16))
    whole = make_problem(loads, 4, 20, nodes=2, routing_groups=4)
    torn = make_problem(loads, 4, 20, nodes=4, routing_groups=2)
    np.testing.assert_array_equal(eplb(whole), eplb_hierarchical(whole))
    np.testing.assert_array_equal(eplb(torn), eplb_global(torn))
    with pytest.raises(InfeasibleError, match=r"16 experts in 2 groups .* 4 nodes"):
        eplb_hierarchical(torn)


def test_hierarchical_keeps_groups_on_one_node():
    rng = np.random.default_rng(4)
    problem = make_problem(rng.gamma(0.5, 1, (5, 24)), 6, 36, nodes=3, routing_groups=6)
    for row in eplb_hierarchical(problem).reshape(5, 3, 12):
        groups_of_node = [set(node // 4) for node in row]
        assert [len(groups) for groups in groups_of_node] == [2, 2, 2]
        assert set.union(*groups_of_node) == set(range(6))
