"""The price of one call: seconds and an 80 % interval."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.schema import Evidence

__all__ = ["Price"]


@dataclass(frozen=True)
class Price:
    """Seconds of one call.

    Attributes:
        time_s: Prediction.
        lo_s: Lower end of the central 80 % interval.
        hi_s: Upper end.
        evidence: What it rests on.
        kernel: Whose coefficients, or ``roofline``.
    """

    time_s: float
    lo_s: float
    hi_s: float
    evidence: Evidence
    kernel: str
