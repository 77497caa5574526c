"""Models: documents, parameter counts, and reading them from Hugging Face configurations."""

from moesim.model.hf_config import parse_hf_config
from moesim.model.mixers import (
    CompressedAttention,
    GroupedQueryAttention,
    Indexer,
    LatentAttention,
    Mixer,
    Recurrence,
)
from moesim.model.registry import dense_model_names, load_model, model_names
from moesim.model.spec import ModelSpec, Parameters, Quantisation

__all__ = [
    "CompressedAttention",
    "GroupedQueryAttention",
    "Indexer",
    "LatentAttention",
    "Mixer",
    "ModelSpec",
    "Parameters",
    "Quantisation",
    "Recurrence",
    "dense_model_names",
    "load_model",
    "model_names",
    "parse_hf_config",
]
