"""A fixed set of experts, chosen by popularity."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from moesim.cache.accesses import Accesses
from moesim.cache.policy import StackPolicy
from moesim.errors import UsageError
from moesim.traces.bundle import Trace
from moesim.traces.chunks import read_ids

__all__ = ["Static"]


@dataclass(frozen=True)
class Static(StackPolicy):
    """Hold the most popular experts and never change them.

    With a cache per layer, every layer holds its own most popular experts; with a pooled cache, the
    most popular of all layers are held. Of equally popular experts, those of lower number are held.
    They are loaded before the first token, so no access is cold.

    Attributes:
        calibration: Popularity is taken from this first part of the trace's tokens. With 1, the set
            is chosen on the very tokens that it is judged by: no static set is better.
        popularity: [layers of the trace, E] token counts, once known (:meth:`fitted`).
    """

    calibration: float = 1.0
    popularity: np.ndarray | None = field(default=None, compare=False, repr=False)

    name: ClassVar[str] = "static"
    summary: ClassVar[str] = "hold the most popular experts, and never change them"
    preloaded: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.calibration <= 1:
            raise UsageError(f"static: calibration must be in (0, 1]; found {self.calibration}")

    @property
    def label(self) -> str:
        """Name and parameters."""
        return f"{self.name}:calibration={self.calibration}"

    def fitted(self, trace: Trace) -> Static:
        """The policy with the popularity of a trace, which need not be the one to replay."""
        if self.popularity is not None:
            return self
        experts = trace.manifest.experts
        tokens = slice(0, max(1, round(self.calibration * trace.manifest.tokens)))
        counts = [
            np.bincount(read_ids(trace, layer, tokens).reshape(-1), minlength=experts)[:experts]
            for layer in range(trace.manifest.layers)
        ]
        return replace(self, popularity=np.stack(counts))

    def depths(self, accesses: Accesses, *, atomic: bool) -> np.ndarray:
        """The smallest number of slots at which each access hits: [N] uint16."""
        if self.popularity is None:
            counts = np.bincount(accesses.ids, minlength=accesses.objects)
        else:
            counts = self.popularity[list(accesses.layers)].reshape(-1)
        rank = np.empty(counts.size, np.uint16)
        rank[np.argsort(-counts, kind="stable")] = np.arange(1, counts.size + 1)
        return rank[accesses.ids]
