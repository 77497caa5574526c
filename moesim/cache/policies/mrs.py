"""Minus recent score, the cache of HybriMoE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.cache.accesses import Accesses
from moesim.cache.policy import StackPolicy
from moesim.cache.stack import locate, push_ranked, scratch_type
from moesim.compiled import compiled
from moesim.errors import UsageError

__all__ = ["MRS"]


@dataclass(frozen=True)
class MRS(StackPolicy):
    """Evict the expert whose router scores were lowest lately (HybriMoE, arXiv 2504.05897).

    Once per step, S ← alpha · s + (1 − alpha) · S, where s is the router weight of the experts that
    were chosen and 0 for all others. HybriMoE takes the best 2 K scores of a token; a trace holds
    the K that were chosen. Of equals, the oldest goes.

    Attributes:
        alpha: Weight of the newest scores.
    """

    alpha: float = 0.5

    name: ClassVar[str] = "mrs"
    summary: ClassVar[str] = "evict the expert whose router weights were lowest lately (HybriMoE)"
    needs_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise UsageError(f"mrs: alpha must be in (0, 1]; found {self.alpha}")

    def depths(self, accesses: Accesses, *, atomic: bool) -> np.ndarray:
        """The smallest number of slots at which each access hits: [N] uint16."""
        assert accesses.weights is not None  # noqa: S101  asked for by needs_weights
        depths = np.empty(accesses.count, np.uint16)
        place_type = scratch_type(accesses)
        _depths(
            accesses.ids,
            accesses.starts,
            accesses.resets,
            atomic,
            accesses.weights,
            self.alpha,
            accesses.events_per_step,
            accesses.experts,
            np.empty(accesses.objects, np.float64),
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
    atomic: bool,
    weights: np.ndarray,
    alpha: float,
    layers: int,
    experts: int,
    priority: np.ndarray,
    last_use: np.ndarray,
    stack: np.ndarray,
    place: np.ndarray,
    depths: np.ndarray,
) -> None:
    # Where every layer is an event, an event is a step of the experts of its layer alone.
    for segment in range(resets.size - 1):
        height = 0
        priority[:] = 0
        for event in range(resets[segment], resets[segment + 1]):
            first, last = starts[event], starts[event + 1]
            below = event % layers * experts if layers > 1 else 0
            above = below + experts if layers > 1 else priority.size
            for e in range(below, above):
                priority[e] *= 1 - alpha
            for i in range(first, last):
                priority[ids[i]] += alpha * weights[i]
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
