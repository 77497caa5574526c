"""All calls of one forward step, in the order in which a layer makes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil

import numpy as np

from moesim.forward.formats import Formats
from moesim.forward.layout import Layout, StepLoad
from moesim.forward.mixers import MixerContext, mixer_calls
from moesim.forward.variant import expert_weight_bytes, layer_model
from moesim.forward.work import (
    OUTPUT_BYTES,
    CollectiveWork,
    ExpertWork,
    GemmWork,
    MoveWork,
    Op,
    Stream,
    TransferWork,
    Work,
)
from moesim.model import ModelSpec
from moesim.model.mixers import Mixer
from moesim.operators.deepep import vector_bytes
from moesim.operators.moe_kernels import ACTIVATION_BYTES, ARITHMETIC

__all__ = ["StepShape", "layer_shape", "step_ops"]


@dataclass(frozen=True, eq=False)
class StepShape:
    """What the calls of a step follow from.

    Attributes:
        model: Sizes.
        layout: How it is spread.
        load: Sequences over all devices of a stage.
        formats: Of weights, activations and cache.
        slot_tokens: [W, R, s] tokens of every expert slot in draws of one layer.
        half: One of two micro-batches that layers run one beside the other.
        drafting: What a pass of the model's drafting layer (multi-token prediction) works on.
        draft_passes: Such passes in the step.
    """

    model: ModelSpec
    layout: Layout
    load: StepLoad
    formats: Formats
    slot_tokens: np.ndarray
    half: StepShape | None = None
    drafting: StepShape | None = None
    draft_passes: int = 0

    @cached_property
    def own(self) -> StepLoad:
        """Sequences of the busiest attention group."""
        return self.load.busiest(self.layout.dp)

    @property
    def own_tokens(self) -> int:
        """Tokens of one device between attention and experts."""
        tokens = self.own.tokens
        return ceil(tokens / self.layout.tp) if self.layout.scattered else tokens

    @property
    def feed_forward_tokens(self) -> int:
        """Tokens that dense layers and shared experts of one device see."""
        if self.layout.dispatch == "allgather":
            return self.own.tokens * self.layout.dp  # padded to the busiest group
        return self.own_tokens

    @property
    def feed_forward_tp(self) -> int:
        """Devices that share the width of dense layers and shared experts."""
        return 1 if self.layout.scattered else self.layout.stage_devices


def layer_shape(shape: StepShape) -> StepShape:
    """The step inside a layer: of a variant, the dimensions and tokens that take part in it."""
    share = shape.model.variant.token_share
    model = layer_model(shape.model)
    if share == 1 and model is shape.model:
        return shape
    return replace(shape, model=model, load=shape.load.scaled(share))


def step_ops(shape: StepShape) -> tuple[Op, ...]:
    """The calls, each with the layers it comes back in; of the busiest device."""
    return tuple(_ops(shape))


def _ops(shape: StepShape) -> Iterator[Op]:
    model, layout = shape.model, shape.layout
    hidden = model.hidden_size
    rows = shape.own.tokens
    yield Op("embedding", MoveWork(2 * rows * hidden * OUTPUT_BYTES))
    if layout.tp > 1:
        yield Op("embedding.all_reduce", _all_reduce(rows, hidden, layout.tp))
    if shape.half is None:
        yield from _layers(layer_shape(shape))
    else:
        for op in _layers(layer_shape(shape.half)):
            yield replace(op, layers=2 * op.layers)
    stages = layout.pp - 1
    if stages:
        passed = rows / layout.tp * hidden * OUTPUT_BYTES
        yield Op("stage.send", _send(passed, hidden), stages)
    yield from _head(shape)
    if shape.drafting is not None:
        for op in _draft(shape.drafting):
            yield replace(op, name=f"mtp.{op.name}", layers=op.layers * shape.draft_passes)


def _head(shape: StepShape) -> Iterator[Op]:
    model, layout, rows = shape.model, shape.layout, shape.own.sampled
    yield Op("final.norm", _norm(rows, model.hidden_size))
    columns = ceil(model.vocabulary_size / layout.tp)
    yield Op("head", GemmWork(rows, columns, model.hidden_size, "bfloat16"))
    if layout.tp > 1:
        size = float(rows * model.vocabulary_size * OUTPUT_BYTES)
        yield Op("head.all_gather", CollectiveWork("all_gather", size, layout.tp))
    yield Op("sampling", MoveWork(2.0 * rows * model.vocabulary_size * 4))


def _draft(shape: StepShape) -> Iterator[Op]:
    """One pass of a layer for multi-token prediction (DeepSeek-V3, arXiv 2412.19437, section 2.2).

    Two norms, a projection of the hidden state beside the embedding, a layer like the model's last,
    and the head.
    """
    hidden, rows = shape.model.hidden_size, shape.own.tokens
    yield Op("norms", _norm(rows, hidden), 2)
    yield Op("projection", GemmWork(rows, hidden, 2 * hidden, shape.formats.gemm))
    mixer = shape.model.mtp_mixer
    yield from _mixer(mixer.kind, mixer, shape, 1)
    for op in _moe(shape) if shape.model.moe_layers else ():
        yield replace(op, layers=op.layers // len(shape.model.moe_layers))
    yield from _head(shape)


def _layers(shape: StepShape) -> Iterator[Op]:
    model = shape.model
    for index, mixer in enumerate(model.mixers):
        kind = mixer.kind if len(model.mixers) == 1 else f"{mixer.kind}{index}"
        yield from _mixer(kind, mixer, shape, len(mixer.layers))
    if model.dense_layers:
        yield from _block("dense", shape, _mlp(shape, model.dense_width), len(model.dense_layers))
    if model.moe_layers:
        yield from _moe(shape)


def _mixer(name: str, mixer: Mixer, shape: StepShape, count: int) -> Iterator[Op]:
    hidden, own = shape.model.hidden_size, shape.own
    yield Op(f"{name}.norm", _norm(own.tokens, hidden), count)
    context = MixerContext(hidden, shape.layout.tp, own, shape.formats.gemm, shape.formats.kv)
    for call, work in mixer_calls(mixer, context):
        yield Op(f"{name}.{call}", work, count)
    for call, work in _behind_attention(shape):
        yield Op(f"{name}.{call}", work, count)


def _norm(rows: int, hidden: int) -> MoveWork:
    """Add to the residual and normalise: two read, two written."""
    return MoveWork(4.0 * rows * hidden * OUTPUT_BYTES, 6.0 * rows * hidden)


def _all_reduce(rows: int, hidden: int, ranks: int) -> CollectiveWork:
    return CollectiveWork("all_reduce", float(rows * hidden * OUTPUT_BYTES), ranks)


def _send(size_bytes: float, hidden: int) -> Work:
    """From one stage to the next."""
    return TransferWork("combine", "prefill", 1, hidden, size_bytes, 1, 2, 2, 2.0, "send")


def _behind_attention(shape: StepShape) -> Iterator[tuple[str, Work]]:
    """Adding up the heads' outputs over the devices that share them."""
    layout, hidden = shape.layout, shape.model.hidden_size
    if layout.tp == 1:
        return
    size = float(shape.own.tokens * hidden * OUTPUT_BYTES)
    if layout.dp == 1:
        yield "all_reduce", CollectiveWork("all_reduce", size, layout.tp)
    else:
        yield "reduce_scatter", CollectiveWork("reduce_scatter", size, layout.tp)


