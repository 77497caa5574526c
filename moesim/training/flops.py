"""Model FLOPs of training: what utilisation counts."""

from __future__ import annotations

from moesim.model import ModelSpec
from moesim.model.mixers import GroupedQueryAttention, LatentAttention

__all__ = ["training_flops_per_token"]

TRAINING = 6
"""FLOPs per parameter and token: a multiply-add forward, two backward (Kaplan et al., arXiv
2001.08361, section 2.1)."""


def training_flops_per_token(model: ModelSpec, sequence: int) -> float:
    """FLOPs per token of an iteration: parameters that it uses, and causal attention.

    The input embedding is looked up, not multiplied. Attention counts the half that is not masked;
    recomputation does not count.

    Args:
        model: Sizes.
        sequence: Tokens.
    """
    parameters = TRAINING * (model.active_parameters - model.parameters.embedding)
    if model.tied_embeddings:
        parameters += TRAINING * model.parameters.embedding
    pairs = (sequence + 1) / 2
    attention = 0.0
    for mixer in model.mixers:
        if isinstance(mixer, GroupedQueryAttention):
            dims = mixer.heads * (mixer.head_dim + mixer.value_head_dim)
        elif isinstance(mixer, LatentAttention):
            key = mixer.nope_head_dim + mixer.rope_head_dim
            dims = mixer.heads * (key + mixer.value_head_dim)
        else:
            continue
        attention += len(mixer.layers) * TRAINING * pairs * dims
    return parameters + attention
