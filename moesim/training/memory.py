"""Bytes that a device holds in training.

Weights are bfloat16, their gradients float32 sums, Adam's state float32 (the weights themselves
and two moments); ZeRO-1 cuts the state over the copies of a weight (arXiv 1910.02054, section 5).

Activations per MoE layer of a micro-batch, in elements of bsh/n, as MegaScale-MoE counts them
(arXiv 2505.11432, section 3.2; f = expert width over hidden size, m query heads per key-value
head):

    all kept                    2n + 2k + 3kf + 12 + 5/m
    selective recomputation     2kf + 4 + 2/m

with n the devices of a group that gathers tokens. Here shared experts count as more copies, an
expert group that exchanges copies instead keeps none of the 2n, and of plain experts (two
matrices) f counts once less.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from moesim.model.mixers import GroupedQueryAttention
from moesim.training.layer import TrainingShape
from moesim.training.layout import Recompute
from moesim.training.pipeline import in_flight_chunks

__all__ = [
    "GRADIENT_BYTES",
    "OPTIMIZER_BYTES",
    "WEIGHT_BYTES",
    "DeviceParameters",
    "Part",
    "TrainingMemory",
    "activation_elements",
    "device_parameters",
    "training_memory",
]

WEIGHT_BYTES = 2
GRADIENT_BYTES = 4
OPTIMIZER_BYTES = 12


@dataclass(frozen=True)
class Part:
    """Parameters of one kind on a device of the fullest stage.

    Attributes:
        name: Which.
        parameters: On the device.
        spread: Neighbouring devices that hold different pieces of it.
        copies: Devices that hold the same.
    """

    name: str
    parameters: float
    spread: int
    copies: int


@dataclass(frozen=True)
class DeviceParameters:
    """Parameters that the fullest stage's device holds.

    Attributes:
        parts: By how often they are held.
    """

    parts: tuple[Part, ...]

    @property
    def total(self) -> float:
        """All of them."""
        return sum(part.parameters for part in self.parts)

    @property
    def sharded(self) -> float:
        """Parameters whose optimizer state a device keeps: ZeRO cuts it over the copies."""
        return sum(part.parameters / part.copies for part in self.parts)


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on the device that holds most.

    Attributes:
        weights: bfloat16.
        gradients: float32.
        optimizer: Float32 weights and two moments, over the copies.
        activations: Of all micro-batches at work on the first stage.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        """All of them."""
        return sum(asdict(self).values())


def device_parameters(shape: TrainingShape) -> DeviceParameters:
    """Parameters by how often they are held; layers are spread evenly over the stages.

    Sequence parallelism repeats attention's weights on every device of the group. Embedding and
    head are cut by vocabulary over the group and lie on the first and the last stage.
    """
    model, layout = shape.model, shape.layout
    count, stage = model.parameters, layout.group * layout.dp
    ends = max(count.embedding, count.output_head)
    if layout.pp == 1:
        ends = count.embedding + count.output_head
    cut = layout.group if layout.attention == "tp" else 1

    def part(name: str, parameters: float, spread: int) -> Part:
        return Part(name, parameters / spread, spread, stage // spread)

    return DeviceParameters(
        (
            part("attention", (count.mixers + count.dense_mlp) / layout.pp, cut),
            part("shared experts", count.shared_experts / layout.pp, layout.expert_tp),
            part("routers and norms", (count.router + count.other) / layout.pp, 1),
            part("embedding and head", ends, layout.group),
            part("experts", count.routed_experts / layout.pp, layout.expert_group),
        )
    )


def activation_elements(shape: TrainingShape, recompute: Recompute) -> float:
    """Elements that a device keeps of one layer and micro-batch."""
    model, layout = shape.model, shape.layout
    hidden = model.hidden_size
    unit = layout.own_tokens * hidden
    if recompute == "full":
        return float(unit)  # the layer's input
    copies = model.copies_per_token * shape.skew
    copy_width = copies * model.expert_width + model.shared_expert_width
    mixer = model.mixers[0]
    kv = 1.0
    if isinstance(mixer, GroupedQueryAttention):
        kv = mixer.kv_heads / mixer.heads
    inner = model.expert_matrices - 1
    if recompute == "selective":
        return unit * (inner * copy_width / hidden + 4 + 2 * kv)
    gathered = 0.0 if shape.alltoall else float(layout.expert_group)
    gathered += layout.group if layout.attention == "tp" else 0
    kept = gathered + 2 * copies + (inner + 1) * copy_width / hidden + 12 + 5 * kv
    return unit * kept


def training_memory(shape: TrainingShape, recompute: Recompute) -> TrainingMemory:
    """Count them."""
    layout, parameters = shape.layout, device_parameters(shape)
    chunks = in_flight_chunks(layout.pp, layout.micro_batches, layout.chunks)
    layers = chunks * shape.model.layers / (layout.pp * layout.chunks)
    return TrainingMemory(
        weights=WEIGHT_BYTES * parameters.total,
        gradients=GRADIENT_BYTES * parameters.total,
        optimizer=OPTIMIZER_BYTES * parameters.sharded,
        activations=2 * layers * activation_elements(shape, recompute),
    )
