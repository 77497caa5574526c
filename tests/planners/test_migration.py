"""What a change of placement sends, against a recount by hand."""

from collections import Counter

import numpy as np
import pytest

from moesim.cluster import load_cluster
from moesim.model import load_model
from moesim.placement import Placement
from moesim.planners.migration import break_even_steps, migration

MODEL = load_model("mixtral-8x7b")  # 8 experts
EXPERT_BYTES = MODEL.expert_weight_bytes
NODES = load_cluster("2x2xh100_sxm")


def placement(*rows):
    table = np.array(rows, np.int32)
    return Placement(table, 4, 8, tuple(range(len(rows))))


def random_placement(rng, layers=5, slots=12):
    rows = []
    for _ in range(layers):
        copies = np.concatenate([np.arange(8), rng.integers(0, 8, slots - 8)])
        rows.append(rng.permutation(copies))
    return placement(*rows)


@pytest.mark.parametrize("seed", range(20))
def test_every_new_copy_is_counted_and_sent_by_a_holder(seed):
    rng = np.random.default_rng(seed)
    before, after = random_placement(rng), random_placement(rng)
    found = migration(before, after, MODEL, NODES)
    moves, received = 0, np.zeros(4)
    for old, new in zip(before.physical_to_logical, after.physical_to_logical, strict=True):
        for device in range(4):
            had = Counter(old[3 * device : 3 * device + 3].tolist())
            more = Counter(new[3 * device : 3 * device + 3].tolist()) - had
            moves += more.total()
            received[device] += len([expert for expert in more if expert not in had])
    assert found.moves == moves
    assert found.moved_bytes == moves * EXPERT_BYTES
    np.testing.assert_allclose(found.sent_bytes.sum(0), received * EXPERT_BYTES)
    assert not found.sent_bytes.diagonal().any()
    assert migration(before, before, MODEL, NODES).seconds == 0.0


def test_the_nearest_holder_sends():
    """Device 1 needs expert 0, which device 0 of its node and device 2 of the other one hold."""
    before = placement([0, 1, 2, 3, 3, 4, 5, 6, 0, 7, 7, 7])
    after = placement([0, 1, 2, 3, 0, 4, 5, 6, 0, 7, 7, 7])
    found = migration(before, after, MODEL, NODES)
    assert found.moves == 1
    assert found.sent_bytes[0, 1] == EXPERT_BYTES
    link_s = EXPERT_BYTES / NODES.pair_bandwidth_bytes_per_s[0, 1]
    assert found.seconds == pytest.approx(link_s + NODES.pair_latency_s[0, 1])


def test_equally_near_holders_take_turns():
    before = placement([0, 1, 2, 0, 1, 3, 4, 5, 6, 7, 7, 7])
    after = placement([0, 1, 2, 0, 1, 3, 4, 5, 6, 7, 0, 1])
    found = migration(before, after, MODEL, load_cluster("4xh100_sxm"))
    assert found.sent_bytes[:, 3].tolist() == [EXPERT_BYTES, EXPERT_BYTES, 0.0, 0.0]


def test_break_even():
    assert break_even_steps(2.0, 0.03, 0.02) == pytest.approx(200)
    assert break_even_steps(2.0, 0.02, 0.02) is None
