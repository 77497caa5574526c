"""The compiled simulation against the plain one, step by step, in all modes."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.serving.coefficients import ServingCoefficients
from moesim.serving.deployment import Deployment, Pool, Transfer
from moesim.serving.engines import EnginePolicy
from moesim.serving.requests import Requests
from moesim.serving.simulation import simulate_requests

from .plain import Plain
from .tables import made_up_tables

STEP_INTEGERS = (
    "worker", "kind", "tokens", "decode_sequences", "context", "sampled", "sequences",
    "all_decode_sequences", "all_prefill_tokens", "running", "waiting", "kv_blocks",
)  # fmt: skip

policies = st.builds(
    EnginePolicy,
    name=st.just("test"),
    kernels=st.just("vllm"),
    order=st.sampled_from(["mixed", "prefill-first"]),
    token_budget=st.integers(4, 60),
    max_sequences=st.integers(1, 8),
    block_tokens=st.sampled_from([1, 3, 4, 16]),
    memory_share=st.just(0.9),
    chunked=st.booleans(),
    mixed_chunk=st.booleans(),
    growth_share=st.sampled_from([(0.0, 0.0), (0.7, 0.1), (1.0, 1.0)]),
    growth_steps=st.integers(1, 9),
    keeps_own=st.booleans(),
    own_clip=st.sampled_from([3, 2**30]),
    graph_sizes=st.sampled_from([(), (1, 2, 4), (3, 8)]),
)

coefficients = st.builds(
    ServingCoefficients,
    weights=st.sampled_from(
        [
            {},
            {"gemm": (1.5, 0.7), "decode_attention": (1.2, 0.9), "sampled": (2.0, 0.5),
             "chunk_attention": (3.0, 1.4)},
        ]
    ),
    step_host_s=st.sampled_from([(0.0, 0.0), (1e-3, 2e-3)]),
    sequence_host_s=st.sampled_from([0.0, 1e-5]),
    token_host_s=st.sampled_from([0.0, 1e-6]),
    kernel_host_s=st.sampled_from([0.0, 1e-7]),
)  # fmt: skip


@st.composite
def pools(draw, longest):
    lanes = draw(st.integers(1, 2))
    policy = draw(policies)
    draft = draw(st.integers(0, 3))
    least = -(-(longest + draft) // policy.block_tokens) * policy.block_tokens * lanes
    return Pool(
        made_up_tables(draw(st.integers(0, 5))),
        policy,
        kv_tokens=least + draw(st.integers(0, 120)),
        workers=draw(st.integers(1, 3)),
        groups=draw(st.integers(1, 3)),
        lanes=lanes,
        draft_tokens=draft,
        tokens_per_step=1.0 + draft * draw(st.sampled_from([0.0, 0.37, 1.0])),
        coefficients=draw(coefficients),
    )


@st.composite
def cases(draw):
    count = draw(st.integers(1, 24))
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    prompts = rng.integers(1, draw(st.sampled_from([2, 20, 70])) + 1, count)
    outputs = rng.integers(1, draw(st.sampled_from([2, 15, 40])) + 1, count)
    cached = rng.integers(0, prompts) * draw(st.sampled_from([0, 1]))
    longest = int((prompts + outputs).max())
    split = draw(st.booleans())
    deployment = Deployment(
        draw(pools(longest)),
        draw(pools(longest)) if split else None,
        Transfer(1e3, draw(st.sampled_from([0.0, 5e3])), 1e7, 1e-4) if split else None,
        draw(st.sampled_from(["round-robin", "least-loaded"])),
    )
    if draw(st.booleans()):
        return deployment, Requests(prompts, outputs, cached, None, draw(st.integers(1, 12)))
    gaps = rng.exponential(draw(st.sampled_from([1e-4, 2e-2, 0.5])), count)
    arrivals = np.cumsum(gaps * (rng.random(count) < 0.8))
    return deployment, Requests(prompts, outputs, cached, arrivals)


@given(cases())
@settings(max_examples=300, deadline=None)
def test_every_step_and_every_request_is_the_same(case):
    deployment, load = case
    fast = simulate_requests(deployment, load)
    plain = Plain(deployment, load, fast.duration_s)
    assert fast.steps == len(plain.steps)
    for name in STEP_INTEGERS:
        assert getattr(fast, name).tolist() == [step[name] for step in plain.steps], name
    for name in ("start_s", "duration_s"):
        expected = [step[name] for step in plain.steps]
        np.testing.assert_allclose(getattr(fast, name), expected, rtol=1e-9, atol=1e-12)
    for step, (first, count) in enumerate(zip(fast.chunk_first, fast.chunk_count, strict=True)):
        rows = slice(first, first + count)
        chunks = zip(
            fast.chunk_request[rows].tolist(),
            fast.chunk_new[rows].tolist(),
            fast.chunk_past[rows].tolist(),
            fast.chunk_last[rows].tolist(),
            strict=True,
        )
        assert list(chunks) == plain.steps[step]["chunks"]
    for name, of in (
        ("arrival_s", lambda r: r.arrival),
        ("admitted_s", lambda r: r.admitted),
        ("first_s", lambda r: r.times[0]),
        ("finish_s", lambda r: r.times[-1]),
        ("arrival_step", lambda r: r.arrival_step),
        ("first_step", lambda r: r.first_step),
        ("last_step", lambda r: r.last_step),
        ("preemptions", lambda r: r.preemptions),
    ):
        expected = [of(request) for request in plain.requests]
        np.testing.assert_allclose(getattr(fast, name), expected, rtol=1e-9, atol=1e-12)
    gaps = np.sort(np.repeat(fast.gap_s, fast.gap_count))
    np.testing.assert_allclose(gaps, plain.gaps(), rtol=1e-7, atol=1e-12)
