"""Words and numbers as every face of a report prints them."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping

from moesim.units import format_seconds

__all__ = [
    "NOTHING",
    "clean",
    "count",
    "duration",
    "excess",
    "keep_units",
    "percent",
    "priced_by",
    "ratio",
    "sentence",
    "share",
]

NOTHING = "–"
"""Stands where there is no number."""

_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def clean(text: object) -> str:
    """Text from outside on one line, without control characters.

    Names come from files that others wrote: escape sequences must not reach a terminal, and
    characters that turn the direction of writing must not disguise a path.
    """
    return "".join(
        " " if c.isspace() else "\ufffd" if unicodedata.category(c) in _INVISIBLE else c
        for c in str(text).strip()
    )


def sentence(text: str) -> str:
    """A clause with a capital and a full stop."""
    text = text.strip()
    end = "" if text.endswith((".", "!", "?")) else "."
    return f"{text[0].upper()}{text[1:]}{end}" if text else ""


def priced_by(kernels: Mapping[str, str]) -> str:
    """What priced each part, as :attr:`moesim.step.StepEvaluator.kernels` names it: a clause."""
    return "; ".join(f"{name} by {clean(kernel)}" for name, kernel in kernels.items())


def keep_units(text: str) -> str:
    """The text with numbers and their units held together by no-break spaces."""
    return re.sub(r"(?<=\d) (?=(?:[%×]|[pnµm]?s\b|[kMGTP]?B\b))", "\u00a0", text)


def percent(fraction: float | None) -> str:
    """``0.123`` as ``12.3 %``."""
    if fraction is None or not math.isfinite(fraction):
        return NOTHING
    return f"{100 * fraction:.1f} %"


def share(fraction: float) -> str:
    """``0.25`` as ``25 %``: for a sentence, where :func:`percent` is for columns."""
    return f"{100 * fraction:.3g} %"


def excess(fraction: float | None) -> str:
    """A distance to a bound: as :func:`percent`, but never ``0.0 %`` for what is not zero."""
    if fraction is not None and 0 < fraction < 0.0005:
        return "< 0.1 %"
    return percent(fraction)


def ratio(value: float | None) -> str:
    """A speedup: ``1.34×``."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:.2f}×" if value < 10 else f"{value:.1f}×"


def duration(value_s: float) -> str:
    """Seconds of work to two digits: ``38 ms``, ``120 s``."""
    return format_seconds(float(f"{value_s:.2g}"))


def count(value: float) -> str:
    """A whole number with thousands apart: ``43,008``."""
    return f"{round(value):,}"
