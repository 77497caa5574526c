"""Lengths, arrivals and recorded requests."""

from __future__ import annotations

import json

import numpy as np
import pytest

from moesim.errors import InputError, UsageError
from moesim.serving.loads import closed_loop, open_loop, parse_lengths
from moesim.serving.request_files import read_requests


def test_lengths():
    rng = np.random.default_rng(0)
    assert set(parse_lengths("constant").draw(70, 9, rng)) == {70}
    uniform = parse_lengths("uniform:0.8").draw(1024, 200_000, rng)
    assert (uniform.min(), uniform.max()) == (819, 1024)
    lognormal = parse_lengths("lognormal:0.5").draw(1000, 200_000, rng)
    assert lognormal.mean() == pytest.approx(1000, rel=0.01)
    assert lognormal.std() / lognormal.mean() == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize(
    "text", ["", "uniform", "uniform:2", "constant:1", "lognormal:x", "zipf:1"]
)
def test_lengths_that_are_none(text):
    with pytest.raises(UsageError, match="fix: pass constant"):
        parse_lengths(text)


def test_closed_loop_sends_ten_requests_per_slot():
    load = closed_loop(7, 100, 20, parse_lengths("uniform:0.8"), seed=1)
    assert (load.count, load.concurrency, load.arrival_s) == (70, 7, None)
    again = closed_loop(7, 100, 20, parse_lengths("uniform:0.8"), seed=1)
    assert (load.input_tokens == again.input_tokens).all()


@pytest.mark.parametrize(("burstiness", "variation"), [(1.0, 1.0), (0.25, 2.0), (float("inf"), 0)])
def test_arrivals(burstiness, variation):
    load = open_loop(
        5.0, 10, 2, parse_lengths("constant"), count=100_000, burstiness=burstiness, seed=2
    )
    gaps = np.diff(load.arrival_s)
    assert gaps.mean() == pytest.approx(0.2, rel=0.02)
    assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.02, abs=1e-6)


def test_azure(tmp_path):
    file = tmp_path / "trace.csv"
    file.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:04.0319600,396,109\n"
        "2023-11-16 18:17:03.9799600,4808,10\n"
        "2023-11-16 18:17:05.9799600,7,0\n"
    )
    load = read_requests(file)
    np.testing.assert_allclose(load.arrival_s, [0, 0.052, 2.0], atol=1e-6)
    assert load.input_tokens.tolist() == [4808, 396, 7]
    assert load.output_tokens.tolist() == [10, 109, 1]
    np.testing.assert_allclose(
        read_requests(file, most=2, speed=2).arrival_s, [0, 0.026], atol=1e-6
    )


def test_mooncake_counts_blocks_that_came_before(tmp_path):
    file = tmp_path / "trace.jsonl"
    rows = [
        {"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]},
        {"timestamp": 500, "input_length": 1600, "output_length": 6, "hash_ids": [0, 1, 3, 4]},
        {"timestamp": 1500, "input_length": 1024, "output_length": 7, "hash_ids": [0, 1]},
        {"timestamp": 1500, "input_length": 600, "output_length": 7, "hash_ids": [5, 1]},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    load = read_requests(file)
    assert load.arrival_s.tolist() == [0, 0.5, 1.5, 1.5]
    assert load.cached_tokens.tolist() == [0, 1024, 1023, 0]


def test_plain_csv(tmp_path):
    file = tmp_path / "requests.csv"
    file.write_text("arrival_s, input_tokens, output_tokens, cached_tokens\n3,10,4,8\n4.5,20,5,\n")
    load = read_requests(file)
    assert load.arrival_s.tolist() == [0, 1.5]
    assert load.cached_tokens.tolist() == [8, 0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1"),
        ("a,b\n1,2\n", "TIMESTAMP"),
        ("arrival_s,input_tokens,output_tokens\n", "no requests"),
        ("arrival_s,input_tokens,output_tokens\n1,x,2\n", "line 2: input_tokens"),
        ("arrival_s,input_tokens,output_tokens\n1,2\n", "line 2: output_tokens"),
        ("arrival_s,input_tokens,output_tokens\nnan,2,2\n", "line 2: arrival_s"),
        ("arrival_s,input_tokens,output_tokens\n1,-3,2\n", "line 2: input_tokens"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,2,2\n", "line 2: TIMESTAMP"),
        ('{"timestamp": 1, "input_length": 5}\n', "line 1: output_length"),
        ('{"timestamp": "x", "input_length": 5, "output_length": 1}\n', "line 1: timestamp"),
        ('{"timestamp": 1, "input_length": 5, "output_length": 1, "hash_ids": 3}\n', "hash_ids"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, text, says):
    file = tmp_path / "requests"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        read_requests(file)
    assert says in str(caught.value)
    assert "requests" in str(caught.value)
