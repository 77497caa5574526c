"""A prediction of a published figure."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.schema import Evidence

__all__ = ["Prediction"]


@dataclass(frozen=True)
class Prediction:
    """What the model says of a figure.

    Attributes:
        value: In the figure's unit.
        lo: Lower end of its 80 % interval, if it has one.
        hi: Upper end.
        evidence: The weakest that went in.
        note: What to know of it.
    """

    value: float
    lo: float | None = None
    hi: float | None = None
    evidence: Evidence = Evidence.SPEC
    note: str = ""
