"""Bytes that a device holds during a step."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from math import ceil

from moesim.forward.calls import StepShape
from moesim.forward.mixers import cache_bytes_per_token, state_bytes
from moesim.forward.variant import stored_expert_bytes
from moesim.forward.work import OUTPUT_BYTES
from moesim.model.mixers import Recurrence
from moesim.operators.gemm import FORMATS
from moesim.operators.moe_kernels import WEIGHT_BYTES

__all__ = ["DeviceMemory", "device_memory"]


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes on the device that holds most.

    Attributes:
        attention: Weights of mixers.
        dense: Weights of dense layers, shared experts, routers, norms.
        experts: Weights of routed experts, redundant copies included.
        embedding: Embedding and head.
        cache: Keys and values behind the step, and states.
        activations: The largest buffers that live at once in a layer.
        drafter: Weights of layers for multi-token prediction, where they draft.
    """

    attention: float
    dense: float
    experts: float
    embedding: float
    cache: float
    activations: float
    drafter: float = 0.0

    @cached_property
    def total(self) -> float:
        """All of them."""
        return sum(asdict(self).values())


def device_memory(shape: StepShape) -> DeviceMemory:
    """Count them; layers are spread evenly over pipeline stages, the first takes the remainder."""
    model, layout, formats = shape.model, shape.layout, shape.formats
    share = ceil(model.layers / layout.pp) / model.layers
    parameters = model.parameters
    weight = FORMATS[formats.gemm].weight_bytes
    # Latent projections are held whole by every device; they are a tenth of the mixer, and taken
    # as cut like the rest.
    bits = model.variant.bits
    attention = parameters.mixers * _bytes(bits.mixers, weight) / layout.tp
    wide = shape.feed_forward_tp
    dense = parameters.dense_mlp * _bytes(bits.dense, weight) / wide
    dense += parameters.shared_experts * _bytes(bits.shared, weight) / wide
    dense += (parameters.router + parameters.other) * 2
    slots = int(shape.slot_tokens.shape[2])
    layers = len(model.moe_layers) / model.variant.layer_reuse
    experts = layers * stored_expert_bytes(model, slots, layout.ep, formats.experts) / layout.moe_tp
    ends = (parameters.embedding + parameters.output_head) * 2 / layout.tp
    return DeviceMemory(
        attention * share,
        dense * share,
        experts * share,
        ends if layout.pp == 1 else ends / (1 if model.tied_embeddings else 2),
        _cache(shape) * share * layout.pp,
        _activations(shape),
        0.0
        if shape.drafting is None
        else model.mtp_parameters * WEIGHT_BYTES[formats.experts] / layout.stage_devices,
    )


def _bytes(bits: float | None, usual: float) -> float:
    return usual if bits is None else bits / 8


def _cache(shape: StepShape) -> float:
    """Of the sequences of one attention group in one micro-batch."""
    total = 0.0
    for mixer in shape.model.mixers:
        per_token = cache_bytes_per_token(mixer, shape.layout.tp, shape.formats.kv)
        state = state_bytes(mixer, shape.layout.tp, shape.formats.kv)
        window = None if isinstance(mixer, Recurrence) else mixer.window_tokens
        for group in shape.own.groups:
            kept = float(group.cached_tokens + group.new_tokens)
            if window is not None and mixer.kind == "gqa":
                kept = min(kept, window)
            passes = shape.model.variant.token_share
            total += passes * len(mixer.layers) * group.count * (kept * per_token + state)
    return total


def _activations(shape: StepShape) -> float:
    """Residual, hidden states, and the widest pair of buffers of a layer; logits at the end."""
    model, layout = shape.model, shape.layout
    residual = 2 * shape.own.tokens * model.hidden_size
    copies = shape.slot_tokens.sum(axis=-1).max()
    routed = copies * (2 * model.expert_width // layout.moe_tp + 2 * model.expert_input_size)
    dense = (
        3
        * shape.feed_forward_tokens
        * ceil(max(model.dense_width, model.shared_expert_width) / shape.feed_forward_tp)
    )
    gathered = shape.feed_forward_tokens * model.hidden_size
    logits = 2 * shape.own.sampled * model.vocabulary_size
    return float(residual + max(routed + gathered, dense + gathered, logits)) * OUTPUT_BYTES
