"""Synthetic traces: the sampling law, the parameters, determinism."""

import itertools
import json
import math
import sys
import tracemalloc

import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from moesim.cli.console import run
from moesim.cli.trace_synth import synth
from moesim.errors import InputError
from moesim.safe_io import map_npy, npy_writer
from moesim.traces.generate import generate, generate_counts, keep_probability
from moesim.traces.synthetic_measures import (
    adjacent_overlap,
    domain_distance,
    interlayer_mutual_information_bits,
)
from moesim.traces.synthetic_sampler import (
    alias_tables,
    geometric_ratio,
    sample_experts,
    sample_topics,
    stream_key,
)
from moesim.traces.synthetic_spec import GeneratorSpec
from moesim.traces.synthetic_tables import balanced_preference, layer_tables

BASE = {"layers": 3, "experts": 32, "top_k": 4, "tokens": 8192, "request_tokens": 128}
SAFE = 1e-4  # p-value below which a fixed seed's statistic counts as wrong


def make(tmp_path, seed=0, gates=False, chunk_tokens=65_536, name="trace", **parameters):
    spec = GeneratorSpec(**(BASE | parameters))
    folder = tmp_path / name
    return generate(spec, folder, seed=seed, gates=gates, chunk_tokens=chunk_tokens)


def plackett_luce(probability, top_k, groups=1, groups_per_token=1):
    """Probability of every ordered choice, by enumeration."""
    size = len(probability) // groups
    law = {}
    for choice in itertools.permutations(range(len(probability)), top_k):
        chance, taken = 1.0, []
        for e in choice:
            used = {x // size for x in taken}
            allowed = [
                x
                for x in range(len(probability))
                if x not in taken and (len(used) < groups_per_token or x // size in used)
            ]
            chance *= probability[e] / sum(probability[x] for x in allowed) if e in allowed else 0
            taken.append(e)
        if chance:
            law[choice] = chance
    assert math.isclose(sum(law.values()), 1)
    return law


def p_value(routing, law):
    """Chi-square test of rows [N, K] against the law of ordered choices."""
    seen = dict.fromkeys(law, 0)
    for row in routing.tolist():
        seen[tuple(row)] += 1  # KeyError: a choice that cannot be
    expected = np.array(list(law.values())) * len(routing)
    counts = np.array(list(seen.values()), dtype=float)
    # The chi-square approximation needs some five expected in every bin: pool what is rarer.
    rare = expected < 5
    counts, expected = (
        np.append(values[~rare], values[rare].sum()) for values in (counts, expected)
    )
    if expected[-1] < 5:
        assert counts[-1] < 30
        counts, expected = counts[:-1], expected[:-1]
    return stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue


def draw(probability, top_k, tokens, *, keep=0.0, groups=1, groups_per_token=1, gates=False):
    """Experts of one long request in one context."""
    probability = np.array([probability], dtype=np.float64)
    threshold, alias = alias_tables(probability)
    routing = np.zeros((tokens, top_k), dtype=np.uint8)
    weights = np.zeros((tokens if gates else 0, top_k), dtype=np.float32)
    continues = np.ones(tokens, dtype=bool)
    continues[0] = False
    sample_experts(
        0,
        np.zeros(tokens, dtype=np.uint16),
        continues,
        1,
        probability,
        threshold,
        alias,
        probability.reshape(1, groups, -1).sum(axis=2),
        groups_per_token,
        keep,
        stream_key(0, 7),
        np.zeros(top_k, dtype=np.int64),
        np.zeros(top_k),
        routing,
        weights,
        np.zeros((1, probability.shape[1]), dtype=np.int64),
    )
    return routing, weights


SKEWED = [0.4, 0.3, 0.15, 0.1, 0.04, 0.01]


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_choices_follow_plackett_luce(top_k):
    routing, _ = draw(SKEWED, top_k, 40_000)
    assert p_value(routing, plackett_luce(SKEWED, top_k)) > SAFE


def test_rare_leftovers_are_drawn_by_their_weight():
    # After the first choice only 2 % of the probability is left: the scanning branch.
    probability = [0.98, 0.01, 0.006, 0.004]
    routing, _ = draw(probability, 3, 40_000)
    assert p_value(routing, plackett_luce(probability, 3)) > SAFE


def test_all_experts_can_be_chosen():
    routing, _ = draw(SKEWED, 6, 2_000)
    assert (np.sort(routing, axis=1) == np.arange(6)).all()


@pytest.mark.parametrize("groups_per_token", [1, 2])
def test_group_limit_follows_its_law(groups_per_token):
    routing, _ = draw(SKEWED, 2, 40_000, groups=3, groups_per_token=groups_per_token)
    law = plackett_luce(SKEWED, 2, 3, groups_per_token)
    assert p_value(routing, law) > SAFE


@pytest.mark.parametrize("limit", [{}, {"groups": 2, "groups_per_token": 1}])
def test_reuse_leaves_the_law_of_a_token_unchanged(limit):
    routing, _ = draw(SKEWED, 3, 400_000, keep=0.7, **limit)
    overlap = adjacent_overlap(routing[None], np.arange(len(routing)) == 0, 6)
    fresh, _ = draw(SKEWED, 3, 20_000, **limit)
    assert overlap > 0.1 + adjacent_overlap(fresh[None], np.arange(len(fresh)) == 0, 6)
    # Tokens 20 apart share a kept choice with probability 0.7 ** 20 < 0.1 %.
    law = plackett_luce(SKEWED, 3, **limit)
    assert p_value(routing[::20], law) > SAFE


@pytest.mark.parametrize("keep", [0.0, 0.8])
def test_gates_are_the_softmax_of_perturbed_logits(keep):
    """Against a direct simulation of the router: logits + Gumbel noise, top-k, softmax."""
    routing, gates = draw(SKEWED, 3, 200_000, keep=keep, gates=True)
    assert np.allclose(gates.sum(axis=1), 1, atol=1e-5)
    assert (np.diff(gates, axis=1) <= 0).all()
    rng = np.random.default_rng(1)
    logits = np.log(SKEWED) + rng.gumbel(size=(20_000, 6))
    order = np.argsort(-logits, axis=1)[:, :3]
    chosen = np.take_along_axis(logits, order, axis=1)
    expected = np.exp(chosen) / np.exp(chosen).sum(axis=1, keepdims=True)
    for column in range(3):
        test = stats.ks_2samp(gates[::40, column], expected[:, column])
        assert test.pvalue > SAFE
    # The joint law, not only the margins: gate of expert 0 where it comes first.
    ours, theirs = routing[::40, 0] == 0, order[:, 0] == 0
    assert stats.ks_2samp(gates[::40][ours, 0], expected[theirs, 0]).pvalue > SAFE


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20).filter(lambda w: sum(w) > 1e-3))
@settings(deadline=None, derandomize=True, max_examples=50)
def test_alias_tables_hold_the_probabilities(weights):
    probability = np.array([weights]) / sum(weights)
    threshold, alias = alias_tables(probability)
    size = probability.shape[1]
    kept = threshold[0] / 2**32
    rebuilt = np.bincount(alias[0], 1 - kept, size) + kept
    assert np.allclose(rebuilt / size, probability[0], atol=1e-8)


