"""Predicts the figures of papers by their modules, and compares."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from moesim.errors import InputError
from moesim.reports.paper import Paper, PaperFigure
from moesim.reports.paper_figures import PAPERS
from moesim.reports.prediction import Prediction
from moesim.reports.validation import ValidationRow

__all__ = ["PublishedPaper", "paper_rows", "run_paper"]


@dataclass(frozen=True)
class PublishedPaper:
    """What was predicted for a paper.

    Attributes:
        scenario: The paper, as read.
        rows: One per published figure.
    """

    scenario: Paper
    rows: tuple[ValidationRow, ...]


def run_paper(path: str | Path) -> PublishedPaper:
    """Predict the figures of a paper's file.

    Raises:
        InputError: If it is no paper, or no module predicts it.
    """
    paper = Paper.load(path)
    if paper.id not in PAPERS:
        raise InputError(
            "nothing predicts this paper",
            file=path,
            field="id",
            found=paper.id,
            allowed=", ".join(PAPERS),
        )
    predict: Callable[[Paper], Mapping[str, Prediction]] = import_module(PAPERS[paper.id]).predict
    return PublishedPaper(paper, paper_rows(paper, predict(paper), file=path))


def paper_rows(
    paper: Paper, predictions: Mapping[str, Prediction], *, file: str | Path | None = None
) -> tuple[ValidationRow, ...]:
    """One row per figure.

    Raises:
        InputError: If a figure is neither predicted nor not covered, or is both, or a prediction
            is of no figure.
    """
    known = {figure.id for figure in paper.figures}
    if unknown := sorted(set(predictions) - known):
        raise InputError("predicted, but not a figure", file=file, field=unknown[0])
    rows = []
    for index, figure in enumerate(paper.figures):
        found = predictions.get(figure.id)
        if (found is None) == (figure.not_covered is None):
            raise InputError(
                "predicted and not covered" if found else "neither predicted nor not covered",
                file=file,
                field=f"figures[{index}]",
                found=figure.id,
            )
        rows.append(_row(paper, figure, found))
    return tuple(rows)


def _row(paper: Paper, figure: PaperFigure, found: Prediction | None) -> ValidationRow:
    low, high = figure.ends
    notes = [f"not covered: {figure.not_covered}"] if found is None else []
    if found is not None:
        if not math.isfinite(found.value):
            raise InputError("not a number", field=figure.id, found=found.value)
        notes += [found.note] if found.note else []
        notes += ["fitted on this figure"] if figure.id in paper.fitted_on else []
    return ValidationRow(
        id=f"{paper.id}:{figure.id}",
        reference=(low + high) / 2,
        predicted=None if found is None else found.value,
        tolerance=figure.tolerance,
        error_kind="relative",
        evidence=None if found is None else found.evidence,
        source=f"{paper.source.url}, {figure.where}",
        note="; ".join(notes),
        check=figure.check,
        band=(low, high) if figure.check == "band" else None,
        lo=None if found is None else found.lo,
        hi=None if found is None else found.hi,
        title=figure.title,
        unit=figure.unit,
    )
