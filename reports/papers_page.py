"""All published figures beside their predictions as one HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import moesim
from moesim.reports import page
from moesim.reports.explorer import domain, explorer
from moesim.reports.offload_papers import OffloadPaper
from moesim.reports.paper_run import PublishedPaper
from moesim.reports.papers import PaperResult
from moesim.reports.tables import Fact, Table
from moesim.reports.text import NOTHING, clean
from moesim.reports.validation import ValidationRow, count_checks, summarise

__all__ = ["COLUMNS", "figure_cells", "render_papers"]

COLUMNS = ("figure", "published", "predicted", "error", "check", "verdict")

Result = PaperResult | OffloadPaper | PublishedPaper


def figure_cells(row: ValidationRow) -> tuple[str, ...]:
    """A row as text, by :data:`COLUMNS`."""
    points = row.error_kind == "difference"
    published = f"{row.reference:.4g}"
    if row.band is not None:
        published = f"{row.band[0]:.4g} … {row.band[1]:.4g}"
    error = NOTHING
    if row.error is not None:
        error = f"{100 * row.error:+.1f} {'pp' if points else '%'}"
    return (
        clean(row.id.partition(":")[2]),
        f"{published} {row.unit}".strip(),
        NOTHING if row.predicted is None else f"{row.predicted:.4g}",
        error,
        f"{row.check} {100 * row.tolerance:g} {'pp' if points else '%'}",
        {None: NOTHING, True: "ok", False: "miss"}[row.ok],
    )


def render_papers(results: Sequence[Result]) -> str:
    """The page; the same results give the same bytes."""
    rows = [row for result in results for row in result.rows]
    found = summarise(rows)
    checks = count_checks(rows)
    return page.render_page(
        title="Published figures",
        version=moesim.__version__,
        headline=f"{found['ok']} of {found['covered']} predicted figures are within their "
        f"tolerance; {len(rows)} figures of {len(results)} papers.",
        lead=["What papers printed, predicted from their set-ups. Misses stay in the table."],
        top_facts=[
            Fact(name, f"{of['ok']} of {of['covered']}", f"{of['n'] - of['covered']} not covered")
            for name, of in checks.items()
        ],
        remarks=[],
        sections=[
            page.section("Predicted against published", "", parity(rows)),
            *_sections(results),
        ],
    )


def parity(rows: Sequence[ValidationRow], title: str = "All predicted figures") -> str:
    """Predictions over references, each against its own scale, grouped by paper or quantity."""
    points = [
        {
            "x": row.reference,
            "y": row.predicted,
            "group": clean(row.id.partition(":")[0]) if row.check else clean(row.source),
            "label": f"{clean(row.id)}: published {row.reference:.4g} {clean(row.unit)}, "
            f"predicted {row.predicted:.4g}",
        }
        for row in rows
        if row.predicted is not None and row.predicted > 0 and row.reference > 0
    ]
    ends = [float(str(point[name])) for point in points for name in ("x", "y")]
    both = {"log": True, "domain": domain(ends, log=True)}
    return explorer(
        "points",
        {
            "title": title,
            "x": {"name": "published", **both},
            "y": {"name": "predicted", **both},
            "diagonal": True,
            "points": points,
        },
    )


def _sections(results: Sequence[Result]) -> Iterable[str]:
    for result in results:
        of = result.scenario
        table = page.table(Table(COLUMNS, tuple(map(figure_cells, result.rows))))
        notes = [Fact("assumed", clean(a.id), clean(a.text)) for a in of.assumptions]
        remarks = [
            Fact(clean(row.id.partition(":")[2]), clean(row.title or row.check), clean(row.note))
            for row in result.rows
            if row.note
        ]
        yield page.section(
            clean(of.title),
            f"{clean(of.source.authors)}, {of.source.url}",
            table,
            page.notes(notes + remarks),
        )