@given(st.integers(1, 6), st.integers(2, 20), st.floats(0.05, 2), st.floats(0, 2))
@settings(deadline=None, derandomize=True, max_examples=40)
def test_preferences_are_balanced(kinds, experts, shape, skew):
    popularity = np.arange(1, experts + 1) ** -skew
    popularity /= popularity.sum()
    preference = balanced_preference(np.random.default_rng(0), popularity, kinds, shape)
    assert (preference > 0).all()
    assert np.allclose(preference @ popularity, 1)
    assert np.allclose(preference.mean(axis=0), 1, atol=1e-3)


def test_tables_average_to_the_popularity():
    spec = GeneratorSpec(**BASE, skew=1, affinity=0.7)
    with_topics = layer_tables(spec, 0, 1).probability
    plain = layer_tables(GeneratorSpec(**BASE, skew=1), 0, 1).probability
    assert with_topics.shape == (8, 32)
    assert plain.shape == (1, 32)
    assert np.allclose(with_topics.mean(axis=0), plain[0], atol=1e-6)
    assert np.sort(plain[0])[::-1][:3] * 6 == pytest.approx(plain.max() * np.array([6, 3, 2]))


def test_exponential_popularity():
    spec = GeneratorSpec(**BASE, skew=0.3, popularity="exponential")
    plain = np.sort(layer_tables(spec, 0, 1).probability[0])[::-1]
    assert plain[1:] / plain[:-1] == pytest.approx(np.full(31, math.exp(-0.3)))


