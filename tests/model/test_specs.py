"""What the parser reads from configurations, against facts of the published models."""

import json

import pytest

from moesim.errors import InputError
from moesim.model import ModelSpec, load_model, model_names, parse_hf_config

MIXTRAL = {
    "model_type": "mixtral",
    "architectures": ["MixtralForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 32,
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
    "vocab_size": 32000,
    "torch_dtype": "bfloat16",
}


@pytest.mark.parametrize(
    ("name", "facts"),
    {
        "deepseek-v3": {
            "layers": 61,
            "moe_layers": tuple(range(3, 61)),
            "dense_layers": (0, 1, 2),
            "dense_width": 18432,
            "experts": 256,
            "top_k": 8,
            "expert_width": 2048,
            "expert_matrices": 3,
            "shared_experts": 1,
            "shared_expert_width": 2048,
            "routing_groups": 8,
            "groups_per_token": 4,
            "activation_bits": 8,
            "mtp_layers": 1,
            # 512 + 64 elements per token and layer: arXiv 2405.04434 section 2.1.
            "kv_cache_elements_per_token": 61 * 576,
        },
        "kimi-k2.5": {"experts": 384, "moe_layers": tuple(range(1, 61)), "routing_groups": 1},
        "llama-4-maverick": {
            "moe_layers": tuple(range(1, 48, 2)),
            "dense_width": 16384,
            "expert_width": 8192,
            "shared_experts": 1,
            "top_k": 1,
        },
        "llama-4-scout": {"moe_layers": tuple(range(48)), "dense_layers": ()},
        "jamba-1.5-mini": {
            "moe_layers": tuple(range(1, 32, 2)),
            "dense_width": 14336,
            # 4 attention layers of 32 (arXiv 2403.19887) with 8 key-value heads of 128.
            "kv_cache_elements_per_token": 4 * 2 * 8 * 128,
        },
        "qwen3.5-397b-a17b": {"experts": 512, "top_k": 10, "shared_expert_width": 1024},
        "qwen2-57b-a14b": {"shared_experts": 8, "shared_expert_width": 20480},
        "pangu-pro-moe": {"shared_experts": 4, "routing_groups": 8, "groups_per_token": 8},
        "mixtral-8x7b": {"experts": 8, "top_k": 2, "expert_width": 14336, "shared_experts": 0},
        "nemotron-3-super-120b-a12b": {"expert_matrices": 2, "expert_hidden_size": 1024},
        "gpt-oss-120b": {"expert_bits": 4.25, "activation_bits": 16},
        "deepseek-v4-flash": {"expert_bits": 4.25, "activation_bits": 8},
    }.items(),
)
def test_facts(name, facts):
    model = load_model(name)
    assert {key: getattr(model, key) for key in facts} == facts


def test_every_shipped_model_loads_and_states_its_source():
    for name in model_names():
        model = load_model(name)
        assert model.name == name
        assert "http" in model.source
        assert 0 < model.active_parameters < model.total_parameters


def test_bundled_dimensions_fit_the_bundled_trace():
    """Eight MoE layers of 32 experts, top-4, at the layer dimensions of Qwen3-30B-A3B."""
    model, large = load_model("small-moe-30b-dims"), load_model("qwen3-30b-a3b")
    assert (len(model.moe_layers), model.layers, model.experts, model.top_k) == (8, 8, 32, 4)
    for key in ("hidden_size", "expert_width", "expert_matrices", "expert_bits"):
        assert getattr(model, key) == getattr(large, key)
    ours, theirs = model.mixers[0], large.mixers[0]
    assert ours.model_copy(update={"layers": theirs.layers}) == theirs
    for word in ("recorded", "Qwen3-30B-A3B", "launch overhead"):
        assert word in model.note
    # Two norms per layer and one at the end, as in the large model.
    assert model.other_parameters == (2 * 8 + 1) * 2048


def test_alternative_names_mean_the_same():
    reference = parse_hf_config(MIXTRAL, name="m")
    for old, new in (("num_local_experts", "num_experts"), ("num_experts_per_tok", "moe_top_k")):
        renamed = {new if key == old else key: value for key, value in MIXTRAL.items()}
        assert parse_hf_config(renamed, name="m") == reference
    assert parse_hf_config(MIXTRAL | {"num_experts": 8}, name="m") == reference
    nested = {"model_type": "something_vl", "text_config": MIXTRAL}
    inner = parse_hf_config(nested, name="m")
    assert inner == reference


def test_mixtral_is_not_read_as_a_dense_model():
    """A known peer overlooks ``num_local_experts`` and prices Mixtral as a dense model."""
    assert len(parse_hf_config(MIXTRAL, name="m").moe_layers) == 32


def test_quantised_level_does_not_matter():
    scheme = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    inner = {"text_config": MIXTRAL | {"quantization_config": scheme}}
    outer = {"text_config": MIXTRAL, "quantization_config": scheme}
    assert parse_hf_config(inner, name="m") == parse_hf_config(outer, name="m")


MODELOPT = {"quant_method": "modelopt"}
INT4 = {
    "quant_method": "compressed-tensors",
    "config_groups": {
        "group_0": {
            "weights": {
                "num_bits": 4,
                "type": "int",
                "strategy": "group",
                "group_size": 32,
                "symmetric": True,
            }
        }
    },
}


@pytest.mark.parametrize(
    ("scheme", "method", "bits", "activation_bits"),
    [
        (None, "none", 16, 16),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8-block", 8 + 32 / 2**14, 8),
        ({"quant_method": "fp8"}, "fp8", 8 + 32 / 4096, 8),
        ({"quant_method": "mxfp4"}, "mxfp4", 4.25, 16),
        (MODELOPT | {"quant_algo": "NVFP4", "group_size": 16}, "nvfp4", 4.5, 16),
        (MODELOPT | {"quant_algo": "MXFP8"}, "mxfp8", 8.25, 8),
        (MODELOPT | {"quant_algo": "FP8"}, "fp8", 8 + 32 / 4096, 8),
        (INT4, "int4", 4.5, 16),
        (INT4 | {"ignore": ["re:.*shared_experts.*", "lm_head"]}, "int4", 4.5, 16),
        (INT4 | {"ignore": ["re:.*mlp\\.experts.*"]}, "none", 16, 16),
        (INT4 | {"ignore": ["re:.*block_sparse_moe.*"]}, "none", 16, 16),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "int4", 4 + 20 / 128, 16),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "int8", 8 + 24 / 4096, 16),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4", 4 + 20 / 128, 16),
        (
            MODELOPT
            | {
                "quant_algo": "MIXED_PRECISION",
                "quantized_layers": {
                    "model.layers.0.self_attn.q_proj": {"quant_algo": "FP8"},
                    "model.layers.0.mlp.experts.0.w1": {"quant_algo": "NVFP4", "group_size": 16},
                },
            },
            "nvfp4",
            4.5,
            16,
        ),
    ],
)
def test_bits_per_expert_weight(scheme, method, bits, activation_bits):
    config = MIXTRAL | ({"quantization_config": scheme} if scheme else {})
    model = parse_hf_config(config, name="m")
    assert model.quantisation.method == method
    assert model.expert_bits == pytest.approx(bits, rel=1e-12)
    assert model.activation_bits == activation_bits
    assert model.expert_weight_bytes == pytest.approx(3 * 4096 * 14336 * bits / 8)


def test_hostile_expressions_are_not_run():
    hostile = INT4 | {"ignore": ["re:(.*experts)*" + "(.*mlp)+" * 20 + "$"]}
    assert parse_hf_config(MIXTRAL | {"quantization_config": hostile}, name="m").expert_bits == 4.5


def test_document_round_trip(tmp_path):
    for name in ("deepseek-v3.2", "qwen3.5-397b-a17b", "nemotron-3-nano-30b-a3b", "mixtral-8x7b"):
        model = load_model(name)
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(model.summary() | {"ok": True}))
        assert load_model(path) == model
        assert ModelSpec.parse(model.to_dict()) == model


def test_document_with_a_total_of_its_own_is_refused(tmp_path):
    path = tmp_path / "m.json"
    path.write_text(json.dumps(load_model("mixtral-8x7b").summary() | {"total_parameters": 7}))
    with pytest.raises(InputError, match="total_parameters: does not follow"):
        load_model(path)
