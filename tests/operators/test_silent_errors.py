"""Errors that tools of the field make without a word, each pinned to what is known to be true.

Measured times are rows of aiconfigurator-core 0.12.0 (one expert layer, TensorRT-LLM).
"""

import numpy as np
import pytest

from moesim.calibrate.moe_load import balanced_loads, power_law_loads
from moesim.calibrated_cost import CalibratedCost
from moesim.hardware import load_device
from moesim.model import load_model, parse_hf_config
from moesim.operators.moe_fits import shipped_moe_fits


def cost_of(model, device, dtype, devices, **shape):
    fit = shipped_moe_fits().find(device, "trtllm", dtype)
    if not shape:
        return CalibratedCost.of(load_model(model), load_device(device), fit, devices)
    return CalibratedCost.of_shape(load_device(device), fit, devices=devices, **shape)


def test_a_batch_of_128_reads_every_expert_that_it_uses_not_only_top_k():
    """Mixtral-8x7B in bfloat16, tensor parallel over 8 H100: 32 layers take 5.3 ms measured.

    Reading the weights of two experts, whatever the batch, makes 0.79 ms of them.
    """
    cost = cost_of(
        "mixtral-8x7b",
        "h100_sxm",
        "bfloat16",
        1,
        hidden=4096,
        width=14336 // 8,
        input_matrices=2,
        top_k=2,
    )
    everyone = cost.time(np.full(8, 128 * 2 / 8)).total_s
    assert 32 * everyone == pytest.approx(5.3e-3, rel=0.15)
    two = cost.time(np.array([128, 128, 0, 0, 0, 0, 0, 0])).total_s
    assert everyone > 2 * two


@pytest.mark.parametrize(
    ("name", "key", "experts"),
    [
        ("mixtral", "num_local_experts", 8),
        ("qwen3_moe", "num_experts", 128),
        ("deepseek_v3", "n_routed_experts", 256),
    ],
)
def test_every_spelling_of_the_number_of_experts_is_read(name, key, experts):
    """A tool that knows one of them takes the others' models for dense ones."""
    config = {
        "model_type": name,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "moe_intermediate_size": 1536,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_hidden_layers": 12,
        "num_experts_per_tok": 2,
        "vocab_size": 32000,
        "torch_dtype": "bfloat16",
        key: experts,
    }
    if name == "deepseek_v3":
        config |= {"n_group": 8, "topk_group": 4, "n_shared_experts": 1, "first_k_dense_replace": 3}
        config |= {"q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128}
        config |= {"qk_rope_head_dim": 64, "v_head_dim": 128}
    model = parse_hf_config(config, name=name.replace("_", "-"))
    assert model.experts == experts
    assert len(model.moe_layers) == (9 if name == "deepseek_v3" else 12)


def test_dense_layers_between_expert_layers_are_counted_as_dense():
    """Llama 4 Maverick has experts in every other layer, DeepSeek-V3 from the fourth on."""
    maverick = load_model("llama-4-maverick")
    assert maverick.moe_layers == tuple(range(1, 48, 2))
    assert maverick.dense_layers == tuple(range(0, 48, 2))
    assert load_model("deepseek-v3").dense_layers == (0, 1, 2)


def test_a_balanced_pattern_with_few_tokens_leaves_ranks_idle():
    """DeepSeek-V3 over 32 ranks: one token works on 8 of them, four on all."""
    cost = cost_of("deepseek-v3", "h200_sxm", "fp8_block", 32)
    loads = balanced_loads(1, 8, 256).reshape(32, 8)
    busy = loads.sum(axis=1) > 0
    assert busy.sum() == 8
    times = cost.time(loads).total_s
    assert times[~busy].max() < times[busy].min()
    assert (balanced_loads(4, 8, 256).reshape(32, 8).sum(axis=1) > 0).all()


def test_skew_makes_a_small_batch_faster_and_a_large_one_slower():
    """DeepSeek-V3, expert parallel over 8 H200: measured 0.365 and 0.340 ms at 128 tokens, balanced
    and power law 1.01, and 0.445 and 0.557 ms at 1024. Mean or maximum loads alone miss the first.
    """
    cost = cost_of("deepseek-v3", "h200_sxm", "fp8_block", 8)
    found = {}
    for tokens in (128, 1024):
        even = balanced_loads(tokens, 8, 256).reshape(8, 32)[0]
        source = np.random.default_rng(0)
        skewed = power_law_loads(tokens, 8, 256, 8, 1.01, 64, source)[:, 0]
        found[tokens] = cost.time(even).total_s, cost.time(skewed).total_s.mean()
    assert found[128][1] < found[128][0]
    assert found[1024][1] > found[1024][0]
    measured = {128: (0.365e-3, 0.340e-3), 1024: (0.445e-3, 0.557e-3)}
    for tokens, pair in measured.items():
        assert found[tokens] == pytest.approx(pair, rel=0.2)