@given(st.integers(1, 60), st.floats(0, 1))
@settings(deadline=None, derandomize=True, max_examples=60)
def test_geometric_weights_have_the_effective_number(topics, share):
    effective = 1 + share * (topics - 1)
    ratio = geometric_ratio(topics, effective)
    weights = ratio ** np.arange(topics)
    assert weights.sum() ** 2 / (weights**2).sum() == pytest.approx(effective, rel=1e-6)


def topics_of(requests, length, topics, effective, keep=0.0):
    starts = np.arange(0, requests * length, length)
    ratio = geometric_ratio(topics, effective)
    made, _ = sample_topics(
        starts, np.zeros_like(starts), topics, ratio, keep, stream_key(0, 2), requests * length
    )
    return made.reshape(requests, length)


def test_a_request_has_a_few_topics_and_all_have_all():
    made = topics_of(400, 500, 8, 2.5)
    counts = np.stack([np.bincount(row, minlength=8) for row in made])
    # The sum of squared shares of n draws exceeds that of the shares p by (1 - Σp²) / n.
    square = ((counts / 500) ** 2).sum(axis=1).mean()
    assert square == pytest.approx(0.4 + 0.6 / 500, rel=0.02)
    ranked = np.sort(counts, axis=1)[:, ::-1].mean(axis=0) / 500
    ratio = geometric_ratio(8, 2.5)
    assert ranked[:4] == pytest.approx(
        ratio ** np.arange(4) * (1 - ratio) / (1 - ratio**8), rel=0.1
    )
    # Over all requests every topic is as frequent as any other: 400 rankings, each at random.
    frequency = counts.sum(axis=0) / counts.sum()
    assert np.abs(frequency - 1 / 8).max() < 5 * math.sqrt(0.4 / 8 / 400)


def test_one_topic_per_request_and_all_topics_alike():
    assert (np.ptp(topics_of(50, 40, 8, 1), axis=1) == 0).all()
    alike = np.bincount(topics_of(50, 400, 8, 8).ravel())
    assert stats.chisquare(alike).pvalue > SAFE


def test_request_topics_make_a_request_come_back_to_its_experts(tmp_path):
    def distinct(request_topics):
        made = make(
            tmp_path,
            affinity=0.95,
            request_topics=request_topics,
            length_spread=0,
            name=str(request_topics),
        )
        blocks = made.trace.routing.reshape(3, 64, 128 * 4)
        return np.mean([len(np.unique(block)) for layer in blocks for block in layer])

    few, more, all_topics = map(distinct, (1, 2, 0))
    assert few + 2 < more < all_topics


def test_request_topics_leave_loads_and_affinity(tmp_path):
    same = {"skew": 0.8, "affinity": 0.8, "tokens": 60_000, "request_tokens": 4}
    none = make(tmp_path, name="a", **same).measured
    some = make(tmp_path, name="b", request_topics=2, **same).measured
    for key, tolerance in (("gini", 0.02), ("interlayer_mutual_information_bits", 0.03)):
        assert some[key] == pytest.approx(none[key], abs=tolerance)


def test_keep_probability_keeps_the_mean():
    for mean in (0, 0.01, 0.5, 1):
        q = keep_probability(8, mean)
        assert np.mean(q ** np.arange(1, 9)) == pytest.approx(mean, abs=1e-9)


def test_nothing_asked_nothing_there(tmp_path):
    made = make(tmp_path, tokens=20_000, domains=3)
    # Each expert's count is a sum of Bernoulli trials without replacement: variance × (E-K)/(E-1).
    counts = made.loads
    mean = 20_000 * 4 / 32
    statistic = ((counts - mean) ** 2 / mean).sum(axis=1) * 31 / 28
    assert (stats.chi2.sf(statistic, 31) > SAFE).all()
    # A token's set of experts: all 4 · 3 / (32 · 31) pairs alike.
    routing = made.trace.routing[0].astype(int)
    used = np.zeros((20_000, 32))
    np.put_along_axis(used, routing, 1, axis=1)
    pairs = (used.T @ used)[np.triu_indices(32, 1)]
    expected = 20_000 * 4 * 3 / (32 * 31)
    assert abs(((pairs - expected) ** 2 / expected).mean() - 1) < 0.2
    # Adjacent tokens share K/E of their experts by chance.
    assert made.measured["adjacent_overlap"] == pytest.approx(4 / 32, abs=0.004)
    assert abs(made.measured["interlayer_mutual_information_bits"]) < 0.002
    # Expected distance of two samples of n = 26,667 draws: about sqrt(E / (π n)).
    assert made.measured["domain_distance"] == pytest.approx(
        math.sqrt(32 / (math.pi * 26_667)), rel=0.15
    )