def _block(
    name: str, shape: StepShape, calls: Iterator[tuple[str, Work, Stream]], count: int
) -> Iterator[Op]:
    """A feed-forward block: its norm, tokens brought together, its calls, results spread again."""
    layout, hidden = shape.layout, shape.model.hidden_size
    rows = ceil(shape.own.tokens / layout.tp) if layout.dp > 1 else shape.own.tokens
    yield Op(f"{name}.norm", _norm(rows, hidden), count)
    size = float(shape.own.tokens * layout.dp * hidden * OUTPUT_BYTES)
    gathered = layout.dispatch == "allgather"
    if gathered:
        yield Op(
            f"{name}.all_gather", CollectiveWork("all_gather", size, layout.stage_devices), count
        )
    for call, work, stream in calls:
        yield Op(f"{name}.{call}", work, count, stream)
    if gathered:
        yield Op(
            f"{name}.reduce_scatter",
            CollectiveWork("reduce_scatter", size, layout.stage_devices),
            count,
        )
    elif layout.dp == 1 and layout.stage_devices > 1:
        yield Op(
            f"{name}.all_reduce", _all_reduce(shape.own.tokens, hidden, layout.stage_devices), count
        )
    if layout.dp > 1 and layout.tp > 1:
        own = float(shape.own.tokens * hidden * OUTPUT_BYTES)
        yield Op(f"{name}.tp_all_gather", CollectiveWork("all_gather", own, layout.tp), count)


