"""Schedules of one layer: by hand, against plain references, against every possible division."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.offload.schedules import (
    COPIED,
    CPU,
    GPU,
    LINK,
    ON_CPU,
    RESIDENT,
    SCHEDULES,
    Costs,
    Work,
    new_answer,
    schedule,
)

from . import plain

REFERENCES = {
    "on-demand": plain.on_demand, "split": plain.split, "hybrid": plain.hybrid,
    "hybrid-code": plain.hybrid_code,
}  # fmt: skip


class Run:
    """One call of :func:`schedule`, with its answers as attributes."""

    def __init__(self, name, layer, *, ready=None, host=None, link=0.0):
        size = len(layer.tokens)
        absent = np.where(layer.there, 0.0, np.inf)
        work = Work(
            np.array(layer.tokens, np.int64),
            absent if ready is None else np.array(ready),
            np.zeros(size) if host is None else np.array(host),
            np.full(size, layer.copy_s),
            link,
        )
        costs = Costs(np.array(layer.gpu_s), np.array(layer.cpu_s), layer.cpu_first_s)
        answer = new_answer(size)
        schedule(SCHEDULES[name], work, costs, answer)
        self.place, self.span, self.copied, self.clocks, self.busy = answer
        self.end = max(self.clocks[GPU], self.clocks[CPU])


def linear(tokens, there, *, gpu=0.5, cpu=1.0, first=0.0, copy=2.0):
    """A layer whose GPU time does not depend on the tokens and whose CPU time is linear."""
    most = max(tokens)
    cpu_s = [cpu * n for n in range(most + 1)]
    return plain.Layer(tokens, there, [gpu] * (most + 1), cpu_s, first, copy)


def test_on_demand_by_hand():
    # Two there: 0 … 1 s on the GPU. Copies end at 2 and 4 s, each computes for 0.5 s.
    run = Run("on-demand", linear([1, 3, 2, 1], [True, False, False, True]))
    assert run.span.tolist() == [[0, 0.5], [2, 2.5], [4, 4.5], [0.5, 1.0]]
    assert run.clocks.tolist() == [4.5, 0, 4]
    assert run.busy.tolist() == [2, 0, 4]


def test_serial_by_hand():
    # 1 s of what is there, then twice 2 s of copy and 0.5 s of computation.
    run = Run("serial", linear([1, 3, 2, 1], [True, False, False, True]))
    assert run.end == 6.0


def test_split_by_hand():
    run = Run("split", linear([1, 3, 2, 1], [True, False, False, True], first=0.25))
    assert run.span[1].tolist() == [0, 3.25]
    assert run.span[2].tolist() == [3.25, 5.25]
    assert run.place.tolist() == [RESIDENT, ON_CPU, ON_CPU, RESIDENT]


def test_hybrid_by_hand():
    """Tokens 1, 2, 4, 5 missing: the CPU takes 1 (ends 1) and 2 (3); the link copies 5 (2), 4 (4).

    At 3 s the CPU could begin 4 (ends 7), the link ends it at 4: it is copied, and the GPU is done
    at 4.5 s.
    """
    run = Run("hybrid", linear([5, 1, 4, 2], [False] * 4))
    assert run.place.tolist() == [COPIED, ON_CPU, COPIED, ON_CPU]
    assert run.copied[[0, 2]].tolist() == [2, 4]
    assert run.clocks.tolist() == [4.5, 3, 4]


def test_hybrid_code_by_hand():
    """Constants of the released code for DeepSeek-V2-Lite: one token each, two of six cached.

    GPU 0.5, 1.0 (cached); CPU 1.79 (last); third by copy: max(1.0, 0.4179) + 0.5 = 1.5 ≤ 2.79;
    fourth: max(1.5, 0.8358) + 0.5 = 2.0 ≤ 2.79; fifth: 2.5 ≤ 2.79.
    """
    layer = linear([1] * 6, [True, True] + [False] * 4, first=0.79, copy=0.4179)
    run = Run("hybrid-code", layer)
    assert run.place.tolist() == [RESIDENT, RESIDENT, COPIED, COPIED, COPIED, ON_CPU]
    assert run.clocks[GPU] == pytest.approx(2.5)
    assert run.clocks[CPU] == pytest.approx(1.79)
    assert run.busy[LINK] == pytest.approx(3 * 0.4179)


def test_in_the_code_the_cpu_takes_an_expert_that_is_cached():
    # Nothing is missing, and the CPU is faster than the GPU's queue.
    run = Run("hybrid-code", linear([1, 1, 1], [True] * 3, gpu=5.0, cpu=1.0))
    assert (run.place == ON_CPU).all()


def test_prefetched_experts_are_waited_for():
    layer = linear([1, 1], [True, True])
    assert Run("on-demand", layer, ready=[0.0, 3.0]).end == 3.5
    assert Run("on-demand", layer, ready=[0.0, np.inf], link=1.0).end == 3.5


def test_experts_from_the_disk_are_waited_for():
    layer = linear([1, 1], [False, False])
    assert Run("on-demand", layer, host=[0.0, 10.0]).end == 12.5
    assert Run("split", layer, host=[0.0, 10.0]).end == 11.0


layers = st.integers(1, 7).flatmap(
    lambda size: st.builds(
        plain.Layer,
        tokens=st.lists(st.integers(1, 6), min_size=size, max_size=size),
        there=st.lists(st.booleans(), min_size=size, max_size=size),
        gpu_s=st.lists(st.integers(1, 8).map(float), min_size=7, max_size=7).map(sorted),
        cpu_s=st.lists(st.integers(1, 40).map(float), min_size=7, max_size=7).map(sorted),
        cpu_first_s=st.integers(0, 4).map(float),
        copy_s=st.integers(1, 20).map(float),
    )
)


@given(layers)
@settings(max_examples=120, deadline=None)
def test_same_as_the_plain_references(layer):
    for name, reference in REFERENCES.items():
        run, expected = Run(name, layer), reference(layer)
        for i in range(len(layer.tokens)):
            span = expected.cpu[i] if run.place[i] == ON_CPU else expected.gpu[i]
            assert tuple(run.span[i]) == span, name
            assert (run.place[i] == COPIED) == (i in expected.copies)
        assert run.end == expected.end


@given(layers)
@settings(max_examples=80, deadline=None)
def test_every_expert_runs_once_and_no_resource_does_two_things_at_once(layer):
    for name in SCHEDULES:
        run = Run(name, layer)
        assert (run.span[:, 1] > run.span[:, 0]).all()
        for on_cpu in (False, True):
            spans = run.span[(run.place == ON_CPU) == on_cpu]
            spans = spans[np.argsort(spans[:, 0])]
            assert (spans[1:, 0] >= spans[:-1, 1]).all()
        copies = np.sort(run.copied[np.isfinite(run.copied)])
        assert (np.diff(copies) >= layer.copy_s).all()
        after_copy = run.place == COPIED
        assert (run.span[after_copy, 0] >= run.copied[after_copy]).all()
        absent = ~np.array(layer.there)
        assert ((run.place == RESIDENT) <= ~absent).all()
        assert (run.busy <= run.clocks + 1e-9).all()


@given(layers)
@settings(max_examples=60, deadline=None)
def test_never_better_than_the_best_division(layer):
    best = plain.optimum(layer)
    for name in ("on-demand", "split", "hybrid"):
        assert Run(name, layer).end >= best - 1e-9


def test_how_far_the_hybrid_rule_is_from_the_best_division():
    """Over decode-like layers: one token per expert, a fifth of them more."""
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(80):
        size = int(rng.integers(4, 8))
        tokens = np.where(rng.random(size) < 0.2, 2, 1).tolist()
        there = (rng.random(size) < 0.4).tolist()
        layer = linear(
            tokens, there, gpu=0.1, cpu=float(rng.uniform(0.3, 2)), first=0.2,
            copy=float(rng.uniform(0.3, 2)),
        )  # fmt: skip
        ratios.append(Run("hybrid", layer).end / plain.optimum(layer))
    assert np.mean(ratios) < 1.05
    assert np.max(ratios) < 1.6