def rises(values, *, by):
    return all(b > a + by for a, b in itertools.pairwise(values))


def test_skew_raises_imbalance(tmp_path):
    made = [make(tmp_path, skew=s, name=str(s)).measured for s in (0, 0.4, 0.8, 1.5)]
    assert rises([m["gini"] for m in made], by=0.1)
    assert rises([m["max_over_mean"] for m in made], by=0.5)


def test_affinity_raises_mutual_information(tmp_path):
    made = [make(tmp_path, affinity=a, name=str(a)).measured for a in (0, 0.3, 0.6, 1)]
    assert rises([m["interlayer_mutual_information_bits"] for m in made], by=0.003)
    assert made[-1]["interlayer_mutual_information_bits"] > 0.3


def test_affinity_concentrates_transitions_and_coactivation(tmp_path):
    def concentration(trace, same_layer):
        first, second = trace.routing[0].astype(int), trace.routing[0 if same_layer else 1]
        pairs = np.bincount(
            (first[:, :1] * 32 + second[:, -1:]).ravel(), minlength=32 * 32
        ).reshape(32, 32)
        return (pairs.max(axis=1) / pairs.sum(axis=1)).mean()

    none, some = (make(tmp_path, affinity=a, name=str(a)).trace for a in (0, 0.9))
    assert concentration(some, False) > 1.5 * concentration(none, False)
    assert concentration(some, True) > 1.5 * concentration(none, True)


def test_domain_shift_raises_distance_between_domains(tmp_path):
    made = [
        make(tmp_path, domains=4, domain_shift=d, name=str(d)).measured for d in (0, 0.3, 0.6, 1)
    ]
    assert rises([m["domain_distance"] for m in made], by=0.05)


@pytest.mark.parametrize("affinity", [0, 0.9])
def test_locality_raises_adjacent_overlap(tmp_path, affinity):
    made = [
        make(tmp_path, affinity=affinity, locality=x, reuse=0.5, name=str(x)).measured
        for x in (0, 0.3, 0.6, 0.9)
    ]
    assert rises([m["adjacent_overlap"] for m in made], by=0.05)


def test_locality_changes_neither_loads_nor_affinity(tmp_path):
    same = {"skew": 0.8, "affinity": 0.8, "tokens": 30_000}
    none = make(tmp_path, name="a", **same).measured
    some = make(tmp_path, name="b", locality=0.6, reuse=0.5, **same).measured
    for key, tolerance in (("gini", 0.02), ("interlayer_mutual_information_bits", 0.03)):
        assert some[key] == pytest.approx(none[key], abs=tolerance)


def test_requests_do_not_see_each_other(tmp_path):
    # With full locality all tokens of a request are alike, and different requests are not.
    made = make(tmp_path, locality=1, reuse=1, request_tokens=100, length_spread=0)
    routing = made.trace.routing[:, :8100].reshape(3, 81, 100, 4)
    assert (routing == routing[:, :, :1]).all()
    assert len(np.unique(routing[0, :, 0], axis=0)) > 70


@pytest.mark.parametrize("chunk_tokens", [1, 7, 1000])
def test_same_seed_same_bytes_however_it_is_cut(tmp_path, chunk_tokens):
    parameters = {
        "tokens": 700,
        "skew": 1,
        "affinity": 0.5,
        "locality": 0.8,
        "request_topics": 2.5,
        "groups": 4,
        "groups_per_token": 2,
    }
    whole = make(tmp_path, gates=True, name="whole", **parameters)
    cut = make(tmp_path, gates=True, name="cut", chunk_tokens=chunk_tokens, **parameters)
    other = make(tmp_path, seed=1, gates=True, name="other", **parameters)
    bare = make(tmp_path, name="bare", **parameters)
    names = ("routing.npy", "gates.npy")
    hashes, cut_hashes = (m.trace.manifest.sha256 for m in (whole, cut))
    assert [hashes[n] for n in names] == [cut_hashes[n] for n in names]
    assert other.trace.sha256 != whole.trace.sha256
    assert bare.trace.sha256 == whole.trace.sha256
    assert not (tmp_path / "bare" / "gates.npy").exists()


