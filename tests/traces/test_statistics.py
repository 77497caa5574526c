"""Counts against brute force, invariants, and each implementation against the other."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim import compiled
from moesim.errors import InputError, UsageError
from moesim.traces import chunks, counting, reference, statistics
from moesim.traces.bundle import (
    Trace,
    TraceManifest,
    open_trace,
    routing_dtype,
    sample_path,
    write_trace,
)

KERNELS = pytest.mark.parametrize("kernels", [counting, reference], ids=["counting", "reference"])
bounded = settings(deadline=None, derandomize=True, max_examples=60)


def in_memory(routing, experts, valid_k=None):
    layers, tokens, top_k = routing.shape
    manifest = TraceManifest(
        model="test",
        layers=layers,
        moe_layers=tuple(range(layers)),
        experts=experts,
        top_k=top_k,
        tokens=tokens,
        dtype=routing_dtype(experts).name,
    )
    return Trace(manifest, routing.astype(routing_dtype(experts)), valid_k=valid_k)


def random_trace(seed, *, layers=3, tokens=50, top_k=4, experts=16, ragged=False):
    rng = np.random.default_rng(seed)
    routing = rng.permuted(np.tile(np.arange(experts), (layers, tokens, 1)), axis=2)[..., :top_k]
    valid_k = None
    if ragged:
        valid_k = rng.integers(0, top_k + 1, (layers, tokens)).astype(np.uint8)
        # Whatever lies beyond valid_k must not matter, not even an id out of range.
        junk = rng.integers(0, np.iinfo(routing_dtype(experts)).max + 1, routing.shape)
        routing = np.where(np.arange(top_k) < valid_k[..., None], routing, junk)
    return in_memory(routing, experts, valid_k)


def brute_force(trace, window_tokens):
    m = trace.manifest
    windows = -(-m.tokens // window_tokens)
    loads = np.zeros((m.layers, m.experts), np.int64)
    windowed = np.zeros((windows, m.layers, m.experts), np.int64)
    transitions = np.zeros((m.layers - 1, m.experts, m.experts), np.int64)
    coactivation = np.zeros((m.layers, m.experts, m.experts), np.int64)

    def used(layer, token):
        k = m.top_k if trace.valid_k is None else int(trace.valid_k[layer, token])
        return [int(e) for e in trace.routing[layer, token, :k]]

    for layer in range(m.layers):
        for token in range(m.tokens):
            for a in used(layer, token):
                loads[layer, a] += 1
                windowed[token // window_tokens, layer, a] += 1
                for b in used(layer, token):
                    coactivation[layer, a, b] += 1
                if layer + 1 < m.layers:
                    for b in used(layer + 1, token):
                        transitions[layer, a, b] += 1
    return loads, windowed, transitions, coactivation


@pytest.fixture
def every_size_compiled(monkeypatch):
    monkeypatch.setattr(statistics, "_SMALL_COUNTS", 0)


@pytest.fixture(params=["counting", "reference"])
def either(request, monkeypatch):
    small = 0 if request.param == "counting" else 2**62
    monkeypatch.setattr(statistics, "_SMALL_COUNTS", small)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize(
    ("top_k", "experts"), [(1, 1), (1, 7), (4, 16), (8, 255), (8, 256), (8, 300), (9, 10)]
)
def test_all_counts_equal_brute_force(monkeypatch, ragged, top_k, experts):
    # Chunks of 13 tokens: windows and layers do not fit them.
    monkeypatch.setattr(chunks, "CHUNK_IDS", 13 * top_k)
    trace = random_trace(experts, top_k=top_k, experts=experts, ragged=ragged)
    loads, windowed, transitions, coactivation = brute_force(trace, 7)
    for found, expected in (
        (statistics.loads(trace), loads),
        (statistics.windowed_loads(trace, 7), windowed),
        (statistics.transitions(trace), transitions),
        (statistics.coactivation(trace), coactivation),
    ):
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, expected)


@bounded
@given(
    seed=st.integers(0, 2**32 - 1),
    layers=st.integers(1, 3),
    tokens=st.integers(1, 40),
    top_k=st.integers(1, 9),
    spare=st.integers(0, 20),
    ragged=st.booleans(),
)
def test_conservation(seed, layers, tokens, top_k, spare, ragged):
    trace = random_trace(
        seed, layers=layers, tokens=tokens, top_k=top_k, experts=top_k + spare, ragged=ragged
    )
    loads = statistics.loads(trace)
    transitions, coactivation = statistics.transitions(trace), statistics.coactivation(trace)
    counted = trace.routing.size if trace.valid_k is None else int(trace.valid_k.sum())
    assert loads.sum() == counted
    np.testing.assert_array_equal(statistics.windowed_loads(trace, 5).sum(axis=0), loads)
    np.testing.assert_array_equal(np.diagonal(coactivation, axis1=1, axis2=2), loads)
    np.testing.assert_array_equal(coactivation, coactivation.swapaxes(1, 2))
    if trace.valid_k is None:
        np.testing.assert_array_equal(transitions.sum(axis=2), top_k * loads[:-1])
        np.testing.assert_array_equal(transitions.sum(axis=1), top_k * loads[1:])
        np.testing.assert_array_equal(coactivation.sum(axis=2), top_k * loads)
    else:
        valid = trace.valid_k.astype(int)
        np.testing.assert_array_equal(
            transitions.sum(axis=(1, 2)), (valid[:-1] * valid[1:]).sum(axis=1)
        )


@bounded
@given(seed=st.integers(0, 2**32 - 1), ragged=st.booleans())
def test_renaming_experts_permutes_and_reordering_tokens_changes_nothing(seed, ragged):
    trace = random_trace(seed, ragged=ragged, experts=256, top_k=8)
    rng = np.random.default_rng(seed)
    name, order = rng.permutation(256), rng.permutation(trace.manifest.tokens)
    valid_k = None if trace.valid_k is None else trace.valid_k[:, order]
    renamed = in_memory(name[trace.routing][:, order], 256, valid_k)
    np.testing.assert_array_equal(statistics.loads(renamed)[:, name], statistics.loads(trace))
    for count in (statistics.transitions, statistics.coactivation):
        np.testing.assert_array_equal(count(renamed)[:, name][:, :, name], count(trace))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
@pytest.mark.parametrize("top_k", [1, 3, 8])
def test_compiled_loops_equal_the_reference(dtype, top_k):
    rng = np.random.default_rng(top_k)
    first, second = rng.integers(0, 200, (2, 3001, top_k)).astype(dtype)
    np.testing.assert_array_equal(counting.count_ids(first, 256), reference.count_ids(first, 256))
    groups = rng.integers(0, 5, 3001)
    tables = np.ones((2, 5, 200), np.int64)
    counting.count_groups(first, groups, tables[0])
    reference.count_groups(first, groups, tables[1])
    np.testing.assert_array_equal(*tables)
    tables = np.ones((2, 200, 200), np.int64)
    counting.count_pairs(first, second, tables[0])
    reference.count_pairs(first, second, tables[1])
    np.testing.assert_array_equal(*tables)


def steady(tokens, rng):
    """Even at first, one pair ever after: the width chosen from the first block is too narrow."""
    ids = rng.integers(0, 64, (tokens, 8))
    ids[20_000:] = np.arange(8)
    return ids


@pytest.mark.parametrize(
    "draw",
    [
        lambda tokens, rng: rng.integers(0, 64, (tokens, 8)),
        lambda tokens, rng: np.tile(np.arange(8), (tokens, 1)),  # wraps 8-bit counters
        lambda tokens, rng: np.zeros((tokens, 8), int),  # wraps 16-bit counters too
        steady,
    ],
)
def test_counters_that_wrap_are_counted_again(draw):
    tokens = 100_000
    ids = draw(tokens, np.random.default_rng(0)).astype(np.uint8)
    found, expected = np.zeros((2, 64, 64), np.int64)
    counting.count_pairs(ids, ids, found)
    reference.count_pairs(ids, ids, expected)
    np.testing.assert_array_equal(found, expected)
    assert found.sum() == tokens * 64


def test_a_wrapped_counter_leaves_the_table_as_it_was():
    counters = np.array([[255, 3], [0, 1]], np.uint8)
    table = np.full((2, 2), 5)
    assert counting._move(counters.copy(), table, 259 + 256) == 0
    np.testing.assert_array_equal(table, 5)
    assert counting._move(counters, table, 259) == 255
    np.testing.assert_array_equal(table, [[260, 8], [5, 6]])
    assert not counters.any()


@KERNELS
def test_slices_that_are_not_contiguous(kernels):
    rng = np.random.default_rng(1)
    wide = rng.integers(0, 9, (30, 12)).astype(np.uint8)
    part = wide[::2, 1:5]
    np.testing.assert_array_equal(
        kernels.count_ids(part, 9), [np.count_nonzero(part == e) for e in range(9)]
    )
    assert wide.flags.writeable


def test_threads_change_nothing(every_size_compiled):
    trace = random_trace(3, layers=7, tokens=300)
    for count in (statistics.loads, statistics.transitions, statistics.coactivation):
        np.testing.assert_array_equal(count(trace, threads=3), count(trace))
    np.testing.assert_array_equal(
        statistics.windowed_loads(trace, 11, threads=3), statistics.windowed_loads(trace, 11)
    )
    with pytest.raises(UsageError, match="threads must be at least 1"):
        statistics.loads(trace, threads=0)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize(
    "count",
    [
        statistics.loads,
        lambda trace: statistics.windowed_loads(trace, 10),
        statistics.transitions,
        statistics.coactivation,
    ],
)
@pytest.mark.parametrize(("experts", "bad"), [(16, 16), (16, 255), (255, 255), (300, 65535)])
@pytest.mark.parametrize("ragged", [False, True])
def test_an_id_out_of_range_is_named(monkeypatch, count, experts, bad, ragged):
    monkeypatch.setattr(chunks, "CHUNK_IDS", 40)
    trace = random_trace(5, experts=experts)
    valid_k = np.full(trace.routing.shape[:2], 4, np.uint8) if ragged else None
    trace = in_memory(trace.routing, experts, valid_k)
    trace.routing[2, 37, 3] = bad
    with pytest.raises(InputError) as caught:
        count(trace)
    assert caught.value.field == "[2, 37, 3]"
    assert "layer 2, token 37" in str(caught.value)
    assert f"found {bad}; allowed: 0 … {experts - 1}" in str(caught.value)
    if ragged:  # the same entry, not counted
        valid_k[2, 37] = 3
        count(trace)


def test_more_valid_entries_than_there_are():
    trace = random_trace(6, ragged=True)
    trace.valid_k[1, 20] = 5
    with pytest.raises(InputError, match="layer 1, token 20: more entries count") as caught:
        statistics.loads(trace)
    assert (caught.value.found, caught.value.allowed) == (5, "0 … 4")


@pytest.mark.parametrize(
    ("routing", "valid_k", "name"),
    [
        (np.full((1, 3, 2), -1), None, "routing"),
        (np.zeros((2, 3, 2), np.uint8), None, "routing"),
        (np.zeros((1, 3, 2), np.uint8), np.zeros((1, 4), np.uint8), "valid_k"),
        (np.zeros((1, 3, 2), np.uint8), np.full((1, 3), -1), "valid_k"),
    ],
)
def test_arrays_that_are_not_what_the_manifest_says(routing, valid_k, name):
    manifest = in_memory(np.zeros((1, 3, 2)), 4).manifest
    trace = Trace(manifest, routing, valid_k=valid_k)
    for count in (statistics.loads, statistics.transitions, statistics.coactivation):
        with pytest.raises(InputError, match="not what the manifest says") as caught:
            count(trace)
        assert caught.value.field == name


def test_windows_and_tables_beyond_reason():
    trace = random_trace(0)
    for window_tokens in (0, -1):
        with pytest.raises(UsageError, match="window_tokens must be at least 1"):
            statistics.windowed_loads(trace, window_tokens)
    assert statistics.windowed_loads(trace, 10**12).shape == (1, 3, 16)
    many = in_memory(np.zeros((2, 3, 1)), 65536)
    with pytest.raises(UsageError, match="fewer experts"):
        statistics.transitions(many)
    assert statistics.loads(many)[0, 0] == 3


def test_one_layer_has_no_transitions():
    trace = random_trace(0, layers=1)
    assert statistics.transitions(trace).shape == (0, 16, 16)


def test_the_sample_and_its_domains(every_size_compiled):
    trace = open_trace(sample_path())
    by_domain = statistics.domain_loads(trace)
    assert tuple(by_domain) == trace.manifest.domains
    loads = statistics.loads(trace)
    np.testing.assert_array_equal(sum(by_domain.values()), loads)
    of_html = (trace.requests()["domain"] == "html_docs").to_numpy()
    for layer in range(trace.manifest.layers):
        ids = np.asarray(trace.routing[layer])
        np.testing.assert_array_equal(np.bincount(ids.ravel(), minlength=32), loads[layer])
        np.testing.assert_array_equal(
            np.bincount(ids[of_html].ravel(), minlength=32), by_domain["html_docs"][layer]
        )


def test_without_requests_there_are_no_domains():
    assert statistics.domain_loads(random_trace(0)) == {}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pages_of_a_large_trace_are_given_back(tmp_path, monkeypatch, every_size_compiled):
    def resident_kib(file):
        total, inside = 0, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if line.startswith("Rss:"):
                total += int(line.split()[1]) if inside else 0
            elif not line.split()[0].endswith(":"):
                inside = line.endswith(str(file))
        return total

    rng = np.random.default_rng(0)
    routing = rng.integers(0, 64, (2, 2**21, 8)).astype(np.uint8)
    trace = write_trace(tmp_path / "t", routing, model="m", experts=64, source="test")
    file = tmp_path / "t" / "routing.npy"
    monkeypatch.setattr(chunks, "CHUNK_IDS", 2**20)
    kept = statistics.loads(trace)
    assert resident_kib(file) > 30_000
    monkeypatch.setattr(chunks, "RELEASE_BYTES", 2**20)
    np.testing.assert_array_equal(statistics.loads(trace), kept)
    assert resident_kib(file) < 2_000
    statistics.windowed_loads(trace, 4096)
    statistics.transitions(trace)
    assert resident_kib(file) < 2_000


def test_without_a_folder_for_machine_code(monkeypatch):
    calls = []

    def njit(*, nogil, cache=False):
        calls.append(cache)
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(compiled.numba, "njit", njit)
    assert compiled.compiled(len) is len
    assert calls == [True, False]


def test_importing_loads_neither_numba_nor_pandas():
    code = "import sys, moesim.traces.statistics as s; print({'numba','pandas'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "set()"


@pytest.mark.parametrize("bins", [200, 256, 300])
def test_bytes_are_counted_wherever_they_start(bins):
    values = np.random.default_rng(0).integers(0, 200, 64, dtype=np.uint8)
    for start in range(9):
        for size in range(0, 30):
            ids = values[start : start + size].reshape(-1, 1)
            expected = np.bincount(ids.ravel(), minlength=bins)
            np.testing.assert_array_equal(counting.count_ids(ids, bins), expected)
