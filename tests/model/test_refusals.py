"""Bad configurations end in an error that names file and field."""

import json

import pytest

from moesim.errors import InputError, UsageError
from moesim.model import ModelSpec, dense_model_names, load_model, parse_hf_config

from .test_specs import MIXTRAL

QWEN = {
    **MIXTRAL,
    "model_type": "qwen3_moe",
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
}
del QWEN["num_local_experts"]
DEEPSEEK = {
    "model_type": "deepseek_v3",
    "hidden_size": 512,
    "intermediate_size": 1024,
    "moe_intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": 64,
    "kv_lora_rank": 64,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "vocab_size": 1000,
}
DROP = object()


def refuse(base, changes, tmp_path):
    config = {key: value for key, value in (base | changes).items() if value is not DROP}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    with pytest.raises(InputError) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("base", "changes", "field", "words"),
    [
        (MIXTRAL, {"num_local_experts": DROP}, "n_routed_experts", "dense model"),
        (MIXTRAL, {"num_local_experts": None}, "n_routed_experts", "dense model"),
        (MIXTRAL, {"num_local_experts": 0}, "num_local_experts", "dense model"),
        (MIXTRAL, {"num_local_experts": 1}, "num_local_experts", "dense model"),
        (MIXTRAL, {"num_local_experts": -8}, "num_local_experts", "out of range"),
        (MIXTRAL, {"num_local_experts": True}, "num_local_experts", "whole number"),
        (MIXTRAL, {"num_local_experts": "8"}, "num_local_experts", "whole number"),
        (MIXTRAL, {"num_local_experts": 8.0}, "num_local_experts", "whole number"),
        (MIXTRAL, {"num_local_experts": 8.5}, "num_local_experts", "whole number"),
        (MIXTRAL, {"num_local_experts": float("nan")}, "num_local_experts", "whole number"),
        (MIXTRAL, {"num_local_experts": float("inf")}, "num_local_experts", "whole number"),
        (MIXTRAL, {"num_local_experts": 10**400}, "num_local_experts", "out of range"),
        (MIXTRAL, {"num_local_experts": {"a": 1}}, "num_local_experts", "whole number"),
        (MIXTRAL, {"num_local_experts": [8, 16]}, "num_local_experts", "differ"),
        (MIXTRAL, {"num_experts": 16}, "num_local_experts", "contradicts num_experts"),
        (MIXTRAL, {"num_experts_per_tok": 9}, "num_experts_per_tok", "more experts than there are"),
        (MIXTRAL, {"num_experts_per_tok": 0}, "num_experts_per_tok", "out of range"),
        (MIXTRAL, {"num_experts_per_tok": DROP, "top_k": 2}, "num_experts_per_tok", "missing"),
        (MIXTRAL, {"intermediate_size": DROP}, "intermediate_size", "missing"),
        (MIXTRAL, {"hidden_size": 0}, "hidden_size", "out of range"),
        (MIXTRAL, {"hidden_size": 4097}, "num_attention_heads", "does not divide"),
        (MIXTRAL, {"num_key_value_heads": 5}, "num_key_value_heads", "do not divide"),
        (MIXTRAL, {"num_hidden_layers": 10**9}, "num_hidden_layers", "out of range"),
        (MIXTRAL, {"vocab_size": DROP}, "vocab_size", "missing"),
        (MIXTRAL, {"torch_dtype": "float12"}, "torch_dtype", "unknown"),
        (MIXTRAL, {"tie_word_embeddings": "no"}, "tie_word_embeddings", "true or false"),
        (MIXTRAL, {"text_config": 3}, "text_config", "a mapping"),
        (MIXTRAL, {"architectures": "Mixtral"}, "architectures", "a list"),
        (MIXTRAL, {"model_type": ["mixtral"]}, "model_type", "a string"),
        (MIXTRAL, {"quantization_config": "fp8"}, "quantization_config", "a mapping"),
        (
            MIXTRAL,
            {"quantization_config": {"quant_method": "magic"}},
            "quantization_config.quant_method",
            "unknown quantisation",
        ),
        (
            MIXTRAL,
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 0]}},
            "quantization_config.weight_block_size[1]",
            "out of range",
        ),
        (QWEN, {"moe_intermediate_size": DROP}, "moe_intermediate_size", "missing"),
        (QWEN, {"decoder_sparse_step": 64}, "num_hidden_layers", "dense model"),
        (QWEN, {"mlp_only_layers": [99]}, "mlp_only_layers[0]", "out of range"),
        (QWEN, {"mlp_only_layers": 3}, "mlp_only_layers", "a list"),
        (DEEPSEEK, {"first_k_dense_replace": DROP}, "first_k_dense_replace", "missing"),
        (DEEPSEEK, {"first_k_dense_replace": 5}, "first_k_dense_replace", "out of range"),
        (DEEPSEEK, {"first_k_dense_replace": 4}, "first_k_dense_replace", "dense model"),
        (DEEPSEEK, {"mlp_layer_types": ["sparse"] * 4}, "mlp_layer_types", "makes dense"),
        (DEEPSEEK, {"mlp_layer_types": ["sparse"]}, "mlp_layer_types", "wrong length"),
        (DEEPSEEK, {"mlp_layer_types": ["dense", "x"] * 2}, "mlp_layer_types[1]", "unknown"),
        (DEEPSEEK, {"n_group": 3}, "n_group", "do not divide"),
        (DEEPSEEK, {"topk_group": 5}, "topk_group", "more groups"),
        (
            DEEPSEEK,
            {"topk_group": 1, "num_experts_per_tok": 6},
            "num_experts_per_tok",
            "fewer experts",
        ),
        (DEEPSEEK, {"kv_lora_rank": DROP}, "kv_lora_rank", "missing"),
        (DEEPSEEK, {"index_topk": 8}, "index_head_dim", "missing"),
        (DEEPSEEK, {"model_type": "novel_moe"}, "model_type", "unknown architecture"),
        (DEEPSEEK, {"model_type": DROP}, "model_type", "unknown architecture"),
    ],
)
def test_refused(base, changes, field, words, tmp_path):
    error = refuse(base, changes, tmp_path)
    assert error.field == field
    assert words in str(error)
    assert len(str(error)) < 1500


