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
        _depths(
            accesses.ids,
            accesses.starts,
            accesses.resets,
            accesses.begins,
            atomic,
            accesses.events_per_step,
            accesses.experts,
            np.zeros((self.stored, accesses.objects)),
            np.zeros(accesses.objects),
            np.zeros(accesses.objects),
            np.zeros(accesses.objects),
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
    experts: int,
    stored: np.ndarray,
    current: np.ndarray,
    coming: np.ndarray,
    priority: np.ndarray,
    last_use: np.ndarray,
    stack: np.ndarray,
    place: np.ndarray,
    depths: np.ndarray,
) -> None:
    # Matrices lie flat, layer after layer. coming: cosine · share in the stored matrix.
    kept, sequence = 0, 0
    layers = current.size // experts
    for segment in range(resets.size - 1):
        height = 0
        for event in range(resets[segment], resets[segment + 1]):
            first, last = starts[event], starts[event + 1]
            layer = event % events_per_step
            if sequence < begins.size and event == begins[sequence]:
                kept += _begin(stored, kept, sequence > 0, current, coming)
                sequence += 1
            elif layer == 0 and kept > 0:
                _look_up(stored, min(kept, stored.shape[0]), experts, current, coming)
            for i in range(first, last):
                current[ids[i]] += 1
            # All layers at the first event of a step, then the one whose uses have changed.
            end = layers if layer == 0 else layer + 1
            _prioritise(current, coming, experts, layer, end, priority)
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
def _begin(
    stored: np.ndarray, kept: int, store: bool, current: np.ndarray, coming: np.ndarray
) -> int:
    """Start a sequence; whether the matrix of the last one was stored."""
    store = store and stored.shape[0] > 0
    for e in range(current.size):
        if store:
            stored[kept % stored.shape[0], e] = current[e]
        current[e] = 0
        coming[e] = 0
    return int(store)


@compiled
def _prioritise(
    current: np.ndarray,
    coming: np.ndarray,
    experts: int,
    first_layer: int,
    end_layer: int,
    priority: np.ndarray,
) -> None:
    layers = current.size // experts
    for layer in range(first_layer, end_layer):
        begin = layer * experts
        total = 0.0
        for e in range(begin, begin + experts):
            total += current[e]
        for e in range(begin, begin + experts):
            share = current[e] / max(total, 1.0) + coming[e]
            priority[e] = share * (1 - layer / layers)


@compiled
def _look_up(
    stored: np.ndarray, kept: int, experts: int, current: np.ndarray, coming: np.ndarray
) -> None:
    """Find the stored matrix most like the current one, and what it says is to come."""
    best, cosine = 0, -1.0
    for k in range(kept):
        product, mine, other = 0.0, 0.0, 0.0
        for e in range(current.size):
            product += current[e] * stored[k, e]
            mine += current[e] ** 2
            other += stored[k, e] ** 2
        alike = product / max(np.sqrt(mine * other), 1e-300)
        if alike > cosine:
            best, cosine = k, alike
    for begin in range(0, current.size, experts):
        total = 0.0
        for e in range(begin, begin + experts):
            total += stored[best, e]
        for e in range(begin, begin + experts):
            coming[e] = cosine * stored[best, e] / max(total, 1.0)
