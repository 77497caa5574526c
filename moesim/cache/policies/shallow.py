"""Slots for the first layers first, as Fate has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.cache.accesses import Accesses
from moesim.cache.policies.arc import ARC
from moesim.cache.policy import SizedPolicy
from moesim.errors import UsageError

__all__ = ["Shallow"]


@dataclass(frozen=True)
class Shallow(SizedPolicy):
    """Give the first layers a slot per expert, the others what is left; ARC within a layer.

    Fate's shallow-favouring cache (arXiv 2502.12224): experts of early layers are predicted worst,
    so those are cached, and prefetching serves the others. Without prefetching, a layer without
    slots never hits.

    Attributes:
        full_layers: Layers that get a slot per expert as far as slots go; 0 stands for all.
    """

    full_layers: int = 0

    name: ClassVar[str] = "shallow"
    summary: ClassVar[str] = "slots for the first layers first, ARC within a layer (Fate)"

    def __post_init__(self) -> None:
        if self.full_layers < 0:
            raise UsageError(f"shallow: full_layers must be at least 0; found {self.full_layers}")

    def quotas(self, slots: int, layers: int, experts: int) -> np.ndarray:
        """Slots of each layer: [L] int64, which add up to at most L · ``slots``."""
        left = min(slots, experts) * layers
        full = min(self.full_layers or layers, layers)
        quotas = np.clip(left - experts * np.arange(layers), 0, experts)
        quotas[full:] = 0
        left -= int(quotas.sum())
        if full < layers:
            share, more = divmod(left, layers - full)
            quotas[full:] = share + (np.arange(layers - full) < more)
        return quotas.astype(np.int64)

    def hits(self, accesses: Accesses, *, atomic: bool, slots: int) -> np.ndarray:
        """Which accesses hit in a cache of one size: [N] bool."""
        return ARC().hits(accesses, atomic=atomic, slots=slots)
