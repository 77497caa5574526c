import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import InputError, UsageError
from moesim.traces.bundle import Trace, TraceManifest, open_trace, sample_path
from moesim.workload import draw_batches, sample_routing, split_trace


def trace_of(routing, experts=8):
    layers, tokens, top_k = routing.shape
    manifest = TraceManifest(
        model="m",
        layers=layers,
        moe_layers=tuple(range(layers)),
        experts=experts,
        top_k=top_k,
        tokens=tokens,
        dtype="uint8",
    )
    return Trace(manifest, routing)


def numbered(tokens):
    """A trace whose only layer names the token by two ids."""
    ids = np.arange(tokens)
    return trace_of(np.stack((ids // 256, ids % 256), -1)[None].astype(np.uint8), 256)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(tokens=st.integers(257, 5000), fraction=st.floats(0.01, 0.9))
def test_split_keeps_every_token_once(tokens, fraction):
    planning, holdout = split_trace(numbered(tokens), fraction)
    seen = np.concatenate([planning.routing[0], holdout.routing[0]]).astype(int)
    assert sorted(seen[:, 0] * 256 + seen[:, 1]) == list(range(tokens))


def test_split_spreads_blocks_and_keeps_their_share():
    planning, holdout = split_trace(open_trace(sample_path()), 0.25)
    assert holdout.manifest.tokens / (43008) == pytest.approx(0.25)
    assert planning.manifest.tokens + holdout.manifest.tokens == 43008
    assert split_trace(open_trace(sample_path()), 0)[1] is None


def test_split_samples_long_traces_evenly():
    planning, holdout = split_trace(numbered(256 * 100), 0.5, max_tokens=256 * 10)
    assert planning.manifest.tokens + holdout.manifest.tokens == 256 * 10
    first, last = planning.routing[0, 0, 0], holdout.routing[0, -1, 0]
    assert (first, last) == (0, 99)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_split_refuses_impossible_fractions(fraction):
    with pytest.raises(UsageError, match="--holdout"):
        split_trace(numbered(1000), fraction)


def test_split_refuses_a_trace_of_one_block():
    with pytest.raises(InputError, match="too short"):
        split_trace(numbered(200), 0.25)


def test_prefill_devices_work_on_runs_and_decode_devices_on_scattered_tokens():
    trace = numbered(5000)
    for phase, runs in (("prefill", True), ("decode", False)):
        batches = draw_batches(trace, devices=4, tokens_per_device=64, phase=phase, seed=0)
        ids = batches.routing[:, 0].astype(int) @ [256, 1]
        steps = np.diff(ids.reshape(batches.count, 4, 64)) % 5000
        assert (steps == 1).all() == runs


def test_drawing_is_deterministic():
    trace = open_trace(sample_path())
    a, b, c = (
        draw_batches(trace, devices=4, tokens_per_device=16, phase="decode", seed=s).routing
        for s in (1, 1, 2)
    )
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


@pytest.mark.parametrize("skew", [0.0, 0.8, 2.0])
def test_sampled_routing_has_the_loads_it_was_given(skew):
    experts, top_k = 16, 4
    loads = (np.arange(1, experts + 1) ** -skew)[None].repeat(2, 0) * 1000
    batches = sample_routing(loads, top_k=top_k, devices=4, tokens_per_device=2000, seed=0)
    for layer in range(2):
        ids = batches.routing[:, layer].reshape(-1, top_k)
        assert (np.diff(np.sort(ids, axis=1), axis=1) > 0).all()  # distinct
        share = np.bincount(ids.ravel(), minlength=experts) / len(ids)
        expected = loads[layer] * top_k / loads[layer].sum()
        if expected.max() <= 1:
            np.testing.assert_allclose(share, expected, atol=0.01)
        else:
            assert share[0] == 1.0
            assert share.sum() == pytest.approx(top_k)
            assert (np.diff(share) <= 0.01).all()


def test_sampling_needs_k_experts_with_load():
    loads = np.zeros((1, 8))
    loads[0, :3] = 5
    with pytest.raises(InputError, match="fewer experts"):
        sample_routing(loads, top_k=4, devices=1, tokens_per_device=4, seed=0)