def test_bases_are_accepted():
    for config in (MIXTRAL, QWEN, DEEPSEEK):
        assert parse_hf_config(config, name="m").experts >= 8


def test_unknown_architecture_says_what_is_missing(tmp_path):
    config = {"model_type": "novel_moe", "num_experts": 8, "hidden_size": 512}
    error = refuse(config, {}, tmp_path)
    for words in ("experts per token", "expert width", "number of layers", "matrices per expert"):
        assert words in str(error)
    assert "hidden size (" not in str(error)
    assert "moesim.model/1" in error.fix


def test_dense_models_are_named_so(tmp_path):
    plain = {"model_type": "gpt2", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 10}
    assert "dense model" in str(refuse(plain, {}, tmp_path))


@pytest.mark.parametrize("name", dense_model_names())
def test_dense_models_have_no_experts_to_place(name):
    with pytest.raises(InputError, match="dense model"):
        load_model(name)
    model = load_model(name, dense=True)
    assert model.experts == model.top_k == 0
    assert model.active_parameters == model.total_parameters


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "null", "{", '{"a": 1, "a": 2}', "\ufeff{}", '{"schema": "x/1"}', "{}"]
)
def test_broken_files(text, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"config\.json"):
        load_model(path)


def test_other_bytes(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(InputError, match="not UTF-8"):
        load_model(path)


def test_infinity_in_a_field_that_is_not_read(tmp_path):
    """Python writes ``Infinity``; Nemotron's configurations hold one."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(MIXTRAL | {"time_step_limit": [0.0, float("inf")]}))
    assert load_model(path).experts == 8


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"top_k": 9}, "top_k"),
        ({"experts": "8"}, "experts"),
        ({"experts": True}, "experts"),
        ({"hidden_size": 2.5}, "hidden_size"),
        ({"moe_layers": [3, 2]}, "moe_layers"),
        ({"moe_layers": [40]}, "moe_layers"),
        ({"moe_layers": []}, "experts"),
        ({"dense_layers": [0]}, "dense_layers"),
        ({"shared_experts": 1}, "shared_expert_width"),
        ({"mixers": []}, "mixers"),
        ({"colour": 1}, "colour"),
        ({"quantisation": {"weight_bits": "4"}}, "quantisation.weight_bits"),
    ],
)
def test_documents_are_checked(changes, field, tmp_path):
    path = tmp_path / "m.json"
    path.write_text(json.dumps(load_model("mixtral-8x7b").to_dict() | changes))
    with pytest.raises(InputError) as caught:
        load_model(path)
    assert caught.value.field == field


def test_two_mixers_in_a_layer():
    body = load_model("mixtral-8x7b").to_dict()
    body["mixers"] = body["mixers"] * 2
    with pytest.raises(InputError, match="two mixers"):
        ModelSpec.parse(body)


@pytest.mark.parametrize("name", ["", "deepsek-v3", "x" * 5000, "a\0b", "mixtral"])
def test_unknown_names(name):
    with pytest.raises((UsageError, InputError)):
        load_model(name)


def test_near_matches_are_listed():
    with pytest.raises(UsageError, match="deepseek-v3"):
        load_model("deepseek-ai/DeepSeek-v33")


def test_names_in_any_case_and_hugging_face_ids():
    model = load_model("deepseek-v3")
    assert load_model("DeepSeek-V3") == model
    assert load_model("deepseek-ai/DeepSeek-V3") == model
    assert load_model("DEEPSEEK-AI/deepseek-v3-0324") == model


def test_files_and_folders(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    path = tmp_path / "checkpoint" / "config.json"
    path.write_text(json.dumps(MIXTRAL))
    assert load_model(tmp_path / "checkpoint").name == "checkpoint"
    assert load_model(str(path)) == load_model(tmp_path / "checkpoint")
    beside = path.with_name("hf_quant_config.json")
    beside.write_text(json.dumps({"quantization": {"quant_algo": "NVFP4", "group_size": 16}}))
    assert load_model(path).expert_bits == 4.5
    with pytest.raises(InputError, match="no such file"):
        load_model(tmp_path / "none.json")
    with pytest.raises(InputError, match=r"config\.json: no such file"):
        load_model(tmp_path)


def test_a_folder_without_a_config_does_not_hide_a_name(tmp_path, monkeypatch):
    (tmp_path / "deepseek-v3").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_model("deepseek-v3").experts == 256
    (tmp_path / "deepseek-v3" / "config.json").write_text(json.dumps(MIXTRAL))
    assert load_model("deepseek-v3").experts == 8


@pytest.mark.parametrize("depth", [100, 900, 50_000])
def test_deep_nesting(depth, tmp_path):
    path = tmp_path / "config.json"
    body = json.dumps(MIXTRAL)
    deep = body.replace(
        '"num_local_experts": 8', f'"num_local_experts": {"[" * depth}{"]" * depth}'
    )
    for text in (deep, '{"text_config":' * depth + body + "}" * depth):
        path.write_text(text)
        with pytest.raises(InputError):
            load_model(path)
