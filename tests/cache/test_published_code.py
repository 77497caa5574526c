"""Figures that the authors' own code gives for one synthetic layer (arXiv 2505.16056).

github.com/ljcleo/moe-lrc at 7b3ca46, src/30, 41 and 50, was run on 65,536 tokens in samples of
512, 64 experts, top-8 (:func:`tests.benchmarks.cache.wandering_layer`, seed 0); four digits were
noted.
"""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from moesim.cache.replay import hit_curve
from moesim.cache.setting import PUBLISHED
from moesim.traces.locality import segment_counts, segment_routing
from moesim.traces.sequences import trace_sequences

from ..benchmarks.cache import wandering_layer
from .traces import in_memory

HIT_RATES = {
    "lru": {8: 0.3225, 16: 0.5254, 32: 0.7810},
    "lfu": {8: 0.3521, 16: 0.5336, 32: 0.7596},
    "belady": {8: 0.5234, 16: 0.7286, 32: 0.8991},
    "sch:window=4": {16: 0.6716},
    "sch:window=16": {16: 0.6806},
    "sch:window=64": {16: 0.6135},
    "sch:window=256": {16: 0.5654},
}


CHECKSUM = 0xA4DCC3FA


@pytest.fixture(scope="module")
def layer():
    return in_memory(wandering_layer(65_536, np.random.default_rng(0))[None], 64)


def test_hit_rates(layer):
    # Experts of one token in another order move a rate by up to 0.002, and the order in which
    # argpartition leaves them is the processor's choice.
    same_order = zlib.crc32(layer.routing.tobytes()) == CHECKSUM
    tolerance = 5e-5 if same_order else 3e-3
    for policy, rates in HIT_RATES.items():
        curve = hit_curve(layer, policy, list(rates), PUBLISHED)
        assert curve.hit_rate == pytest.approx(list(rates.values()), abs=tolerance), policy


def test_segment_routing(layer):
    counts = segment_counts(layer, (4, 16, 64, 256), sequences=trace_sequences(layer, 512))
    found = [segment_routing(table[0, 0]) for table in counts]
    assert [f.srp for f in found] == pytest.approx([0.5925, 0.4894, 0.4310, 0.3822], abs=5e-5)
    assert [f.size_ratio for f in found] == pytest.approx([0.91, 1.46, 1.34, 1.40], abs=5e-3)
