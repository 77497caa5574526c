"""Expert layers against their own parts."""

import numpy as np

from moesim.calibrate.frame import Frame
from moesim.calibrate.partitions import slower_than_parts


def frame(latency):
    """Ranks 1, 2, 4, 8 of one layer, three token counts each; latency by (rank, tokens)."""
    ranks, tokens = np.meshgrid([1, 2, 4, 8], [1, 64, 4096], indexing="ij")
    columns = {
        "hidden": np.full(12, 4096),
        "tokens": tokens.ravel(),
        "moe_tp": np.ones(12, np.int64),
        "moe_ep": ranks.ravel(),
        "latency_s": np.asarray(latency, float).ravel(),
    }
    return Frame("moe", columns, {})


GOOD = np.array([[8.0, 80, 800], [4, 40, 400], [2, 20, 200], [1, 10, 100]])


def test_honest_layers_pass():
    assert not slower_than_parts(frame(GOOD)).any()
    assert not slower_than_parts(frame(np.ones((4, 3)))).any()  # bound by the launch


def test_a_part_slower_than_the_whole_is_found_with_all_its_points():
    slow = GOOD.copy()
    slow[1] *= 6  # three times the whole, and six times twice its own half
    score = slower_than_parts(frame(slow)).reshape(4, 3)
    assert np.allclose(score[1], 6)
    assert not score[[0, 2, 3]].any()


def test_a_whole_slower_than_its_parts_together_is_found():
    slow = GOOD.copy()
    slow[0] *= 3
    score = slower_than_parts(frame(slow)).reshape(4, 3)
    assert np.allclose(score[0], 3)
    assert not score[1:].any()


def test_one_slow_point_does_not_condemn_its_series():
    slow = GOOD.copy()
    slow[1, 0] *= 10
    assert not slower_than_parts(frame(slow)).any()
