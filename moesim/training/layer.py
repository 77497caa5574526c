"""Calls of the forward pass of one micro-batch, and who sends what around them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import numpy as np

from moesim.errors import UsageError
from moesim.forward.layout import Sequences, StepLoad
from moesim.forward.mixers import MixerContext, mixer_calls
from moesim.forward.work import (
    OUTPUT_BYTES,
    AttentionWork,
    CollectiveWork,
    ExpertWork,
    GemmWork,
    MoveWork,
    Op,
    Work,
)
from moesim.model import ModelSpec
from moesim.model.mixers import GroupedQueryAttention, LatentAttention, Mixer
from moesim.operators.collectives import Collective
from moesim.training.calls import Block, Call
from moesim.training.layout import TrainingLayout
from moesim.training.volumes import prefers_alltoall

__all__ = ["DTYPE", "TrainingShape", "check_model", "forward_calls"]

DTYPE = "bfloat16"
"""Weights, activations and products; sums of gradients are float32."""

SCORE_PASSES, SCORE_KERNELS = 6, 2
"""Scores written, read and written by the fused scale, mask and softmax, by dropout, and read
(Megatron-LM's core attention without FlashAttention)."""

GATED_INPUT = 2 / 3
"""Share of a gated expert's FLOPs in its first products (gate and up of three)."""


@dataclass(frozen=True, eq=False)
class TrainingShape:
    """What the calls of an iteration follow from.

    Attributes:
        model: Sizes.
        layout: How it is spread.
        slot_tokens: [W, R, s] tokens of every expert slot in draws of one layer's micro-batch.
        alltoall: Whether copies go to their experts alone; else all tokens go to all devices of
            the expert group, which add up.
        scores_in_memory: Whether attention writes its scores out, as kernels before
            FlashAttention do.
    """

    model: ModelSpec
    layout: TrainingLayout
    slot_tokens: np.ndarray
    alltoall: bool
    scores_in_memory: bool = False

    @classmethod
    def of(cls, model: ModelSpec, layout: TrainingLayout, slot_tokens: np.ndarray) -> TrainingShape:
        """With the dispatch of fewer bytes; a cut width needs all tokens of its group."""
        fewer = prefers_alltoall(layout.expert_group, model.copies_per_token)
        return cls(model, layout, slot_tokens, layout.expert_tp == 1 and layout.ep > 1 and fewer)

    @property
    def skew(self) -> float:
        """Copies of the busiest device over the mean."""
        copies = self.slot_tokens.sum(axis=-1)
        mean = np.maximum(copies.mean(axis=-1), 1e-12)
        return float((copies.max(axis=-1) / mean).mean()) if copies.size else 1.0


def check_model(model: ModelSpec) -> None:
    """Refuse attention whose training kernels differ from those that are modelled.

    Raises:
        UsageError: Naming the model and the kind of its attention.
    """
    for mixer in model.mixers:
        plain = isinstance(mixer, GroupedQueryAttention | LatentAttention)
        if not plain or getattr(mixer, "indexer", None) is not None:
            raise UsageError(
                f"{model.name} has attention of kind {mixer.kind} with sparse or compressed keys, "
                "or recurrent layers, whose training kernels are not modelled\n"
                "fix: choose a model with grouped-query or latent attention"
            )


def forward_calls(shape: TrainingShape) -> tuple[Call, ...]:
    """Calls of one micro-batch on one device, over all layers of the model."""
    return tuple(_forward(shape))


def _forward(shape: TrainingShape) -> Iterator[Call]:
    model, layout = shape.model, shape.layout
    own = layout.own_tokens
    yield Call(Op("embedding", MoveWork(2.0 * own * model.hidden_size * OUTPUT_BYTES)), "ends")
    for index, mixer in enumerate(model.mixers):
        kind = mixer.kind if len(model.mixers) == 1 else f"{mixer.kind}{index}"
        yield from _attention(shape, mixer, kind, len(mixer.layers))
    if model.dense_layers:
        yield from _dense(shape, len(model.dense_layers))
    if model.moe_layers:
        yield from _moe(shape, len(model.moe_layers) * model.variant.rounds)
    # The head's rows and columns are cut over the group either way.
    yield Call(Op("head", GemmWork(own, model.vocabulary_size, model.hidden_size, DTYPE)), "ends")
    yield Call(Op("loss", MoveWork(2.0 * own * model.vocabulary_size * OUTPUT_BYTES)), "ends")


def _norm(tokens: int, hidden: int) -> MoveWork:
    """Add to the residual and normalise: two read, two written."""
    return MoveWork(4.0 * tokens * hidden * OUTPUT_BYTES)


def _send(name: str, collective: Collective, size_bytes: float, ranks: int, layers: int) -> Op:
    return Op(name, CollectiveWork(collective, size_bytes, ranks), layers)


def _mixer_works(shape: TrainingShape, mixer: Mixer) -> list[tuple[str, Work]]:
    """With tensor parallelism all by heads; with sequence parallelism attention alone."""
    layout, hidden = shape.layout, shape.model.hidden_size

    def works(tp: int, tokens: int) -> list[tuple[str, Work]]:
        load = StepLoad((Sequences(layout.micro_batch, tokens, 0),))
        return list(mixer_calls(mixer, MixerContext(hidden, tp, load, DTYPE, DTYPE)))

    by_heads = works(layout.group, layout.sequence)
    if layout.attention == "tp":
        return by_heads
    by_tokens = works(1, layout.sequence // layout.group)
    return [
        heads if isinstance(heads[1], AttentionWork) else tokens
        for heads, tokens in zip(by_heads, by_tokens, strict=True)
    ]


def _attention(shape: TrainingShape, mixer: Mixer, kind: str, layers: int) -> Iterator[Call]:
    layout, hidden = shape.layout, shape.model.hidden_size
    works = _mixer_works(shape, mixer)
    place = next(i for i, (_, work) in enumerate(works) if isinstance(work, AttentionWork))
    before = [name for name, work in works[:place] if isinstance(work, GemmWork)]
    ranks, tokens = layout.group, layout.sequence_tokens
    yield Call(
        Op(f"{kind}.norm", _norm(layout.own_tokens, hidden), layers), "attention", cheap=True
    )
    if ranks > 1 and layout.attention == "tp":
        size = float(tokens * hidden * OUTPUT_BYTES)
        op = _send(f"{kind}.all_gather", "all_gather", size, ranks, layers)
        yield Call(op, "attention", cheap=True, partner=f"{kind}.{before[0]}")
    for index, (name, work) in enumerate(works):
        if index == place and ranks > 1 and layout.attention == "sp":
            size = layout.own_tokens * _heads_in(mixer, ranks) * OUTPUT_BYTES
            op = _send(f"{kind}.heads_alltoall", "alltoall", size, ranks, layers)
            yield Call(op, "attention", partner=f"{kind}.{before[-1]}")
        yield Call(Op(f"{kind}.{name}", work, layers), "attention")
        if shape.scores_in_memory and isinstance(work, AttentionWork):
            yield Call(Op(f"{kind}.scores", _scores(work), layers), "attention")
        if index == place and ranks > 1 and layout.attention == "sp":
            size = layout.own_tokens * _heads_out(mixer) * OUTPUT_BYTES
            op = _send(f"{kind}.tokens_alltoall", "alltoall", size, ranks, layers)
            yield Call(op, "attention", partner=f"{kind}.output")
    if ranks > 1 and layout.attention == "tp":
        size = float(tokens * hidden * OUTPUT_BYTES)
        op = _send(f"{kind}.reduce_scatter", "reduce_scatter", size, ranks, layers)
        yield Call(op, "attention", partner=f"{kind}.output")


def _scores(work: AttentionWork) -> MoveWork:
    """All pairs, masked ones too."""
    pairs = work.sequences * work.heads * work.query_tokens * (work.query_tokens + work.past_tokens)
    return MoveWork(float(SCORE_PASSES * pairs * OUTPUT_BYTES), kernels=SCORE_KERNELS)


def _heads_in(mixer: Mixer, ranks: int) -> float:
    """Elements per token of queries, keys and values; key-value heads at least one per device."""
    if isinstance(mixer, LatentAttention):
        key = mixer.nope_head_dim + mixer.rope_head_dim
        return float(mixer.heads * (2 * key + mixer.value_head_dim))
    if isinstance(mixer, GroupedQueryAttention):
        pairs = max(mixer.kv_heads, ranks) * (mixer.head_dim + mixer.value_head_dim)
        return float(mixer.heads * mixer.head_dim + pairs)
    raise UsageError(f"attention of kind {mixer.kind} is not modelled\nfix: choose another model")


def _heads_out(mixer: Mixer) -> float:
    """Elements per token of the heads' outputs."""
    if isinstance(mixer, LatentAttention | GroupedQueryAttention):
        return float(mixer.heads * mixer.value_head_dim)
    raise UsageError(f"attention of kind {mixer.kind} is not modelled\nfix: choose another model")


def _mlp(name: str, tokens: int, width: int, shape: TrainingShape) -> list[tuple[str, Work]]:
    """A dense feed-forward network."""
    hidden, inputs = shape.model.hidden_size, shape.model.expert_matrices - 1
    return [
        (f"{name}up", GemmWork(tokens, inputs * width, hidden, DTYPE)),
        (f"{name}activation", MoveWork(float((inputs + 1) * tokens * width * OUTPUT_BYTES))),
        (f"{name}down", GemmWork(tokens, hidden, width, DTYPE)),
    ]


def _dense(shape: TrainingShape, layers: int) -> Iterator[Call]:
    model, layout = shape.model, shape.layout
    cut = layout.group if layout.attention == "tp" else 1
    tokens, width = layout.own_tokens * cut, ceil(model.dense_width / cut)
    size = float(tokens * model.hidden_size * OUTPUT_BYTES)
    norm = Op("dense.norm", _norm(layout.own_tokens, model.hidden_size), layers)
    yield Call(norm, "dense", cheap=True)
    if cut > 1:
        op = _send("dense.all_gather", "all_gather", size, cut, layers)
        yield Call(op, "dense", cheap=True, partner="dense.up")
    for name, work in _mlp("", tokens, width, shape):
        yield Call(Op(f"dense.{name}", work, layers), "dense", cheap=name == "activation")
    if cut > 1:
        op = _send("dense.reduce_scatter", "reduce_scatter", size, cut, layers)
        yield Call(op, "dense", partner="dense.down")


def _moe(shape: TrainingShape, layers: int) -> Iterator[Call]:
    model, layout = shape.model, shape.layout
    own, hidden = layout.own_tokens, model.hidden_size
    block: Block = "moe"
    yield Call(Op("moe.norm", _norm(own, hidden), layers), block, cheap=True)
    yield Call(Op("moe.router", GemmWork(own, model.router_outputs, hidden, DTYPE), layers), block)
    chosen = float(own * (model.router_outputs * 4 + model.top_k * 8))
    yield Call(Op("moe.top_k", MoveWork(chosen), layers), block)
    if model.shared_expert_width:
        cut = layout.expert_tp
        width = ceil(model.shared_expert_width / cut)
        for name, work in _mlp("shared_", own * cut, width, shape):
            alone = cut == 1  # else it needs the gathered tokens and adds to what is sent back
            cheap = name == "shared_activation"
            yield Call(Op(f"moe.{name}", work, layers), block, independent=alone, cheap=cheap)
    first = GATED_INPUT if model.expert_matrices == 3 else 0.5
    there, back = _exchange(shape)
    if there is not None:
        op = Op("moe.dispatch", there, layers)
        yield Call(op, block, cheap=True, partner="moe.experts", partner_share=first)
    yield Call(Op("moe.experts", _experts(shape), layers), block)
    if back is not None:
        op = Op("moe.combine", back, layers)
        yield Call(op, block, partner="moe.experts", partner_share=1 - first)


def _exchange(shape: TrainingShape) -> tuple[CollectiveWork | None, CollectiveWork | None]:
    """To the experts and back."""
    model, layout = shape.model, shape.layout
    ranks, size = layout.expert_group, model.expert_input_size * OUTPUT_BYTES
    if ranks == 1:
        return None, None
    if shape.alltoall:
        copies = layout.own_tokens * model.copies_per_token * shape.skew
        work = CollectiveWork("alltoall", copies * size, ranks)
        return work, work
    all_tokens = float(layout.group_tokens * size)
    return (
        CollectiveWork("all_gather", all_tokens, ranks),
        CollectiveWork("reduce_scatter", all_tokens, ranks),
    )


def _experts(shape: TrainingShape) -> ExpertWork:
    model, layout = shape.model, shape.layout
    return ExpertWork(
        slot_tokens=shape.slot_tokens,
        hidden=model.expert_input_size,
        width=model.expert_width // layout.expert_tp,
        matrices=model.expert_matrices,
        dtype=DTYPE,
        weight_bytes=2.0,
        activation_bytes=2.0,
        arithmetic="bf16",
        group_tokens=layout.group_tokens,
        top_k=model.copies_per_token,
        sees_group=not shape.alltoall,
    )
