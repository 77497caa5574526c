"""Bytes of experts that a device keeps, in units of its share of weights under expert parallelism.

Mixed precision: weights and gradients of 2 bytes, 12 bytes of Adam's state. Copies of Hecate have
weights from their gathering to their backward pass and gradients while a layer's backward pass is
at work; re-materialised ones have both for one layer at a time (arXiv 2502.02581, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from moesim.forward.work import OUTPUT_BYTES
from moesim.training.layer import TrainingShape
from moesim.training.memory import activation_elements

__all__ = [
    "GRADIENT",
    "STATE",
    "WEIGHT",
    "ExpertMemory",
    "expert_memory",
    "layer_bytes",
    "mean_memory",
]

WEIGHT, GRADIENT, STATE = 2.0, 2.0, 12.0
"""Bytes per parameter."""


@dataclass(frozen=True)
class ExpertMemory:
    """Bytes on the device that holds most.

    Attributes:
        weights: Copies included.
        gradients: Same.
        optimizer: Same.
    """

    weights: float
    gradients: float
    optimizer: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.weights + self.gradients + self.optimizer


def expert_memory(
    held: np.ndarray,
    owner: np.ndarray,
    parameters: float,
    copies: Literal["kept", "re-materialised", "full"],
) -> ExpertMemory:
    """Of the fullest device.

    Args:
        held: [L, E, G].
        owner: [L, E].
        parameters: Of one expert.
        copies: Whether copies live until the backward pass, for a layer at a time, or as experts
            of their own with optimizer state.
    """
    devices = held.shape[-1]
    owned = (owner[..., None] == np.arange(devices)).sum(axis=1)  # [L, G]
    extra = held.sum(axis=1) - owned
    own, all_extra, layer_extra = owned.sum(axis=0), extra.sum(axis=0), extra.max(axis=0)
    if copies == "full":
        counts = (own + all_extra,) * 3
    elif copies == "kept":
        counts = (own + all_extra, own + layer_extra, own)
    else:
        counts = (own + layer_extra, own + layer_extra, own)
    each = (WEIGHT, GRADIENT, STATE)
    total = sum(count * size for count, size in zip(counts, each, strict=True))
    fullest = int(np.argmax(total))
    weights, gradients, optimizer = (
        float(count[fullest]) * size * parameters for count, size in zip(counts, each, strict=True)
    )
    return ExpertMemory(weights, gradients, optimizer)


def mean_memory(memory: Sequence[ExpertMemory]) -> ExpertMemory:
    """Mean of each part over iterations."""
    table = np.array([(m.weights, m.gradients, m.optimizer) for m in memory]).mean(axis=0)
    return ExpertMemory(*table.tolist())


def layer_bytes(shape: TrainingShape) -> float:
    """Activations of one layer, and its attention's probabilities where they are written out."""
    kept = activation_elements(shape, "none") * OUTPUT_BYTES
    if shape.scores_in_memory:
        layout, heads = shape.layout, getattr(shape.model.mixers[0], "heads", 0)
        kept += layout.micro_batch * heads * float(layout.sequence) ** 2 * OUTPUT_BYTES
    return kept
