"""The price of one call: seconds and an 80 % interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.operators.fitted import Estimate, KernelFit
from moesim.schema import Evidence, weakest

__all__ = ["Price", "prices_of"]


@dataclass(frozen=True)
class Price:
    """Seconds of one call.

    Attributes:
        time_s: Prediction.
        lo_s: Lower end of the central 80 % interval.
        hi_s: Upper end.
        evidence: What it rests on.
        kernel: Whose coefficients, or ``roofline``.
        held_s: Of a transfer, seconds in which its kernels hold all cores.
    """

    time_s: float
    lo_s: float
    hi_s: float
    evidence: Evidence
    kernel: str
    held_s: float = 0.0

    def plus(self, other: Price) -> Price:
        """Both, one after the other; they err together."""
        return Price(
            self.time_s + other.time_s,
            self.lo_s + other.lo_s,
            self.hi_s + other.hi_s,
            weakest(self.evidence, other.evidence),
            self.kernel,
        )


def prices_of(estimate: Estimate, fit: KernelFit) -> list[Price | None]:
    """One price per estimated call; None where the fit does not reach."""
    name = f"{fit.engine} {fit.version}, {fit.kernel}"
    if fit.instead_of.get("system"):
        name += f", from {fit.system}"
    columns = (estimate.time_s, estimate.lo_s, estimate.hi_s)
    return [
        Price(time_s, lo_s, hi_s, estimate.evidence, name) if np.isfinite(time_s) else None
        for time_s, lo_s, hi_s in zip(
            *(np.atleast_1d(column).tolist() for column in columns), strict=True
        )
    ]
