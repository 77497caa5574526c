"""Loads of the timed rank against the collector's process, written out plainly."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.calibrate.frame import Frame
from moesim.calibrate.moe_load import (
    _settle,
    balanced_loads,
    moe_loads,
    power_law_loads,
)
from moesim.errors import InputError

EXPERTS = st.sampled_from([8, 16, 60, 128, 160])
SETTINGS = settings(deadline=None, derandomize=True, max_examples=80)


def frame(rows):
    """Rows of (tokens, top_k, experts, moe_ep, distribution)."""
    labels = tuple(dict.fromkeys(row[4] for row in rows))
    names = ("tokens", "top_k", "experts", "moe_ep")
    columns = {name: np.array([row[i] for row in rows]) for i, name in enumerate(names)}
    columns["distribution"] = np.array([labels.index(row[4]) for row in rows], np.int32)
    return Frame("moe", columns, {"distribution": labels})


@SETTINGS
@given(st.integers(1, 300), st.integers(1, 8), EXPERTS)
def test_balanced_pattern_token_by_token(tokens, top_k, experts):
    plain = [0] * experts
    stride = math.ceil(experts / top_k)
    for token in range(tokens):
        for i in range(top_k):
            start = token if tokens >= stride else token * stride // tokens
            plain[(start + i * stride) % experts] += 1
    assert balanced_loads(tokens, top_k, experts).tolist() == plain


def test_few_tokens_leave_ranks_idle_in_the_balanced_pattern():
    """DeepSeek-V3, one token over 32 ranks: 8 experts, each on a rank of its own."""
    by_rank = balanced_loads(1, 8, 256).reshape(32, 8).sum(axis=1)
    assert (by_rank > 0).sum() == 8
    assert by_rank[0] == 1  # the timed rank is one of those that work
    assert (balanced_loads(32, 8, 256) == 1).all()


@SETTINGS
@given(
    st.integers(2, 400),
    st.integers(1, 8),
    EXPERTS,
    st.sampled_from([1, 2, 4]),
    st.sampled_from([0.6, 1.0, 1.01, 1.2, 2.0]),
    st.integers(0, 10),
)
def test_power_law_conserves_tokens_and_times_the_straggler(
    tokens, top_k, experts, ranks, alpha, seed
):
    source = np.random.default_rng(seed)
    loads = power_law_loads(tokens, top_k, experts, ranks, alpha, 3, source)
    assert loads.shape == (3, ranks, experts // ranks)
    assert (loads.sum(axis=(1, 2)) == tokens * top_k).all()
    assert loads.min() >= 0
    assert loads.max() <= tokens
    by_rank = loads.sum(axis=2)
    assert (by_rank[:, 0] == by_rank.max(axis=1)).all()
    assert (by_rank[:, 0] * ranks >= tokens * top_k).all()


@SETTINGS
@given(
    st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=4), min_size=3, max_size=3),
    st.integers(0, 108),
)
def test_what_is_left_goes_round_the_ranks_one_by_one(start, copies):
    """Against the loop: each rank in turn adds to its least, or takes from its most loaded."""
    plain = [sorted(rank) for rank in start]
    missing = copies - sum(map(sum, plain))
    while missing:
        for rank in plain:
            able = [n for n in rank if (n < 9 if missing > 0 else n > 0)]
            if able and missing:
                chosen = min(able) if missing > 0 else max(able)
                rank[rank.index(chosen)] += 1 if missing > 0 else -1
                missing -= 1 if missing > 0 else -1
    got = _settle(np.array([start]), copies, 9)[0]
    assert got.tolist() == [sorted(rank) for rank in plain]


def test_loads_of_rows_do_not_depend_on_the_other_rows():
    rows = [
        (64, 2, 8, 2, "power_law_1.2"),
        (64, 2, 8, 2, "balanced"),
        (64, 2, 8, 2, "power_law_1.2"),
    ]
    together = moe_loads(frame(rows))
    alone = moe_loads(frame(rows[:1]))
    assert together.of(0).tolist() == together.of(2).tolist() == alone.of(0).tolist()
    assert together.of(0).shape == (8, 4)
    assert together.of(1).tolist() == [[16] * 4] * 8
    assert moe_loads(frame(rows), seed=1).of(0).tolist() != together.of(0).tolist()
    assert len(np.unique(together.of(0), axis=0)) > 1


def test_means_over_draws_are_those_of_the_loads():
    rows = [
        (t, 2, 16, ep, d)
        for t in (1, 7, 300)
        for ep in (1, 4)
        for d in ("balanced", "power_law_1.01")
    ]
    loads = moe_loads(frame(rows), draws=5)
    active = loads.mean(lambda n: n > 0)
    total = loads.mean(lambda n: n)
    busiest = loads.mean_of_max()
    for row in range(len(rows)):
        table = loads.of(row)
        assert table.shape == (5, 16 // rows[row][3])
        assert active[row] == pytest.approx((table > 0).sum(axis=1).mean())
        assert total[row] == pytest.approx(table.sum(axis=1).mean())
        assert busiest[row] == pytest.approx(table.max(axis=1).mean())


def test_skew_reads_fewer_experts_at_few_tokens_and_waits_longer_at_many():
    rows = [(128, 8, 256, 1, "balanced"), (128, 8, 256, 1, "power_law_1.2")]
    rows += [(8192, 8, 256, 8, "balanced"), (8192, 8, 256, 8, "power_law_1.2")]
    loads = moe_loads(frame(rows))
    active, total = loads.mean(lambda n: n > 0), loads.mean(lambda n: n)
    assert active[0] == 256
    assert active[1] < 256
    assert total[2] == 8192
    assert total[3] > 1.3 * total[2]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ((1, 2, 8, 1, "uniform"), "distribution whose loads are unknown"),
        ((1, 2, 8, 1, "power_law_1.01_eplb"), "distribution whose loads are unknown"),
        ((1, 2, 8, 3, "balanced"), "no such expert-parallel group"),
        ((0, 2, 8, 1, "balanced"), "no such expert-parallel group"),
        ((4, 9, 8, 1, "power_law_1.2"), "no such expert-parallel group"),
    ],
)
def test_keys_without_a_meaning_are_refused(row, problem):
    with pytest.raises(InputError, match=problem):
        moe_loads(frame([row]))


def test_no_rows_have_no_loads():
    empty = moe_loads(frame([(1, 1, 8, 1, "balanced")]).take(np.zeros(1, bool)))
    assert (len(empty.key), len(empty.values), empty.offsets.tolist()) == (0, 0, [0])
