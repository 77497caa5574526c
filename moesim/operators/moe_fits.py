"""Fitted coefficients of expert layers as a document, and finding those of a kernel.

``hwprofiles/fitted/moe.json`` is written by ``moesim calibrate fit`` and read here; running moesim
needs neither the measured rows nor a fit.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from moesim.errors import InputError
from moesim.hardware import profiles_folder
from moesim.operators.moe import MoeCoefficients
from moesim.schema import Document

__all__ = ["FittedMoe", "MoeFit", "shipped_moe_fits", "token_regime"]


def token_regime(tokens: int) -> str:
    """Regime of a batch, the key of a fit's intervals: ``decode``, ``mixed`` or ``prefill``.

    The bounds are those that errors are reported by: 64 and 1024 tokens of the group.
    """
    return "decode" if tokens <= 64 else "mixed" if tokens <= 1024 else "prefill"


class MoeFit(Document):
    """Fitted coefficients of one kernel, and what they rest on.

    Attributes:
        rows: Measured rows that were fitted on.
        borrowed_from: Kernels whose rows were used, where there were none of its own.
        on_bounds: Coefficients that ended on a bound.
        coefficients: Of :func:`~moesim.operators.moe.moe_time_s`.
        intervals: By ``token_regime``, the central 80 % of measured over predicted time on shapes
            that the fit had not seen.
    """

    system: str
    engine: str
    version: str
    kernel: str
    dtype: str
    rows: int
    borrowed_from: tuple[str, ...] = ()
    on_bounds: tuple[str, ...] = ()
    coefficients: MoeCoefficients
    intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)


class FittedMoe(Document):
    """All fits of one run, with their provenance."""

    schema_id: ClassVar[str] = "moesim.fitted-moe/1"

    source: str
    """Package and version, or folder, that the rows came from."""
    rows: int
    """Rows after hygiene."""
    rows_dropped: dict[str, int]
    """By rule of hygiene."""
    date: str
    command: str
    fits: tuple[MoeFit, ...]

    def find(self, system: str, engine: str, dtype: str, kernel: str | None = None) -> MoeFit:
        """The fit of a kernel; of the one with the most rows, if none is named.

        Raises:
            InputError: If there is none, listing what there is.
        """
        near = [fit for fit in self.fits if (fit.system, fit.engine) == (system, engine)]
        found = [fit for fit in near if fit.dtype == dtype and kernel in (None, fit.kernel)]
        if not found:
            raise InputError(
                "no fitted kernel of that kind",
                found=f"{system}, {engine}, {dtype}, {kernel or 'any kernel'}",
                allowed="; ".join(f"{fit.dtype} {fit.kernel}" for fit in near)
                or "; ".join(sorted({f"{fit.system} {fit.engine}" for fit in self.fits})),
            )
        return max(found, key=lambda fit: fit.rows)


@cache
def shipped_moe_fits(path: Path | None = None) -> FittedMoe:
    """The coefficients that come with moesim, or those of another file."""
    return FittedMoe.load(path or profiles_folder() / "fitted" / "moe.json")
