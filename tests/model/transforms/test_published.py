"""Counts that papers print, against documents before and after their design."""

import pytest

from moesim.model import load_model
from moesim.model.transforms import figures as f
from moesim.model.transforms import transform_model

GIB = 2**30

MOBE = {  # arXiv 2508.05257, table 1: parameters after compression
    "qwen3-235b-a22b": (32, -0.24),
    "qwen3-30b-a3b": (32, -0.24),
    "deepseek-v3": (64, -0.30),
    "kimi-k2": (128, -0.24),
}


@pytest.mark.parametrize("name", MOBE)
def test_mobe_parameters(name):
    bases, published = MOBE[name]
    kept = 1 + f.parameter_change(load_model(name), [f"mobe:{bases}"])
    assert kept == pytest.approx(1 + published, rel=0.02)


@pytest.mark.parametrize("name", MOBE)
def test_mobe_ratio_of_the_paper(name):
    """Section 3: n·d·p + 2·n·p·r + 2·m·r·d parameters per layer, with r = p."""
    model, bases = load_model(name), MOBE[name][0]
    d, p, n = model.hidden_size, model.expert_width, model.experts
    ratio = 1 / 3 + 2 * p / (3 * d) + 2 * bases / (3 * n)
    assert f.mobe_ratio(model, bases) == pytest.approx(ratio, rel=1e-4)


@pytest.mark.parametrize(("experts", "billions"), [(128, 344), (64, 181), (32, 99)])
def test_pruned_deepseek_r1(experts, billions):
    """PreMoe, arXiv 2505.17639: parameters of DeepSeek-R1 with fewer experts."""
    model = transform_model(load_model("deepseek-r1"), [f"prune:{experts}"])
    assert model.total_parameters / 1e9 == pytest.approx(billions, rel=0.005)


def test_null_experts_of_mixtral():
    """AdaMoE, arXiv 2406.13233: 14.5 % fewer FLOPs are 1.67 true experts instead of 2."""
    model = load_model("mixtral-8x7b")
    mean = f.true_experts(model, 0.145)
    assert mean == pytest.approx(1.672, rel=0.002)
    # The router scores the null experts too, so slightly less is saved.
    saved = f.flops_change(model, [f"null-experts:8,mean={mean}"])
    assert saved == pytest.approx(-0.145, rel=0.02)


def test_cache_of_jamba():
    """Jamba, arXiv 2403.19887, table 1, and Jamba-1.5, arXiv 2408.12570, table 1: 256K tokens."""
    tokens, mixtral = 256 * 1024, load_model("mixtral-8x7b")
    assert f.cache_bytes(mixtral, tokens) == 32 * GIB
    jamba = transform_model(mixtral, ["hybrid:8"])
    assert f.cache_bytes(jamba, tokens) == pytest.approx(4 * GIB, rel=0.005)
    large = load_model("jamba-1.5-large")
    assert f.cache_bytes(large, tokens) == pytest.approx(9 * GIB, rel=0.005)


def test_jamba_large_fits_eight_gpus_of_80_gb_with_narrow_experts():
    """Jamba-1.5, section 3.1: ExpertsInt8 serves 256K tokens on eight GPUs of 80 GB."""
    model = load_model("jamba-1.5-large")
    cache = f.cache_bytes(model, 256 * 1024)
    assert f.weight_bytes(model) + cache > 8 * 80e9
    assert f.weight_bytes(model) == pytest.approx(796e9, rel=0.005)
    narrow = transform_model(model, ["weights:experts=8,dense=8"])
    assert f.weight_bytes(narrow) + cache < 8 * 80e9


@pytest.mark.parametrize(("weights_gib", "tokens"), [(29.3, 810e3), (36.2, 572e3), (38.7, 477e3)])
def test_expert_weave_cache(weights_gib, tokens):
    """arXiv 2508.17624: what 52.8 GiB of a 64 GB device leave beside weights and adapters."""
    model = load_model("deepseek-v2-lite")
    assert f.weight_bytes(model) / GIB == pytest.approx(29.3, rel=0.005)
    found = f.cache_tokens(model, 52.8 * GIB, weights_gib * GIB)
    assert found == pytest.approx(tokens, rel=0.021)


def test_compressed_experts():
    """arXiv 2503.00634: more than 30 % fewer active parameters."""
    assert f.active_change(load_model("olmoe-1b-7b"), ["compressed-experts:4"]) < -0.30
    assert f.active_change(load_model("phi-3.5-moe"), ["compressed-experts:1"]) < -0.30


def test_quantised_bytes():
    """int4 with 16-bit scales per 128: 16 / 4.125 = 3.88; ternary at two bits: a eighth."""
    model = load_model("mixtral-8x7b")
    assert f.expert_bytes_change(model, ["weights:experts=4,group=128"]) == 4.125 / 16 - 1
    assert f.expert_bytes_change(model, ["ternary"]) == 2 / 16 - 1


def test_masked_glu_bytes():
    """arXiv 2506.23225: 3·h·f weights become 2·h·f and a bit each, (2 + 1/16)·h·f at 16 bits."""
    found = f.expert_bytes_change(load_model("mixtral-8x7b"), ["masked-glu"])
    assert found == pytest.approx((2 + 1 / 16) / 3 - 1)


def test_grouped_choice_of_pangu():
    """arXiv 2505.21411: top-8 in 8 groups; every rank of 8 gets the same."""
    from moesim.forward.expert_load import draw_layer_tokens, parse_distribution

    model = transform_model(load_model("pangu-pro-moe"), ["groups:8"])
    drawn = draw_layer_tokens(model, parse_distribution("zipf:1.2"), 64, 8, 0)
    assert (drawn.sum(axis=-1) == 64).all()


def test_carved_share_of_flops():
    """CMoE, arXiv 2502.04416: (shared + active) / slices of the FFN's FLOPs."""
    dense = load_model("llama-3.1-8b", dense=True)
    carved = transform_model(dense, ["carve:8,2,4"])
    before, after = dense.parameters.dense_mlp, carved.parameters
    assert after.shared_experts + after.routed_experts == before
    assert after.shared_experts + after.routed_experts_active == before * 6 // 8
