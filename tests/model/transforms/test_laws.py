"""What holds of every transform and of any model: counts add up, identities, inverses, order."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import InputError, UsageError
from moesim.model import ModelSpec, load_model
from moesim.model.transforms import TRANSFORMS, parse_transform, transform_model
from moesim.model.transforms.copies import (
    copies_of_gates,
    copies_with_mean,
    copies_with_null_experts,
)
from moesim.model.transforms.figures import token_flops

EXAMPLES = {
    "fine-grained": "fine-grained:2,1",
    "coarse-grained": "coarse-grained:2",
    "shared-experts": "shared-experts:1",
    "null-experts": "null-experts:4",
    "top-p": "top-p:1.5",
    "chain-of-experts": "chain-of-experts:2",
    "cross-layer": "cross-layer:2",
    "shared-router": "shared-router",
    "cartesian": "cartesian",
    "groups": "groups:2",
    "node-limit": "node-limit:4,2",
    "compressed-experts": "compressed-experts:1",
    "self-contrast": "self-contrast:1",
    "latent": "latent:64",
    "mobe": "mobe:2",
    "ternary": "ternary",
    "weights": "weights:experts=4,mixers=8,group=128",
    "prune": "prune:4",
    "merge": "merge:0.5",
    "adapters": "adapters:2,1.5",
    "masked-glu": "masked-glu",
    "attention-experts": "attention-experts:0.75",
    "hybrid": "hybrid:2",
    "recursion": "recursion:2,1.5",
    "skip": "skip:0.5",
    "hidden-routing": "hidden-routing:0.5",
    "carve": "carve:8,2,4",
}
NEEDS_DENSE = {"carve"}


@st.composite
def models(draw, experts=(8, 16, 32)):
    layers = 2 * draw(st.integers(1, 6))
    moe = draw(st.sets(st.integers(0, layers - 1), min_size=2).map(sorted))
    shared = draw(st.integers(0, 2))
    width = 64 * draw(st.integers(1, 8))
    return ModelSpec.parse(
        {
            "schema": "moesim.model/1",
            "name": "drawn",
            "architecture": "test",
            "layers": layers,
            "hidden_size": 128 * draw(st.integers(1, 8)),
            "vocabulary_size": 1000,
            "moe_layers": moe,
            "experts": draw(st.sampled_from(experts)),
            "top_k": draw(st.sampled_from([2, 4])),
            "expert_width": width,
            "shared_experts": shared,
            "shared_expert_width": shared * width,
            "dense_layers": [layer for layer in range(layers) if layer not in moe],
            "dense_width": 512,
            "mixers": [
                {
                    "kind": "gqa", "layers": list(range(layers)), "heads": 8, "kv_heads": 2,
                    "head_dim": 32, "value_head_dim": 32,
                }
            ],
        }
    )  # fmt: skip


def test_every_transform_has_an_example():
    assert set(EXAMPLES) == set(TRANSFORMS)


@pytest.mark.parametrize("name", sorted(set(EXAMPLES) - NEEDS_DENSE))
@settings(max_examples=5, deadline=None)
@given(model=models())
def test_counts_add_up(name, model):
    changed = transform_model(model, [EXAMPLES[name]])
    counts = changed.parameters
    parts = counts.to_dict()
    whole = sum(parts.values()) - parts["routed_experts_active"] - parts["skipped"]
    assert counts.total == whole == changed.total_parameters
    if name != "mobe":  # its active parameters are bases mixed anew for every expert
        assert 0 < changed.active_parameters <= changed.total_parameters
    assert counts.routed_experts >= 0
    assert counts.skipped >= 0
    assert changed.expert_weight_bytes == changed.expert_parameters * changed.expert_bits / 8
    assert changed.variant.applied == (EXAMPLES[name],)
    assert token_flops(changed) > 0
    # What `model show --json` prints is read back.
    assert ModelSpec.parse(changed.to_dict()) == changed


@settings(max_examples=20, deadline=None)
@given(model=models())
def test_identity_and_inverse(model):
    assert transform_model(model, []) == model
    for identity in (
        f"prune:experts={model.experts}",
        "skip:0",
        "fine-grained:1",
        f"top-p:{model.top_k}",
        "attention-experts:1",
    ):
        same = transform_model(model, [identity])
        assert same.parameters == model.parameters, identity
        assert token_flops(same) == pytest.approx(token_flops(model), rel=1e-9)
    again = transform_model(model, ["fine-grained:2", "coarse-grained:2"])
    for field in ("experts", "top_k", "expert_width", "shared_experts", "parameters"):
        assert getattr(again, field) == getattr(model, field)


@settings(max_examples=20, deadline=None)
@given(model=models())
def test_independent_transforms_commute(model):
    one = ["weights:experts=4", "skip:0.25", "attention-experts:0.5", "prune:4"]
    first, second = transform_model(model, one), transform_model(model, one[::-1])
    assert first.parameters == second.parameters
    assert first.expert_bits == second.expert_bits
    assert token_flops(first) == token_flops(second)


@settings(max_examples=20, deadline=None)
@given(model=models(), parts=st.sampled_from([2, 4]))
def test_fine_grained_keeps_experts_flops_and_bytes(model, parts):
    changed = transform_model(model, [f"fine-grained:{parts}"])
    before, after = model.parameters, changed.parameters
    assert after.routed_experts == before.routed_experts
    assert after.routed_experts_active == before.routed_experts_active
    assert after.router == parts * before.router


@settings(max_examples=20, deadline=None)
@given(model=models(), every=st.integers(2, 4))
def test_hybrid_keeps_as_much_cache_as_attention(model, every):
    if every > model.layers:
        return
    changed = transform_model(model, [f"hybrid:{every}"])
    kept = len(range(every // 2, model.layers, every))
    assert changed.kv_cache_elements_per_token == pytest.approx(
        model.kv_cache_elements_per_token * kept / model.layers
    )


def test_order_that_matters_is_refused():
    model = load_model("mixtral-8x7b")
    transform_model(model, ["fine-grained:2", "mobe:4"])
    with pytest.raises(InputError, match="must be changed before"):
        transform_model(model, ["mobe:4", "fine-grained:2"])
    with pytest.raises(InputError, match="has decided this"):
        transform_model(model, ["null-experts:4", "top-p:1.5"])
    with pytest.raises(InputError, match="take away experts before"):
        transform_model(model, ["null-experts:4", "prune:6"])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 32), st.integers(0, 32), st.data())
def test_null_experts_take_their_share(experts, null, data):
    top_k = data.draw(st.integers(1, experts))
    copies = copies_with_null_experts(experts, null, top_k)
    assert sum(copies) == pytest.approx(1)
    mean = sum(k * p for k, p in enumerate(copies))
    assert mean == pytest.approx(top_k * experts / (experts + null))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 16), st.floats(0, 1))
def test_copies_have_the_stated_mean(most, share):
    mean = 1 + share * (most - 1)
    copies = copies_with_mean(mean, 1, most)
    assert sum(copies) == pytest.approx(1)
    assert copies[0] == 0
    assert sum(k * p for k, p in enumerate(copies)) == pytest.approx(mean, abs=1e-3)


def test_top_p_counts_the_smallest_sets():
    gates = [[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.1, 0.1, 0.8]]
    assert copies_of_gates(gates, 0.4).tolist() == [1, 1, 1]
    assert copies_of_gates(gates, 0.6).tolist() == [2, 2, 1]
    assert copies_of_gates(gates, 0.95).tolist() == [3, 3, 3]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prunes:4", "near: prune"),
        ("prune", "experts: missing"),
        ("prune:many", "a whole number of 2 … 65535"),
        ("prune:4,2,1", "too many parameters"),
        ("prune:4,experts=8", "given twice"),
        ("prune:nan", "out of range"),
        ("weights:gates=4", "unknown parameter"),
        ("skip:nan", "out of range"),
        ("hybrid:8,rwkv", "mamba, linear"),
        ("", "names no transform"),
        ("shared-router:1", "too many parameters"),
    ],
)
def test_bad_texts(text, words):
    with pytest.raises(UsageError, match=words):
        parse_transform(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prune:64", "more experts than there are"),
        ("prune:4,8", "cannot choose more experts"),
        ("groups:3", "routing groups"),
        ("compressed-experts:3", "more full experts"),
        ("recursion:5", "divide into passes"),
        ("recursion:4,8", "deeper than"),
        ("carve:8,2,4", "a dense model is needed"),
        ("fine-grained:5", "does not divide"),
        ("latent:4096", "no latent"),
        ("top-p:3", "out of reach"),
        ("weights", "no component named"),
        ("hybrid:64", "no layer would keep"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(text, words):
    with pytest.raises(InputError, match=words) as error:
        transform_model(load_model("mixtral-8x7b"), [text])
    assert f"--transform {text}" in str(error.value)
    assert "fix: " in str(error.value)
