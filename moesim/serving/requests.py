"""Requests of a run: when they come, and how many tokens they have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.errors import InputError

__all__ = ["Requests"]


@dataclass(frozen=True, eq=False)
class Requests:
    """Requests in the order in which they come.

    Attributes:
        input_tokens: [N] of the prompts.
        output_tokens: [N] that are generated.
        cached_tokens: [N] leading prompt tokens whose keys and values are there already.
        arrival_s: [N] ascending; None in a closed loop, where a request comes when one ends.
        concurrency: Requests in flight in a closed loop; 0 in an open one.
    """

    input_tokens: np.ndarray
    output_tokens: np.ndarray
    cached_tokens: np.ndarray
    arrival_s: np.ndarray | None = None
    concurrency: int = 0

    def __post_init__(self) -> None:
        sizes = {self.input_tokens.size, self.output_tokens.size, self.cached_tokens.size}
        if sizes == {0} or len(sizes) != 1:
            raise InputError("no requests", field="requests", found=sorted(sizes), allowed="≥ 1")
        if self.input_tokens.min() < 1 or self.output_tokens.min() < 1:
            raise InputError("a request without tokens", field="requests", allowed="≥ 1 of each")
        if (self.cached_tokens < 0).any() or (self.cached_tokens >= self.input_tokens).any():
            raise InputError(
                "cached tokens leave nothing to compute",
                field="cached_tokens",
                allowed="0 … input tokens − 1",
            )
        if (self.arrival_s is None) != (self.concurrency > 0):
            raise InputError(
                "either arrival times or a concurrency", field="arrival_s", allowed="one of them"
            )
        times = self.arrival_s
        if times is not None and (times.size not in sizes or (np.diff(times) < 0).any()):
            raise InputError(
                "arrival times must ascend", field="arrival_s", fix="sort the requests"
            )

    @property
    def count(self) -> int:
        """N."""
        return int(self.input_tokens.size)
