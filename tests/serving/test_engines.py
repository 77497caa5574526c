"""Policies are documents with the engines' defaults."""

from __future__ import annotations

import pytest

from moesim.errors import UsageError
from moesim.serving.coefficients import NEUTRAL, ServingCoefficients
from moesim.serving.engines import ENGINES, EnginePolicy, find_engine

GIB = 2**30


@pytest.mark.parametrize("name", ENGINES)
def test_policies_are_documents_with_a_source(name):
    policy = ENGINES[name]
    assert EnginePolicy.parse(policy.to_dict()) == policy
    assert policy.source
    assert list(policy.graph_sizes) == sorted(set(policy.graph_sizes))
    assert policy.token_budget >= policy.max_sequences


@pytest.mark.parametrize(
    ("name", "memory_gib", "groups", "changes"),
    [
        ("vllm", 80, 1, {}),
        ("vllm", 48, 1, {"token_budget": 2048, "max_sequences": 256}),
        ("sglang", 141, 1, {}),
        ("sglang", 180, 1, {"token_budget": 16384}),
        # dp attention: the chunk is divided by its size, conservativeness is 0.3
        ("sglang", 141, 8, {"token_budget": 1024, "growth_share": (0.21, 0.21 * 0.14)}),
        ("trtllm", 180, 8, {}),
    ],
)
def test_defaults_depend_on_device_and_layout(name, memory_gib, groups, changes):
    found = find_engine(name, memory_bytes=memory_gib * GIB, groups=groups)
    for key, value in (ENGINES[name].model_dump() | changes).items():
        expected = pytest.approx(value) if key == "growth_share" else value
        assert getattr(found, key) == expected, key


def test_what_is_given_wins_over_defaults():
    found = find_engine("sglang", groups=8, token_budget=512, max_sequences=None)
    assert (found.token_budget, found.max_sequences) == (512, 2048)


def test_unknown_engines_and_values_are_refused():
    with pytest.raises(UsageError, match="choose from vllm"):
        find_engine("vlm")
    with pytest.raises(UsageError, match=r"--block-tokens: .*\nfix: pass another --block-tokens"):
        find_engine("vllm", block_tokens=0)


def test_coefficients_are_a_document():
    fit = ServingCoefficients(engine="vllm", weights={"gemm": (1.1, 0.9)})
    assert ServingCoefficients.parse(fit.to_dict()) == fit
    assert fit.weight("gemm") == (1.1, 0.9)
    assert fit.weight("experts") == NEUTRAL.weight("gemm") == (1.0, 1.0)
