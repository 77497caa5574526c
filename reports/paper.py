"""Papers as documents: what was published, where, and how close a prediction has to come.

A paper is a YAML file (schema ``moesim.paper/1``) among the scenarios. Its predictions come out of
a module of :mod:`moesim.reports.paper_figures` of the same name, which sees the set-up and no
published number but those that the file says are fitted (:meth:`Paper.fitted`).
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from moesim.errors import InputError
from moesim.reports.scenario import Assumption, Identifier, Text, Url
from moesim.schema import Document

__all__ = ["Check", "Paper", "PaperFigure", "PaperSource"]

Check = Literal["exact", "point", "band"]

MOST_FITTED = 4
"""Figures that coefficients may be fitted on: two for each of at most two devices."""


EXACT = 0.02
"""Widest tolerance of an exact figure: what printing two digits can be off, and no more."""


class PaperSource(Document):
    """Where the figures were published."""

    authors: Text
    url: Url


class PaperFigure(Document):
    """One published number or range."""

    id: Identifier
    title: Text
    unit: str = ""
    """SI; empty for ratios and fractions."""
    where: Text
    reference: float | tuple[float, float]
    """A number, or for a band its lower and upper end."""
    check: Check = "point"
    """``exact``: a formula or count, within its rounding. ``point``: within the tolerance.
    ``band``: inside the range, widened by the tolerance."""
    tolerance: float = Field(ge=0, le=1)
    """Relative."""
    not_covered: Text | None = None
    """Why there is no prediction."""

    @property
    def ends(self) -> tuple[float, float]:
        """Lower and upper end of what was published; equal for a number."""
        found = self.reference
        return found if isinstance(found, tuple) else (found, found)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        low, high = self.ends
        if (self.check == "band") != isinstance(self.reference, tuple):
            raise InputError(
                "a band has two ends, and only a band", field="reference", found=self.reference
            )
        if self.check == "band" and low >= high:
            raise InputError("the band is empty", field="reference", found=self.reference)
        if self.check == "exact" and self.tolerance > EXACT:
            raise InputError(
                "wider than rounding",
                field="tolerance",
                found=self.tolerance,
                allowed=f"0 … {EXACT}",
                fix="check it as a point",
            )
        return self


class Paper(Document):
    """Published figures of one source."""

    schema_id: ClassVar[str] = "moesim.paper/1"

    id: Identifier
    title: Text
    source: PaperSource
    assumptions: tuple[Assumption, ...] = ()
    fitted_on: tuple[Identifier, ...] = Field(default=(), max_length=MOST_FITTED)
    """Figures that a coefficient was fitted on: shown, and left out of the errors."""
    figures: tuple[PaperFigure, ...] = Field(min_length=1)

    def fitted(self, name: str) -> float:
        """The published number of a figure that a coefficient is fitted on, in the figure's unit.

        Raises:
            InputError: If ``fitted_on`` does not list the figure, or it is a band.
        """
        if name not in self.fitted_on:
            raise InputError(
                "a coefficient is fitted on a figure that is scored",
                field="fitted_on",
                found=name,
                allowed=", ".join(self.fitted_on) or "no figure",
                fix=f"list {name} in fitted_on, or fit on a figure that is listed",
            )
        reference = next(figure.reference for figure in self.figures if figure.id == name)
        if isinstance(reference, tuple):
            raise InputError(
                "a coefficient is fitted on a number, and this figure is a band",
                field="fitted_on",
                found=name,
                fix="fit on a figure with one number",
            )
        return reference

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        ids = [figure.id for figure in self.figures]
        if repeated := {name for name in ids if ids.count(name) > 1}:
            raise InputError("used twice", field="figures", found=min(repeated))
        for index, name in enumerate(self.fitted_on):
            if name not in ids:
                raise InputError(
                    "no such figure",
                    field=f"fitted_on[{index}]",
                    found=name,
                    allowed=", ".join(ids)[:200],
                )
        return self
