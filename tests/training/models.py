"""Models that the tests of training share."""

from moesim.forward.expert_load import Distribution, draw_layer_tokens
from moesim.model.hf_config import parse_hf_config
from moesim.training.layer import TrainingShape
from moesim.training.layout import TrainingLayout


def small_model(**changes):
    """Four layers, sixteen experts, one shared."""
    fields = {
        "architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "vocab_size": 1024,
        "hidden_size": 512, "intermediate_size": 256, "moe_intermediate_size": 256,
        "shared_expert_intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 16,
        "num_key_value_heads": 4, "head_dim": 32, "num_experts": 16, "num_experts_per_tok": 2,
        "decoder_sparse_step": 1, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    }  # fmt: skip
    return parse_hf_config(fields | changes, name="small", file="small.json")


def layout(**changes):
    """Sequence parallel attention and experts over eight devices."""
    fields = {
        "attention": "sp", "group": 8, "ep": 8, "expert_tp": 1, "pp": 1, "chunks": 1, "dp": 1,
        "sequence": 1024, "micro_batch": 2, "global_batch": 8,
    }  # fmt: skip
    return TrainingLayout(**(fields | changes))


def balanced(model, layout):
    """A shape with even routing."""
    slots = draw_layer_tokens(model, Distribution("balanced"), layout.group_tokens, layout.ep, 0)
    return TrainingShape.of(model, layout, slots)