def _mlp(
    shape: StepShape, width: int, prefix: str = "", stream: Stream = "main"
) -> Iterator[tuple[str, Work, Stream]]:
    """A dense feed-forward network on one device."""
    model, dtype = shape.model, shape.formats.gemm
    tokens, hidden = shape.feed_forward_tokens, model.hidden_size
    own = ceil(width / shape.feed_forward_tp)
    inputs = model.expert_matrices - 1
    yield f"{prefix}up", GemmWork(tokens, inputs * own, hidden, dtype), stream
    moved = (inputs + 1) * tokens * own * OUTPUT_BYTES
    yield f"{prefix}activation", MoveWork(float(moved), 4.0 * tokens * own), stream
    yield f"{prefix}down", GemmWork(tokens, hidden, own, dtype), stream


def _moe(shape: StepShape) -> Iterator[Op]:
    """Every round routes, dispatches, computes and combines anew; shared experts run once."""
    layers, rounds = len(shape.model.moe_layers), shape.model.variant.rounds
    for op in _block("moe", shape, _moe_calls(shape), layers):
        yield op if op.stream == "shared" else replace(op, layers=layers * rounds)


def _moe_calls(shape: StepShape) -> Iterator[tuple[str, Work, Stream]]:
    model, layout = shape.model, shape.layout
    tokens, hidden = shape.feed_forward_tokens, model.hidden_size
    yield "router", GemmWork(tokens, model.router_outputs, hidden, "bfloat16"), "main"
    # Scores read, the chosen experts and their weights written.
    chosen = tokens * (model.router_outputs * 4 + model.top_k * 8)
    yield "top_k", MoveWork(float(chosen)), "main"
    if model.shared_expert_width:
        yield from _mlp(shape, model.shared_expert_width, "shared_", "shared")
    if latent := model.expert_hidden_size:
        yield "latent_down", GemmWork(tokens, latent, hidden, shape.formats.gemm), "main"
    if layout.scattered:
        yield "dispatch", _transfer(shape, "dispatch"), "main"
    for name, work in _products(shape):
        yield name, work, "main"
    yield "experts", _experts(shape), "main"
    if layout.scattered:
        yield "combine", _transfer(shape, "combine"), "main"
    if latent := model.expert_hidden_size:
        yield "latent_up", GemmWork(tokens, hidden, latent, shape.formats.gemm), "main"


def _products(shape: StepShape) -> Iterator[tuple[str, Work]]:
    """What a variant multiplies beside its experts, on the busiest device."""
    dtype = shape.formats.gemm
    copies = shape.slot_tokens.sum(axis=-1).max(axis=-1).mean()
    active = max(1, round(np.count_nonzero(shape.slot_tokens, axis=-1).max(axis=-1).mean()))
    for product in shape.model.variant.products:
        columns = ceil(product.columns / shape.layout.moe_tp)
        if product.per == "copy":
            rows = max(1, ceil(copies / active))
            yield product.name, GemmWork(rows, columns, product.depth, dtype, active)
        else:
            rows = shape.feed_forward_tokens if product.per == "token" else active
            yield product.name, GemmWork(rows, columns, product.depth, dtype)


def _experts(shape: StepShape) -> ExpertWork:
    model, dtype = shape.model, shape.formats.experts
    arithmetic = ARITHMETIC[dtype]
    return ExpertWork(
        slot_tokens=shape.slot_tokens,
        hidden=model.expert_input_size,
        width=model.expert_width // shape.layout.moe_tp,
        matrices=model.expert_matrices,
        dtype=dtype,
        weight_bytes=expert_weight_bytes(model, dtype),
        activation_bytes=ACTIVATION_BYTES[arithmetic],
        arithmetic=arithmetic,
        group_tokens=shape.own.tokens * shape.layout.dp,
        top_k=model.copies_per_token,
        sees_group=not shape.layout.scattered,
    )


def _transfer(shape: StepShape, direction: str) -> TransferWork:
    model, layout = shape.model, shape.layout
    hidden = model.expert_input_size
    fp8 = direction == "dispatch" and ARITHMETIC[shape.formats.experts] != "bf16"
    size = float(vector_bytes("dispatch" if fp8 else "combine", np.array(float(hidden))))
    copies = shape.slot_tokens.sum(axis=-1)
    mean = np.maximum(copies.mean(axis=-1), 1e-12)
    return TransferWork(
        direction="dispatch" if direction == "dispatch" else "combine",
        phase=shape.load.phase,
        tokens=shape.own_tokens,
        hidden=hidden,
        vector_bytes=size,
        top_k=model.copies_per_token,
        experts=int(np.prod(shape.slot_tokens.shape[1:])),
        ranks=layout.ep,
        skew=float((copies.max(axis=-1) / mean).mean()),
        kernel="nvlink" if layout.dispatch == "nvlink" else "deepep",
        groups=(model.routing_groups, model.groups_per_token),
    )