def test_more_tokens_begin_with_the_same_tokens(tmp_path):
    same = {"locality": 0.5, "affinity": 0.5, "request_topics": 2}
    short = make(tmp_path, tokens=500, name="short", **same).trace.routing
    long = make(tmp_path, tokens=900, name="long", **same).trace.routing
    assert (long[:, :500] == short).all()


def test_bundle_is_sound(tmp_path):
    made = make(tmp_path, skew=1, gates=True, experts=300, top_k=5, domains=2)
    trace = made.trace
    assert trace.routing.dtype == np.uint16
    ordered = np.sort(trace.routing, axis=2)
    assert (ordered[..., 1:] != ordered[..., :-1]).all()
    assert trace.routing.max() < 300
    for layer in range(3):
        assert (np.bincount(trace.routing[layer].ravel(), minlength=300) == made.loads[layer]).all()
    assert trace.gates.dtype == np.float16
    assert np.allclose(trace.gates.astype(float).sum(axis=2), 1, atol=5e-3)
    import hashlib

    for name, digest in trace.manifest.sha256.items():
        assert hashlib.sha256((trace.path / name).read_bytes()).hexdigest() == digest
    stated = json.loads((trace.path / "manifest.json").read_text())
    again = {key: value for key, value in stated["generator"].items() if key != "seed"}
    assert GeneratorSpec.parse(again) == GeneratorSpec(
        **BASE | {"experts": 300, "top_k": 5, "skew": 1, "domains": 2}
    )


def test_requests_say_who_asked(tmp_path):
    made = make(
        tmp_path,
        tokens=1000,
        domains=3,
        domain_shift=0.1,
        request_tokens=90,
        length_spread=0,
        prompt_fraction=0.4,
    )
    frame = made.trace.requests()
    assert list(frame.columns) == ["request", "position", "phase", "domain"]
    token = np.arange(1000)
    assert (frame["request"] == token // 90).all()
    assert (frame["position"] == token % 90).all()
    # The last request is cut to 10 tokens, and so is its prompt.
    prompt = np.where(token < 990, 36, 4)
    assert ((frame["phase"] == "prefill") == (frame["position"] < prompt)).all()
    assert (frame["domain"] == [f"domain-{r % 3}" for r in token // 90]).all()
    assert made.trace.manifest.domains == ("domain-0", "domain-1", "domain-2")


def test_lengths_spread(tmp_path):
    frame = make(tmp_path, request_tokens=100, length_spread=0.5).trace.requests()
    lengths = frame.groupby("request").size()[:-1]
    assert lengths.min() >= 50
    assert lengths.max() <= 150
    assert lengths.std() > 15


def test_without_pyarrow_there_are_no_requests(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    made = make(tmp_path, tokens=100)
    assert made.trace.requests() is None
    assert set(made.trace.manifest.sha256) == {"routing.npy"}


def test_counts_are_those_of_the_trace(tmp_path):
    spec = GeneratorSpec(**BASE, skew=1, domains=2, domain_shift=0.5)
    counts = generate_counts(spec, tmp_path / "counts", seed=3)
    made = generate(spec, tmp_path / "trace", seed=3)
    assert (np.load(counts.path) == made.loads).all()
    assert counts.loads.dtype == np.int64
    assert counts.measured["gini"] == made.measured["gini"]
    assert [path.name for path in (tmp_path / "counts").iterdir()] == ["counts.npy"]


def test_memory_does_not_grow_with_the_layers(tmp_path):
    spec = GeneratorSpec(layers=24, experts=64, top_k=8, tokens=150_000, skew=1)
    generate(GeneratorSpec(**BASE), tmp_path / "warm")
    tracemalloc.start()
    try:
        made = generate(spec, tmp_path / "big", chunk_tokens=10_000)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert made.trace.routing.nbytes == 28_800_000
    assert peak_bytes < 16_000_000


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"top_k": 33}, "top_k"),
        ({"experts": 0}, "experts"),
        ({"skew": -1}, "skew"),
        ({"skew": math.nan}, "skew"),
        ({"affinity": 1.1}, "affinity"),
        ({"locality": 2}, "locality"),
        ({"request_topics": 0.5}, "request_topics"),
        ({"popularity": "flat"}, "popularity"),
        ({"domain_shift": 0.5}, "domain_shift"),
        ({"groups": 5}, "groups"),
        ({"groups": 16, "groups_per_token": 1}, "groups_per_token"),
        ({"groups": 2, "groups_per_token": 3}, "groups_per_token"),
        ({"moe_layers": [1]}, "moe_layers"),
        ({"domains": 300, "topics": 300, "affinity": 0.1}, "topics"),
        ({"colour": 1}, "colour"),
    ],
)
def test_bad_parameters_are_named(parameters, field):
    with pytest.raises(InputError) as caught:
        GeneratorSpec.parse(BASE | parameters)
    assert caught.value.field == field


