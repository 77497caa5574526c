"""Rows and summary of every ``moesim validate``: this product against what others published.

Numbers are in SI units or plain fractions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from moesim.schema import Evidence

__all__ = ["Check", "ErrorKind", "ValidationRow", "count_checks", "summarise"]

ErrorKind = Literal["difference", "relative"]
Check = Literal["exact", "point", "band"]


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
        check: ``exact``, ``point`` or ``band``.
        band: Published range, where one was published; its middle is the reference.
        lo: Lower end of the prediction's 80 % interval, if it has one.
        hi: Upper end.
        title: What it is, in words.
        unit: Of reference and prediction; empty for fractions.
    """

    id: str
    reference: float
    predicted: float | None
    tolerance: float
    error_kind: ErrorKind
    evidence: Evidence | None
    source: str
    note: str = ""
    check: Check = "point"
    band: tuple[float, float] | None = None
    lo: float | None = None
    hi: float | None = None
    title: str = ""
    unit: str = ""

    @property
    def error(self) -> float | None:
        """By ``error_kind``, with its sign; None without a prediction.

        Of a band it is the distance to the nearer end, 0 inside.
        """
        if self.predicted is None:
            return None
        near = self.reference
        if self.band is not None:
            near = min(max(self.predicted, self.band[0]), self.band[1])
        difference = self.predicted - near
        if self.error_kind == "difference" or difference == 0:
            return difference
        return difference / abs(near) if near else float("inf")

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
            "check": self.check,
            "tolerance": self.tolerance,
            "ok": self.ok,
            "evidence": None if self.evidence is None else self.evidence.value,
            "source": self.source,
            "note": self.note,
            "title": self.title,
            "unit": self.unit,
            "band": None if self.band is None else list(self.band),
            "lo": self.lo,
            "hi": self.hi,
        }


def summarise(rows: Sequence[ValidationRow]) -> dict[str, float | int | None]:
    """Counts, and percentiles of |predicted / reference − 1| over the covered rows.

    Bands have no percentage error. ``interval_coverage`` is the share of the rows with intervals
    whose reference is inside; None if none has one.
    """
    inside = [
        row.lo <= row.reference <= row.hi
        for row in rows
        if row.lo is not None and row.hi is not None and row.band is None
    ]
    ape = [
        abs(row.predicted / row.reference - 1)
        for row in rows
        if row.predicted is not None and row.reference != 0 and row.band is None
    ]
    return {
        "n": len(rows),
        "covered": sum(row.predicted is not None for row in rows),
        "ok": sum(row.ok is True for row in rows),
        "mape": float(np.mean(ape)) if ape else None,
        "median_ape": float(np.median(ape)) if ape else None,
        "p90_ape": float(np.quantile(ape, 0.9)) if ape else None,
        "interval_coverage": float(np.mean(inside)) if inside else None,
    }


def count_checks(rows: Sequence[ValidationRow]) -> dict[str, dict[str, int]]:
    """Rows, covered rows and rows within their tolerance, by kind of check."""
    return {
        check: {
            "n": len(own),
            "covered": sum(row.predicted is not None for row in own),
            "ok": sum(row.ok is True for row in own),
        }
        for check in get_args(Check)
        for own in [[row for row in rows if row.check == check]]
    }
