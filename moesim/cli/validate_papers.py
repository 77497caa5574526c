"""What ``moesim validate papers`` does beside predicting: the accepted table, the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moesim.reports.papers_page import Result
    from moesim.reports.validation import ValidationRow

__all__ = ["check_drift", "write_page"]


def check_drift(
    rows: Sequence[ValidationRow],
    found: dict[str, Any],
    drift: bool,
    accept: bool,
    table: Path | None,
    *,
    whole: bool,
) -> list[str]:
    """Compare with the accepted table, or write it; both are told in ``found``.

    Returns:
        Ids of the figures that are not as accepted. New ones are told and are no failure.
    """
    from moesim.reports import paper_drift

    path = table or paper_drift.ACCEPTED
    moved: list[str] = []
    if drift and not accept:
        items = paper_drift.find_drift(rows, path, complete=whole)
        found["drift"] = [
            {"id": item.id, "what": item.what, "before": item.before, "now": item.now}
            for item in items
        ]
        moved = [item.id for item in items if item.what != "new"]
    if accept:
        found["files"]["accepted"] = str(paper_drift.accept(rows, path, complete=whole))
    return moved


def write_page(results: Sequence[Result], path: Path) -> Path:
    """All figures as one page."""
    from moesim.reports.papers_page import render_papers
    from moesim.safe_io import write_atomic

    return write_atomic(path, render_papers(results))
