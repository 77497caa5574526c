"""How far measured kernels are from their rooflines.

A roofline is the time that no kernel can beat on a data sheet's figures (Williams et al. 2009).
Where no kernel was fitted it is the prediction; what that is worth stands in
``hwprofiles/fitted/roofline.json``: measured over roofline time of like calls on all measured
systems, written by ``moesim calibrate fit --operator roofline``.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import cache
from typing import ClassVar

from moesim.hardware import profiles_folder
from moesim.schema import Document

__all__ = [
    "REACHED_RATES",
    "SIZES_S",
    "RooflineErrors",
    "reached_interval",
    "roofline_interval",
    "shipped_roofline_errors",
]

REACHED_RATES = "reached rates"
"""Name of prices at the shares of the peaks that a profile says kernels reach."""

SIZES_S = (1e-6, 3e-6, 10e-6, 30e-6, 100e-6, 300e-6)
"""Roofline times at which errors are told apart. Below the first, fixed times are nearly all."""


class RooflineErrors(Document):
    """Measured over roofline time, the central 80 %, by operator and by size of the roofline.

    Attributes:
        source: Package and version, or folder, that the rows came from.
        date: Of the comparison.
        command: That repeats it.
        rows: Compared, by operator.
        shortest_s: By operator, the central 80 % of measured seconds of calls whose roofline is
            below the first of ``SIZES_S``; of the next size where none is so short.
        intervals: By operator, multiples of the roofline from there on, one pair per size.
    """

    schema_id: ClassVar[str] = "moesim.fitted-roofline/1"

    source: str
    date: str
    command: str
    rows: dict[str, int]
    shortest_s: dict[str, tuple[float, float]]
    intervals: dict[str, tuple[tuple[float, float], ...]]


@cache
def shipped_roofline_errors() -> RooflineErrors:
    """Those that come with moesim."""
    return RooflineErrors.load(profiles_folder() / "fitted" / "roofline.json")


def roofline_interval(operator: str, seconds: float) -> tuple[float, float]:
    """Ends of the 80 % interval of a call, as multiples of its roofline time.

    Args:
        operator: ``experts``, ``gemm``, ``attention``, ``collective``, ``dispatch``, ``small``.
        seconds: Roofline time of the call.
    """
    errors = shipped_roofline_errors()
    place = bisect_left(SIZES_S, seconds)
    if place == 0 and seconds > 0:
        low_s, high_s = errors.shortest_s[operator]
        return max(low_s / seconds, 1.0), max(high_s / seconds, 1.0)
    return errors.intervals[operator][max(place - 1, 0)]


def reached_interval(operator: str, seconds: float, least_s: float) -> tuple[float, float]:
    """Ends of the 80 % interval of a call at the rates that a profile says kernels reach.

    The interval of its roofline, widened where the prediction lies beyond an end.

    Args:
        operator: As in :func:`roofline_interval`.
        seconds: Time of the call at those rates.
        least_s: Roofline time of the call.

    Returns:
        Multiples of ``seconds``, on both sides of 1.
    """
    if seconds <= 0:
        return 1.0, 1.0
    low, high = roofline_interval(operator, least_s)
    return min(low * least_s / seconds, 1.0), max(high * least_s / seconds, 1.0)
