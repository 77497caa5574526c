"""A plan's report as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from moesim.reports.html import render_html
from moesim.reports.markdown import render_markdown
from moesim.safe_io import write_atomic

if TYPE_CHECKING:
    from moesim.planners.outcome import PlanOutcome

__all__ = ["write_report"]


def write_report(outcome: PlanOutcome, folder: str | Path) -> dict[str, Path]:
    """Write ``report.md`` and ``report.html``.

    Args:
        outcome: What planning and its evaluation gave.
        folder: Made if it is not there.

    Returns:
        Path of each file under its name.

    Raises:
        InputError: If the folder cannot be written to.
    """
    faces = {"report.md": render_markdown, "report.html": render_html}
    return {
        name: write_atomic(Path(folder) / name, render(outcome)) for name, render in faces.items()
    }
