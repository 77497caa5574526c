"""The page of published figures beside their predictions: ``python -m tests.docs.accuracy``.

It is made from the accepted table of predictions (``reports/accepted_papers.json``) and the files
that say what was published (``reports/scenarios``); nothing is computed again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reference" / "accuracy.md"
VERDICTS = {True: "within tolerance", False: "**miss**", None: "not predicted"}

HEAD = """# Published figures beside their predictions

Made by `python -m tests.docs.accuracy` from the accepted table of `moesim validate papers`, which
predicts what papers and data sheets printed, in their own set-ups. Tolerances stand in
`reports/scenarios`, with the assumptions of every paper; misses stay in the table. A figure is not
predicted where the product covers nothing of the kind, or where what could be read does not
determine it. Some figures are exact (counts and bytes), so the totals are no measure of how far a
latency is off; the README's tables of measured kernels and serving runs are.
"""


def published() -> dict[str, dict[str, Any]]:
    """Every scenario by its id: title, source, and its figures by the rest of a row's id."""
    found = {}
    for file in sorted((ROOT / "reports" / "scenarios").glob("*.yaml")):
        scenario = yaml.safe_load(file.read_text(encoding="utf-8"))
        figures = {_figure_id(figure): figure for figure in scenario["figures"]}
        found[scenario["id"]] = {**scenario, "figures": figures}
    return found


def render() -> str:
    """The page."""
    rows = json.loads((ROOT / "reports" / "accepted_papers.json").read_text())["rows"]
    scenarios = published()
    by_paper: dict[str, dict[str, Any]] = {}
    for name, row in rows.items():
        paper, _, figure = name.partition(":")
        by_paper.setdefault(paper, {})[figure] = row
    lines = [HEAD, *_summary(by_paper, scenarios)]
    for paper, figures in by_paper.items():
        lines += _table(scenarios[paper], figures)
    return "\n".join(lines) + "\n"


def _figure_id(figure: dict[str, Any]) -> str:
    return figure["id"] if "id" in figure else f"{figure['setup']}:{figure['metric']}"


def _counts(figures: dict[str, Any]) -> tuple[int, int, int]:
    """Figures, those that are predicted, and those within tolerance."""
    verdicts = [row["ok"] for row in figures.values()]
    return len(verdicts), len(verdicts) - verdicts.count(None), verdicts.count(True)


def _summary(by_paper: dict[str, Any], scenarios: dict[str, Any]) -> Iterator[str]:
    yield "| paper | figures | predicted | within tolerance |"
    yield "| --- | ---: | ---: | ---: |"
    totals = [0, 0, 0]
    for paper, figures in by_paper.items():
        counts = _counts(figures)
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
        title = _cell(scenarios[paper]["title"])
        yield f"| [{title}](#{paper}) | {' | '.join(map(str, counts))} |"
    yield f"| **all** | {' | '.join(f'**{total}**' for total in totals)} |"


def _table(scenario: dict[str, Any], figures: dict[str, Any]) -> Iterator[str]:
    source = scenario["source"]
    yield f"\n## {scenario['id']}\n"
    yield f"{_cell(scenario['title'])}. {source['authors']}, [{source['url']}]({source['url']}).\n"
    yield "| figure | published | predicted | verdict |"
    yield "| --- | ---: | ---: | --- |"
    for name, row in figures.items():
        figure = scenario["figures"][name]
        unit = figure.get("unit", "")
        title = _cell(figure.get("title") or name.replace(":", ", ").replace("-", " "))
        predicted = (
            "–" if row["predicted"] is None else f"{_number(row['predicted'])} {unit}".strip()
        )
        yield f"| {title} | {_value(figure)} | {predicted} | {VERDICTS[row['ok']]} |"


def _value(figure: dict[str, Any]) -> str:
    reference = figure["reference"]
    ends = reference if isinstance(reference, list) else [reference]
    return f"{' … '.join(map(_number, ends))} {figure.get('unit', '')}".strip()


def _number(value: str | float) -> str:
    """Four digits; YAML reads 1e9 without a point as text."""
    number = float(value)
    if number and not 1e-3 <= abs(number) < 1e6:
        return f"{number:.4g}"
    return f"{number:,.0f}" if abs(number) >= 1e4 else f"{number:.4g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").rstrip(".")


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
