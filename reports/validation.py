"""Rows and summary of every ``moesim validate``: this product against what others published.

Numbers are in SI units or plain fractions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from moesim.schema import Evidence

__all__ = ["ErrorKind", "ValidationRow", "summarise"]

ErrorKind = Literal["difference", "relative"]


@dataclass(frozen=True)
class ValidationRow:
    """One reference and its prediction.

    Attributes:
        id: Unique in the result.
        reference: The published or measured value.
        predicted: Ours, or None where the product covers nothing of the kind.
        tolerance: Largest |error| that is accepted.
        error_kind: ``difference`` (predicted − reference, in the row's unit: for fractions, where
            percentage points are what people compare) or ``relative`` (predicted / reference − 1).
        evidence: The weakest evidence of the prediction.
        source: Where the reference stands.
        note: Why nothing is predicted, or what to know of the prediction.
    """

    id: str
    reference: float
    predicted: float | None
    tolerance: float
    error_kind: ErrorKind
    evidence: Evidence | None
    source: str
    note: str = ""

    @property
    def error(self) -> float | None:
        """By ``error_kind``, with its sign; None without a prediction."""
        if self.predicted is None:
            return None
        difference = self.predicted - self.reference
        return difference if self.error_kind == "difference" else difference / self.reference

    @property
    def ok(self) -> bool | None:
        """Whether the error is within the tolerance; None without a prediction."""
        return None if self.error is None else abs(self.error) <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """The row as ``moesim.validate/1`` has it."""
        return {
            "id": self.id,
            "reference": self.reference,
            "predicted": self.predicted,
            "error": self.error,
            "error_kind": self.error_kind,
            "tolerance": self.tolerance,
            "ok": self.ok,
            "evidence": None if self.evidence is None else self.evidence.value,
            "source": self.source,
            "note": self.note,
        }


def summarise(rows: Sequence[ValidationRow]) -> dict[str, float | int | None]:
    """Counts, and percentiles of |predicted / reference − 1| over the covered rows.

    ``interval_coverage`` is None: no row states an interval yet.
    """
    ape = [
        abs(row.predicted / row.reference - 1)
        for row in rows
        if row.predicted is not None and row.reference != 0
    ]
    return {
        "n": len(rows),
        "covered": sum(row.predicted is not None for row in rows),
        "ok": sum(row.ok is True for row in rows),
        "mape": float(np.mean(ape)) if ape else None,
        "median_ape": float(np.median(ape)) if ape else None,
        "p90_ape": float(np.quantile(ape, 0.9)) if ape else None,
        "interval_coverage": None,
    }
