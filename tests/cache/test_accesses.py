"""What a cache is asked for: batches, samples, padding and repeated experts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from moesim.cache.accesses import cache_accesses
from moesim.cache.setting import CacheSetting
from moesim.cache.steps import batch_steps
from moesim.errors import InputError, UsageError
from moesim.traces.bundle import write_trace
from moesim.traces.sequences import Sequences, trace_sequences

from .traces import in_memory, local_routing


def steps_of(bounds, **setting):
    steps = batch_steps(Sequences(np.array(bounds)), CacheSetting(**setting))
    parts = np.split(steps.tokens, steps.starts[1:-1])
    return [part.tolist() for part in parts], steps.resets.tolist(), steps.begins.tolist()


def test_one_sequence_after_the_other():
    assert steps_of([0, 2, 3]) == ([[0], [1], [2]], [0, 3], [0, 2])
    assert steps_of([0, 2, 3], reset="sequence")[1] == [0, 2, 3]


def test_the_next_sequence_takes_the_place_of_one_that_ends():
    steps, resets, _ = steps_of([0, 3, 4, 6], batch=2)
    assert steps == [[0, 3], [1, 4], [2, 5]]
    assert resets == [0, 3]


def test_sequences_of_a_batch_start_together_where_the_cache_is_emptied():
    steps, resets, begins = steps_of([0, 3, 4, 6], batch=2, reset="sequence")
    assert steps == [[0, 3], [1], [2], [4], [5]]
    assert resets == [0, 3, 5]
    assert begins == [0, 3]


def test_chunks_of_a_prefill():
    steps, _, begins = steps_of([0, 5, 7], step_tokens=3)
    assert steps == [[0, 1, 2], [3, 4], [5, 6]]
    assert begins == [0, 2]


def test_union_over_a_batch_in_the_order_of_mention():
    trace = in_memory(np.array([[[0, 1], [2, 3], [1, 0], [3, 1]]]), 4)
    (accesses,) = cache_accesses(trace, CacheSetting(batch=2, sample_tokens=2))
    assert accesses.ids.tolist() == [0, 1, 2, 3, 1]
    assert accesses.starts.tolist() == [0, 2, 5]
    assert accesses.assignments == 8


def test_layers_of_a_pooled_cache():
    trace = in_memory(np.array([[[0, 1], [1, 2]], [[2, 0], [0, 1]]]), 3)
    (accesses,) = cache_accesses(trace, CacheSetting(scope="pooled"))
    assert accesses.ids.tolist() == [0, 1, 5, 3, 1, 2, 3, 4]
    assert accesses.starts.tolist() == [0, 2, 4, 6, 8]
    (accesses,) = cache_accesses(trace, CacheSetting(scope="pooled-token"))
    assert accesses.starts.tolist() == [0, 4, 8]


def test_padding_and_experts_named_twice_do_not_count():
    routing = np.array([[[0, 1], [2, 2], [1, 9]]])
    trace = in_memory(routing, 3, valid_k=np.array([[2, 2, 1]], np.uint8))
    (accesses,) = cache_accesses(trace, CacheSetting())
    assert accesses.ids.tolist() == [0, 1, 2, 1]
    assert accesses.starts.tolist() == [0, 2, 3, 4]
    (accesses,) = cache_accesses(in_memory(np.array([[[0, 1], [2, 2]]]), 3), CacheSetting())
    assert accesses.ids.tolist() == [0, 1, 2]


def test_ids_out_of_range_are_refused():
    trace = in_memory(np.array([[[0, 1], [2, 5]]]), 3)
    for scope in ("per-layer", "pooled"):
        with pytest.raises(InputError, match=r"token 1.*found 5.*allowed: 0 … 2"):
            list(cache_accesses(trace, CacheSetting(scope=scope)))


def test_requests_and_samples_of_a_bundle(tmp_path):
    routing = local_routing(np.random.default_rng(0), tokens=6, experts=4)
    requests = pd.DataFrame({
        "request": [7, 7, 3, 3, 3, 7],
        "position": [0, 1, 0, 1, 2, 2],
        "phase": ["prefill"] * 6,
        "domain": ["b", "b", "a", "a", "a", "b"],
    })  # fmt: skip
    trace = write_trace(
        tmp_path / "t", routing, model="m", experts=4, source="test", requests=requests
    )
    whole = trace_sequences(trace)
    assert whole.order.tolist() == [2, 3, 4, 0, 1, 5]
    assert whole.bounds.tolist() == [0, 3, 6]
    assert [whole.domains[d] for d in whole.domain] == ["a", "b"]
    samples = trace_sequences(trace, 2)
    assert samples.bounds.tolist() == [0, 2, 3, 5, 6]
    assert samples.domain.tolist() == [0, 0, 1, 1]
    chosen = samples.select(samples.domain == 1)
    assert chosen.order.tolist() == [0, 1, 5]
    assert chosen.bounds.tolist() == [0, 2, 3]
    (accesses,) = cache_accesses(trace, CacheSetting(), sequences=chosen, layers=[0])
    assert accesses.ids.tolist() == routing[0, [0, 1, 5]].reshape(-1).tolist()


def test_requests_that_cannot_be_read_are_refused(tmp_path):
    routing = local_routing(np.random.default_rng(0), tokens=6, experts=4)
    trace = write_trace(tmp_path / "t", routing, model="m", experts=4, source="test")
    file = trace.path / "requests.parquet"
    file.write_bytes(b"no parquet")
    with pytest.raises(InputError, match=r"requests.parquet: not a usable parquet file"):
        trace_sequences(trace)
    pd.DataFrame({"request": [1, 2]}).to_parquet(file)
    with pytest.raises(InputError, match="found 2 rows; allowed: 6 rows"):
        trace_sequences(trace)
    pd.DataFrame({"phase": ["decode"] * 6}).to_parquet(file)
    assert trace_sequences(trace).bounds.tolist() == [0, 6]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"contract": "atomic"}, "unknown contract 'atomic'"),
        ({"cold": "warm"}, "miss, hit"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"sample_tokens": 0}, "sample_tokens"),
    ],
)
def test_settings_that_make_no_sense(given, says):
    with pytest.raises(UsageError, match=says):
        CacheSetting(**given)
