"""Parameter totals against models that ``transformers`` builds from the same configurations.

The two implementations share nothing but the configuration: ``transformers`` creates every tensor
(on the meta device, so none is allocated), we count from the dimensions.
"""

import json
import warnings
from importlib import resources

import pytest
import torch

from moesim.model import dense_model_names, load_model, model_names, parse_hf_config

UNSUPPORTED = {
    "grok-1": "transformers has no Grok",
    "pangu-pro-moe": "transformers has no Pangu",
    "small-moe-30b-dims": "not a Hugging Face configuration",
}
RENAMED = {"kimi_k2": "deepseek_v3"}
"""Architectures that run on another's implementation."""


def content(name):
    text = (resources.files("moesim") / "models" / f"{name}.json").read_text("utf-8")
    return json.loads(text)


def build(config):
    """A ``transformers`` model of the language model in a configuration, without memory."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    body = dict(config.get("text_config") or config)
    for key in [key for key in body if key.startswith("_")]:
        del body[key]
    body.pop("quantization_config", None)
    kind = body.pop("model_type")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = CONFIG_MAPPING[RENAMED.get(kind, kind)](**body)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(made)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", sorted(set(model_names()) - set(UNSUPPORTED)))
def test_total_is_exact(name):
    model = build(content(name))
    spec = load_model(name)
    assert spec.total_parameters == count(model)
    assert sum(p.numel() for n, p in model.named_parameters() if ".experts." in n) == (
        spec.parameters.routed_experts
    )


@pytest.mark.parametrize("name", dense_model_names())
def test_total_of_a_dense_model_is_exact(name):
    model = build(content(f"dense/{name}"))
    assert load_model(name, dense=True).total_parameters == count(model)


def test_every_exception_is_a_shipped_model():
    assert set(UNSUPPORTED) <= set(model_names())


SMALL = {
    "hidden_size": 64,
    "vocab_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
VARIANTS = {
    "qwen3_moe with sparse step and dense layers": {
        "model_type": "qwen3_moe",
        "head_dim": 32,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "intermediate_size": 96,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [1],
        "attention_bias": True,
    },
    "granitemoehybrid": {
        "model_type": "granitemoehybrid",
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "intermediate_size": 48,
        "shared_intermediate_size": 96,
        "layer_types": ["mamba", "attention", "mamba", "mamba"],
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
        "mamba_n_groups": 1,
        "mamba_d_state": 32,
        "mamba_expand": 2,
        "mamba_d_conv": 4,
        "tie_word_embeddings": True,
    },
    "granitemoeshared": {
        "model_type": "granitemoeshared",
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "intermediate_size": 48,
        "shared_intermediate_size": 96,
    },
    "mimo_v2_flash": {
        "model_type": "mimo_v2_flash",
        "head_dim": 24,
        "v_head_dim": 16,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_head_dim": 24,
        "swa_v_head_dim": 16,
        "sliding_window": 16,
        "hybrid_layer_pattern": [0, 1, 1, 1],
        "moe_layer_freq": [0, 1, 1, 1],
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "intermediate_size": 96,
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
    },
    "minimax_m3_vl_text": {
        "model_type": "minimax_m3_vl_text",
        "head_dim": 16,
        "dense_intermediate_size": 96,
        "intermediate_size": 48,
        "shared_intermediate_size": 48,
        "n_shared_experts": 1,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "moe_layer_freq": [0, 1, 1, 1],
        "sparse_attention_config": {
            "use_sparse_attention": True,
            "sparse_index_dim": 16,
            "sparse_num_index_heads": 2,
            "sparse_topk_blocks": 4,
            "sparse_block_size": 8,
            "sparse_attention_freq": [0, 1, 1, 1],
        },
    },
    "kimi_linear": {
        "model_type": "kimi_linear",
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "num_experts": 8,
        "num_experts_per_token": 2,
        "num_shared_experts": 1,
        "moe_intermediate_size": 48,
        "intermediate_size": 96,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 32,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        "linear_attn_config": {
            "full_attn_layers": [4],
            "kda_layers": [1, 2, 3],
            "num_heads": 4,
            "head_dim": 16,
            "short_conv_kernel_size": 4,
        },
    },
    "glm4_moe_lite": {
        "model_type": "glm4_moe_lite",
        "num_key_value_heads": 4,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "intermediate_size": 96,
        "first_k_dense_replace": 1,
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        "q_lora_rank": 24,
        "kv_lora_rank": 32,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        "attention_bias": True,
    },
    "glm_moe_dsa with shared indexers": {
        "model_type": "glm_moe_dsa",
        "num_key_value_heads": 4,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "intermediate_size": 96,
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        "q_lora_rank": 24,
        "kv_lora_rank": 32,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        "index_n_heads": 2,
        "index_head_dim": 16,
        "index_topk": 8,
        "indexer_types": ["full", "shared", "full", "shared"],
    },
    "exaone_moe": {
        "model_type": "exaone_moe",
        "num_experts": 8,
        "num_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "intermediate_size": 96,
        "first_k_dense_replace": 1,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "n_group": 1,
        "topk_group": 1,
    },
    "lfm2_moe": {
        "model_type": "lfm2_moe",
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "intermediate_size": 96,
        "num_dense_layers": 2,
        "conv_L_cache": 3,
        "conv_bias": True,
        "layer_types": ["conv", "conv", "full_attention", "conv"],
    },
    "dots1": {
        "model_type": "dots1",
        "n_routed_experts": 8,
        "n_shared_experts": 2,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "intermediate_size": 96,
        "first_k_dense_replace": 1,
        "head_dim": 16,
        "n_group": 1,
        "topk_group": 1,
        "moe_layer_freq": 1,
    },
    "hunyuan_v1_moe": {
        "model_type": "hunyuan_v1_moe",
        "num_experts": 8,
        "moe_topk": 2,
        "intermediate_size": 48,
        "head_dim": 16,
    },
    "nemotron_h with latent experts and a dense layer": {
        "model_type": "nemotron_h",
        "hybrid_override_pattern": "ME*-E",
        "num_hidden_layers": 5,
        "head_dim": 16,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "moe_shared_expert_intermediate_size": 80,
        "moe_latent_size": 32,
        "intermediate_size": 96,
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "n_groups": 2,
        "ssm_state_size": 16,
        "conv_kernel": 4,
        "use_conv_bias": True,
    },
}


@pytest.mark.parametrize("case", VARIANTS)
def test_small_variants_are_exact(case):
    config = SMALL | VARIANTS[case]
    spec = parse_hf_config(config, name=case)
    assert spec.total_parameters == count(build(config))


DEFAULTS = [
    "afmoe",
    "deepseek_v32",
    "deepseek_v4",
    "ernie4_5_moe",
    "flex_olmo",
    "glm4_moe_lite",
    "granitemoehybrid",
    "hy_v3",
    "kimi_linear",
    "llama4_text",
    "nemotron_h",
    "olmoe",
    "phimoe",
    "qwen3_moe",
    "solar_open",
]


@pytest.mark.parametrize("kind", DEFAULTS)
def test_configurations_as_transformers_writes_them(kind):
    """Configurations that ``transformers`` 5 saves use newer words for some fields."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        body = CONFIG_MAPPING[kind]().to_dict()
    assert parse_hf_config(body, name=kind).total_parameters == count(build(body))
