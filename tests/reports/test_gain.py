"""Where a plan's gain comes from: parts that add up, and a reason for the choice."""

from dataclasses import replace

import numpy as np
import pytest

from moesim.reports.gain import gain_sources, sources, why
from moesim.reports.plan_report import build_report


def cost_of(cost, compute_s, moving_s, link_bytes):
    layers = len(cost.layer_compute_s)
    return replace(
        cost,
        step_s=layers * (compute_s + 2 * moving_s),
        layer_compute_s=np.full(layers, compute_s),
        layer_dispatch_s=np.full(layers, moving_s),
        layer_combine_s=np.full(layers, moving_s),
        link_bytes=np.full_like(cost.link_bytes, link_bytes),
    )


def test_parts_worked_by_hand(small):
    cost = small.scores[small.chosen].cost
    layers = len(cost.layer_compute_s)
    before, after = cost_of(cost, 3e-3, 2e-3, 100.0), cost_of(cost, 2e-3, 1e-3, 75.0)
    found = gain_sources(before, after)
    assert found.compute_tail_s == pytest.approx(layers * 1e-3)
    assert found.volume_s == pytest.approx(layers * 4e-3 * 0.25)
    assert found.all_to_all_tail_s == pytest.approx(layers * (2e-3 - 1e-3))
    same = gain_sources(before, before)
    assert (same.compute_tail_s, same.volume_s, same.all_to_all_tail_s) == (0, 0, 0)
    silent = cost_of(cost, 3e-3, 0.0, 0.0)
    assert gain_sources(silent, silent).volume_s == 0


def test_parts_add_up(small):
    before = small.scores[small.baseline].cost
    for score in small.scores.values():
        found = gain_sources(before, score.cost)
        total = found.compute_tail_s + found.volume_s + found.all_to_all_tail_s
        assert total == pytest.approx(before.step_s - score.cost.step_s, abs=1e-9 * before.step_s)


def test_sentences(small):
    lead = build_report(small).lead
    if small.chosen == small.baseline:
        assert sources(small) is None
    else:
        assert sources(small) in lead
        assert "in all" in sources(small)
    assert sources(replace(small, chosen=small.baseline)) is None


def test_why_names_the_next_best(small):
    base = small.scores[small.baseline]
    scores = {
        name: replace(base, name=name, cost=cost_of(base.cost, compute_s, 1e-3, 10.0))
        for name, compute_s in (("contiguous", 5e-3), ("lpt", 4e-3), ("joint", 3e-3))
    }
    outcome = replace(small, scores=scores, baseline="contiguous", chosen="joint")
    text = why(outcome)
    assert text.startswith(
        "joint has the shortest step of 3 placements; lpt is next, 20.0 % slower"
    )
    assert "faster and its all-to-all" in text
    assert why(replace(outcome, chosen="lpt")) is None  # a faster one was shown beside it
    two = {name: scores[name] for name in ("contiguous", "joint")}
    assert why(replace(outcome, scores=two)) is None
