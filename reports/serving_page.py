"""Measured serving runs beside their predictions as one HTML page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moesim.reports import page
from moesim.reports.explorer import domain, explorer
from moesim.reports.tables import Fact, Table
from moesim.reports.text import NOTHING, clean, count, percent
from moesim.reports.validation import ValidationRow
from moesim.units import format_seconds

__all__ = ["goals", "render_serving"]

Data = Mapping[str, Any]
"""As ``moesim validate serving --json`` prints it."""

_QUANTITIES = {"tpot": "TPOT, time per output token", "ttft": "TTFT, time to first token"}
_COLUMNS = ("runs", "number", "median", "MAPE", "p90", "in 80 % interval")
INTERVALS = 200
"""With more points than these, intervals stand in the labels alone: drawn they would cover all."""


def goals(line: Data) -> str:
    """Goals of a class of runs, each met or missed."""
    return ", ".join(
        f"{'met' if line[key] <= limit else 'MISSED'} {key} <= {limit:.3g}"
        for key, limit in line["goals"].items()
    )


def render_serving(data: Data, rows: Sequence[ValidationRow], kinds: Mapping[str, str]) -> str:
    """The page; the same result gives the same bytes.

    Args:
        data: The result.
        rows: Its rows, seconds; ids end with ``:tpot`` or ``:ttft``.
        kinds: By id of a row, which runs it is shown with.
    """
    summary, lines = data["summary"], data["classes"]
    runs, read = summary["covered"] // 2, summary["n"] // 2
    met = sum(bool(line["ok"]) for line in lines)
    return page.render_page(
        title="Measured serving runs",
        version=str(data["version"]),
        headline=f"{count(runs)} of {count(read)} measured runs predicted; {met} of {len(lines)} "
        "classes of runs keep their goals",
        lead=[
            f"Predicted by {clean(data['split'])}, "
            f"{'physics and residual' if data['residual'] else 'physics alone'}.",
            _reading(str(data["split"])),
        ],
        top_facts=[
            Fact(clean(line["name"]), percent(line["median"]), f"median of {count(line['n'])} runs")
            for line in lines
        ],
        remarks=[],
        sections=[*_parity(rows, kinds), *_classes(lines), *_apart(data)],
    )


def _reading(split: str) -> str:
    if split == "shipped coefficients":
        return (
            "If the coefficients were fitted to these very runs, this shows how well they fit, "
            "not how well they predict; --folds and --leave-one-model-out show that."
        )
    return "Every run was predicted by a fit that had not seen its part."


def _parity(rows: Sequence[ValidationRow], kinds: Mapping[str, str]) -> Iterable[str]:
    for quantity, title in _QUANTITIES.items():
        own = [row for row in rows if row.id.endswith(f":{quantity}") and row.predicted]
        if not own:
            continue
        drawn = len(own) <= INTERVALS
        points = [_point(row, kinds[row.id], drawn) for row in own]
        ends = [float(point[key]) for point in points for key in ("x", "y", "lo", "hi")
                if point.get(key) is not None]  # fmt: skip
        both = {"log": True, "domain": domain(ends, log=True)}
        yield page.section(
            title,
            "On the diagonal a prediction equals its measurement.",
            explorer(
                "points",
                {
                    "title": f"Predicted against measured {quantity.upper()}, seconds",
                    "x": {"name": "measured, s", **both},
                    "y": {"name": "predicted, s", **both},
                    "diagonal": True,
                    "points": points,
                },
            ),
        )


def _point(row: ValidationRow, kind: str, drawn: bool) -> dict[str, Any]:
    predicted = float(row.predicted or 0.0)
    ends = ""
    if row.lo is not None and row.hi is not None:
        ends = f" ({format_seconds(row.lo)} … {format_seconds(row.hi)})"
    point: dict[str, Any] = {
        "x": float(f"{row.reference:.5g}"),
        "y": float(f"{predicted:.5g}"),
        "group": clean(kind),
        "label": f"{clean(row.id)}, {clean(row.title)}: measured {format_seconds(row.reference)}, "
        f"predicted {format_seconds(predicted)}{ends}",
    }
    if drawn:
        point |= {"lo": row.lo, "hi": row.hi}
    return point


def _classes(lines: Sequence[Data]) -> Iterable[str]:
    if not lines:
        return
    head = Table(
        (*_COLUMNS, "goal"), tuple((*_cells(line), goals(line) or NOTHING) for line in lines)
    )
    yield page.section(
        "Errors by class of runs",
        "Shares |predicted ÷ measured − 1|. The last column but one is the share of measurements "
        "inside the prediction's own interval.",
        page.table(head),
    )
    for line in lines:
        inner = (*line["parts"], *line["by"])
        if inner:
            yield page.section(
                clean(line["name"]), "", page.table(Table(_COLUMNS, tuple(map(_cells, inner))))
            )


def _cells(line: Data) -> tuple[str, ...]:
    shares = (line["median"], line["mape"], line["p90"], line["interval_coverage"])
    return (clean(line["name"]), count(line["n"]), *map(percent, shares))


def _apart(data: Data) -> Iterable[str]:
    """Runs that need a word: far off, flagged, refused."""
    if data["far_off"]:
        rows = tuple((clean(one["id"]), _signed(one["tpot_error"])) for one in data["far_off"])
        yield page.section(
            "Far off", "Runs whose TPOT is off by more than half.",
            page.table(Table(("run", "TPOT error"), rows)),
        )  # fmt: skip
    for key, title in {"flagged": "Flagged", "refused": "Refused"}.items():
        if data[key]:
            reasons = Counter(clean(one["reason"]) for one in data[key])
            counted = tuple((reason, count(number)) for reason, number in reasons.most_common())
            yield page.section(title, "", page.table(Table(("why", "runs"), counted)))


def _signed(share: float) -> str:
    return f"{100 * share:+.1f} %"