def test_a_folder_with_a_bundle_is_left_alone(tmp_path):
    make(tmp_path, tokens=50)
    before = (tmp_path / "trace" / "routing.npy").read_bytes()
    with pytest.raises(InputError, match="holds a trace already"):
        make(tmp_path, tokens=60)
    assert (tmp_path / "trace" / "routing.npy").read_bytes() == before


def test_an_interrupted_run_leaves_no_trace(tmp_path):
    def stop(layer):
        if layer == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(GeneratorSpec(**BASE), tmp_path / "trace", on_layer=stop)
    assert list((tmp_path / "trace").iterdir()) == []


def test_measures_of_known_traces():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 8, (1, 4000, 1))
    mapped = (first * 3) % 8  # a permutation of the experts: the next layer is certain
    bits = interlayer_mutual_information_bits(np.concatenate([first, mapped]), 8, rng)
    assert bits == pytest.approx(3, abs=0.03)
    routing = np.array([[[0, 1], [1, 2], [3, 4], [4, 3]]])
    assert adjacent_overlap(routing, np.array([1, 0, 0, 0], dtype=bool), 5) == pytest.approx(0.5)
    assert adjacent_overlap(routing, np.array([1, 0, 0, 1], dtype=bool), 5) == pytest.approx(0.25)
    assert domain_distance(np.array([[[4, 0], [1, 3]]])) == pytest.approx(0.75)
    assert domain_distance(np.array([[[4, 0], [0, 0]]])) == 0


def test_npy_writer_writes_whole_files_or_none(tmp_path):
    blocks = np.arange(24, dtype=np.float16).reshape(2, 3, 4)
    with npy_writer(tmp_path / "a.npy", (2, 3, 4), np.dtype(np.float16)) as writer:
        for block in blocks:
            writer.append(block)
    assert (map_npy(tmp_path / "a.npy") == blocks).all()
    with (
        pytest.raises(ValueError, match="never written"),
        npy_writer(tmp_path / "b.npy", (3,), np.dtype(np.uint8)) as writer,
    ):
        writer.append(np.zeros(2, dtype=np.uint8))
    with (
        pytest.raises(ValueError, match="do not fit"),
        npy_writer(tmp_path / "b.npy", (3,), np.dtype(np.uint8)) as writer,
    ):
        writer.append(np.zeros(3, dtype=np.int8))
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


@pytest.fixture
def app():
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(synth)
    return app


def test_command_writes_counts(app, tmp_path, capsys):
    words = ["--layers", "58", "--experts", "256", "--top-k", "8", "--tokens", "300", "--skew", "1"]
    assert run(app, [*words, "--counts-only", "--seed", "4", "--out", str(tmp_path)]) == 0
    counts = np.load(tmp_path / "counts.npy")
    assert counts.shape == (58, 256)
    assert (counts.sum(axis=1) == 2400).all()
    assert "max_over_mean" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--layers", "3", "--out", "x"], 2, "--experts, --top-k"),
        (["--like", "mixtral-8x7b"], 2, "--out"),
        (["--like", "nothing", "--out", "x"], 2, "mixtral-8x7b"),
        (["--like", "mixtral-8x7b", "--out", "x", "--counts-only", "--gates"], 2, "--gates"),
        (["--like", "mixtral-8x7b", "--out", "x", "--tokens", "9", "--sequences", "1"], 2, "both"),
        (["--like", "mixtral-8x7b", "--out", "x", "--sequences", "0"], 4, "tokens"),
        (["--like", "mixtral-8x7b", "--out", "x", "--skew", "-1"], 4, "skew"),
        (["--like", "mixtral-8x7b", "--out", "x", "--top-k", "9"], 4, "top_k"),
    ],
)
def test_command_refuses(app, capsys, tmp_path, monkeypatch, words, code, message):
    monkeypatch.chdir(tmp_path)
    assert run(app, words) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []
