"""SRP against a router that tries every threshold, on windows counted one by one."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from moesim.errors import UsageError
from moesim.traces.locality import segment_counts, segment_routing
from moesim.traces.sequences import Sequences, trace_sequences

from ..cache.traces import in_memory, local_routing


def windows_one_by_one(routing, experts, bounds, m):
    """[windows, E] uses of every expert in every window within a sequence; routing [T, K]."""
    active = np.zeros((len(routing), experts), np.int64)
    np.put_along_axis(active, routing, 1, axis=1)
    return [active[p : p + m].sum(axis=0) for a, b in pairwise(bounds) for p in range(a, b - m + 1)]


@pytest.mark.parametrize("seed", range(8))
def test_counts_and_best_router(seed):
    rng = np.random.default_rng(seed)
    experts, top_k, m = int(rng.integers(3, 12)), 2, int(rng.choice([1, 2, 5, 16]))
    routing = local_routing(rng, layers=2, tokens=90, experts=experts, top_k=top_k)
    bounds = np.array([0, 33, 40, 41, 90])
    sequences = Sequences(bounds)
    (counts,) = segment_counts(in_memory(routing, experts), [m], sequences=sequences)
    (per_expert,) = segment_counts(
        in_memory(routing, experts), [m], sequences=sequences, by_expert=True
    )
    assert per_expert.sum(axis=2).tolist() == counts.tolist()
    for layer in range(2):
        uses = np.array(windows_one_by_one(routing[layer], experts, bounds, m))
        assert counts[layer, 0].tolist() == np.bincount(uses.ravel(), minlength=m + 1).tolist()
        best, ratio = 0.0, 0.0
        for threshold in range(m + 1):
            on = uses >= threshold
            matches, decided, active = uses[on].sum(), m * on.sum(), uses.sum()
            precision, recall = matches / max(decided, 1), matches / active
            score = 2 * precision * recall / max(precision + recall, 1e-300)
            if score > best + 1e-12:
                best, ratio = score, on.sum() / len(uses) / top_k
        found = segment_routing(counts[layer, 0])
        assert found.srp == pytest.approx(best)
        assert found.size_ratio == pytest.approx(ratio)


def test_groups_add_up():
    rng = np.random.default_rng(0)
    trace = in_memory(local_routing(rng, tokens=60), 8)
    sequences = trace_sequences(trace, 20)
    (one,) = segment_counts(trace, [4], sequences=sequences)
    (two,) = segment_counts(trace, [4], sequences=sequences, groups=np.array([0, 1, 0]))
    (chosen,) = segment_counts(trace, [4], sequences=sequences.select(np.array([1])))
    assert two.sum(axis=1).tolist() == one[:, 0].tolist()
    assert two[:, 1].tolist() == chosen[:, 0].tolist()


def test_ignored_entries_and_experts_named_twice():
    routing = np.array([[[0, 1], [0, 0], [2, 1]]])
    (counts,) = segment_counts(in_memory(routing, 3), [2])
    assert counts[0, 0].tolist() == [1, 4, 1]  # {0 1} {0} · {0} {1 2}: 2 1 0, then 1 1 1
    valid = np.array([[1, 0, 2]])
    (counts,) = segment_counts(in_memory(routing, 3, valid_k=valid.astype(np.uint8)), [2])
    assert counts[0, 0].tolist() == [3, 3, 0]  # {0} {} · {} {1 2}


def test_bounds_of_the_score():
    """Always the same experts: 1. Without any structure: at least always-on, 2 q / (1 + q)."""
    same = in_memory(np.tile([[0, 1]], (1, 50, 1)), 16)
    assert segment_routing(segment_counts(same, [8])[0][0, 0]).srp == 1
    rng = np.random.default_rng(0)
    routing = local_routing(rng, tokens=2000, experts=16, skew=0)
    found = segment_routing(segment_counts(in_memory(routing, 16), [64])[0][0, 0])
    assert 2 / 9 <= found.srp < 0.26


def test_no_window_fits():
    found = segment_routing(segment_counts(in_memory(np.zeros((1, 3, 1), int), 2), [4])[0][0, 0])
    assert np.isnan(found.srp)
    with pytest.raises(UsageError, match="at least 1"):
        segment_counts(in_memory(np.zeros((1, 3, 1), int), 2), [0])
