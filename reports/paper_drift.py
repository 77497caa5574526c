"""The last accepted table of predictions, and what moved since.

A prediction that moves is not an error: it is something to look at, and to accept on purpose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moesim.errors import InputError
from moesim.reports.validation import ValidationRow
from moesim.safe_io import read_json, write_json

__all__ = ["ACCEPTED", "Drift", "accept", "find_drift"]

ACCEPTED = Path(__file__).parent / "accepted_papers.json"
SCHEMA = "moesim.accepted-papers/1"
LARGEST_MOVE = 0.01
"""Relative; smaller moves are rounding of libraries and processors."""


@dataclass(frozen=True)
class Drift:
    """One row that is not as it was accepted.

    Attributes:
        id: Of the row.
        what: ``worse`` (ok became a miss), ``moved`` (by more than 1 %), ``new``, or ``gone``.
        before: Accepted prediction.
        now: Prediction.
    """

    id: str
    what: str
    before: float | None
    now: float | None


def find_drift(
    rows: Sequence[ValidationRow], path: str | Path = ACCEPTED, *, complete: bool
) -> tuple[Drift, ...]:
    """Compare with the accepted table.

    Args:
        rows: Now.
        path: Of the table.
        complete: Whether every paper was run, so that accepted rows that are not there are gone.

    Raises:
        InputError: If the table cannot be read.
    """
    accepted = _read(path)
    found = []
    for row in rows:
        if row.id not in accepted:
            found.append(Drift(row.id, "new", None, row.predicted))
            continue
        was_ok, before = accepted[row.id]
        if was_ok and not row.ok:
            found.append(Drift(row.id, "worse", before, row.predicted))
        elif _moved(before, row.predicted):
            found.append(Drift(row.id, "moved", before, row.predicted))
    if complete:
        now = {row.id for row in rows}
        found += [Drift(name, "gone", accepted[name][1], None) for name in accepted.keys() - now]
    return tuple(found)


def accept(rows: Sequence[ValidationRow], path: str | Path = ACCEPTED, *, complete: bool) -> Path:
    """Write the rows as accepted; rows of papers that were not run stay."""
    path = Path(path)
    table = {} if complete or not path.is_file() else _read(path)
    table |= {row.id: (row.ok, row.predicted) for row in rows}
    body = {name: {"ok": ok, "predicted": value} for name, (ok, value) in sorted(table.items())}
    return write_json(path, {"schema": SCHEMA, "rows": body})


def _moved(before: float | None, now: float | None) -> bool:
    if before is None or now is None:
        return before is not now
    return abs(now - before) > LARGEST_MOVE * max(abs(before), 1e-300)


def _read(path: str | Path) -> dict[str, tuple[bool | None, float | None]]:
    data = read_json(path)
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise InputError("not a table of accepted predictions", file=path, allowed=SCHEMA)
    try:
        return {name: (row["ok"], row["predicted"]) for name, row in data["rows"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            "rows need ok and predicted", file=path, field="rows", fix="write it with --accept"
        ) from error
