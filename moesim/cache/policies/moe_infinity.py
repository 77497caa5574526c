"""Activation-aware eviction, as MoE-Infinity has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.cache.accesses import Accesses
from moesim.cache.policy import StackPolicy
from moesim.cache.stack import locate, push_ranked, scratch_type
from moesim.compiled import compiled
from moesim.errors import UsageError

__all__ = ["MoEInfinity"]


@dataclass(frozen=True)
class MoEInfinity(StackPolicy):
    """Keep the experts that sequences like the current one use most, those of early layers first.

    The expert activation matrix of a sequence counts, per layer, the tokens that used each expert
    (MoE-Infinity, arXiv 2401.14361). Before every step, the matrix of the current sequence is
    compared with those of the last ``stored`` sequences; the most alike by cosine says what is to
    come. The priority of expert e of layer l is

        (share of e in l, so far + cosine · share of e in l, in the stored matrix) · (1 − l / L)

    where only layers of one pooled cache compete by l. Of equals, the oldest goes. The paper leaves
    open how what was and what is to come are weighed against each other: they count alike here.
    Where ``Accesses.begins`` does not tell sequences of a batch apart, they make one matrix.

    Attributes:
        stored: Sequences whose matrices are kept; 0 means the current one alone.
    """

    stored: int = 16

    name: ClassVar[str] = "moe-infinity"
    summary: ClassVar[str] = "keep what sequences like this one use (MoE-Infinity)"

    def __post_init__(self) -> None:
        if self.stored < 0:
            raise UsageError(f"moe-infinity: stored must be at least 0; found {self.stored}")

    def depths(self, accesses: Accesses, *, atomic: bool) -> np.ndarray:
        """The smallest number of slots at which each access hits: [N] uint16."""
        depths = np.empty(accesses.count, np.uint16)
        place_type = scratch_type(accesses)
        layers, experts = len(accesses.layers), accesses.experts
        _depths(
            accesses.ids,
            accesses.starts,
            accesses.resets,
            accesses.begins,
            atomic,
            accesses.events_per_step,
            np.zeros((self.stored, layers, experts)),
            np.zeros((layers, experts)),
            np.zeros((layers, experts)),
            np.empty(accesses.objects, np.int64),
            np.empty(accesses.objects + 1, place_type),
            np.zeros(accesses.objects, place_type),
            depths,
        )
        return depths


@compiled
def _depths(
    ids: np.ndarray,
    starts: np.ndarray,
    resets: np.ndarray,
    begins: np.ndarray,
    atomic: bool,
    events_per_step: int,
    stored: np.ndarray,
    current: np.ndarray,
    coming: np.ndarray,
    last_use: np.ndarray,
    stack: np.ndarray,
    place: np.ndarray,
    depths: np.ndarray,
) -> None:
    # coming: cosine · share in the stored matrix.
    experts = current.shape[1]
    priority = np.zeros(current.size)
    kept, sequence = 0, 0
    for segment in range(resets.size - 1):
        height = 0
        for event in range(resets[segment], resets[segment + 1]):
            first, last = starts[event], starts[event + 1]
            if sequence < begins.size and event == begins[sequence]:
                if sequence > 0 and stored.shape[0] > 0:
                    stored[kept % stored.shape[0]] = current
                    kept += 1
                current[:] = 0
                sequence += 1
                coming[:] = 0
            elif event % events_per_step == 0 and kept > 0:
                _look_up(stored, min(kept, stored.shape[0]), current, coming)
            for i in range(first, last):
                current[ids[i] // experts, ids[i] % experts] += 1
            _prioritise(current, coming, priority)
            if atomic:
                locate(stack, height, place)
                for i in range(first, last):
                    depths[i] = place[ids[i]] + 1
            for i in range(first, last):
                item = ids[i]
                level = push_ranked(stack, height, priority, last_use, item)
                height += level == height
                if not atomic:
                    depths[i] = level + 1
                last_use[item] = i


@compiled
def _prioritise(current: np.ndarray, coming: np.ndarray, priority: np.ndarray) -> None:
    layers, experts = current.shape
    for layer in range(layers):
        total = max(current[layer].sum(), 1.0)
        for e in range(experts):
            share = current[layer, e] / total + coming[layer, e]
            priority[layer * experts + e] = share * (1 - layer / layers)


@compiled
def _look_up(stored: np.ndarray, kept: int, current: np.ndarray, coming: np.ndarray) -> None:
    """Find the stored matrix most like the current one, and what it says is to come."""
    best, cosine = 0, -1.0
    norm = np.sqrt((current * current).sum())
    for k in range(kept):
        other = stored[k]
        product = (other * current).sum()
        alike = product / max(norm * np.sqrt((other * other).sum()), 1e-300)
        if alike > cosine:
            best, cosine = k, alike
    for layer in range(current.shape[0]):
        total = max(stored[best, layer].sum(), 1.0)
        for e in range(current.shape[1]):
            coming[layer, e] = cosine * stored[best, layer, e] / total
