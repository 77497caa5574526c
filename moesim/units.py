"""Quantities: SI floats inside, human units at the edges.

Inside moesim every quantity is a plain float in SI units (s, bytes, FLOP/s, J, W) and the unit is
the suffix of its name. Only profiles and reports speak human units; this module is the border.
GB is 10⁹ bytes and GiB is 2³⁰ bytes.
"""

from __future__ import annotations

import math
import re
from typing import Literal

from moesim.errors import InputError

__all__ = ["Dimension", "format_bytes", "format_seconds", "format_si", "parse_quantity"]

Dimension = Literal[
    "bytes",
    "bytes_per_s",
    "flop_per_s",
    "s",
    "w",
    "j",
    "j_per_byte",
    "j_per_flop",
    "usd_per_h",
    "hz",
    "share",
]

_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_SMALL = {"": 1.0, "m": 1e-3, "u": 1e-6, "µ": 1e-6, "n": 1e-9, "p": 1e-12}


def _table() -> dict[Dimension, dict[str, float]]:
    byte_units = {f"{p}B": f for p, f in (_DECIMAL | _BINARY).items()}
    return {
        "bytes": byte_units,
        "bytes_per_s": {f"{u}/s": f for u, f in byte_units.items()}
        | {f"{p}bit/s": f / 8 for p, f in _DECIMAL.items()},
        "flop_per_s": {f"{p}FLOP/s": f for p, f in _DECIMAL.items()}
        | {f"{p}OP/s": f for p, f in _DECIMAL.items()},
        "s": {f"{p}s": f for p, f in _SMALL.items()},
        "w": {"W": 1.0, "mW": 1e-3, "kW": 1e3},
        "j": {f"{p}J": f for p, f in _SMALL.items()},
        "j_per_byte": {f"{p}J/B": f for p, f in _SMALL.items()}
        | {f"{p}J/bit": f * 8 for p, f in _SMALL.items()},
        "j_per_flop": {f"{p}J/FLOP": f for p, f in _SMALL.items()},
        "usd_per_h": {"USD/h": 1.0},
        "hz": {f"{p}Hz": f for p, f in _DECIMAL.items()},
        "share": {"%": 0.01},
    }


_UNITS = _table()
# The number is an atomic group: "3.35" must not be read as the number 3 and the unit ".35".
_QUANTITY = re.compile(r"\s*((?>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?))\s*([^\s\d].*?)\s*")


def parse_quantity(
    text: object, dimension: Dimension, *, file: str | None = None, field: str | None = None
) -> float:
    """Read ``"3.35 TB/s"`` as 3.35e12.

    A bare number is refused: a quantity without a unit is how GB and GiB get mixed up.

    Args:
        text: Number and unit.
        dimension: What it must measure.
        file: Named in the error.
        field: Named in the error.

    Raises:
        InputError: If it is not a finite, non-negative number with a unit of that dimension.
    """
    units = _UNITS[dimension]
    example = {"bytes": "80 GB", "bytes_per_s": "3.35 TB/s", "flop_per_s": "989.4 TFLOP/s"}.get(
        dimension, f"1 {next(iter(units))}"
    )
    match = _QUANTITY.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise InputError(
            "not a quantity with a unit",
            file=file,
            field=field,
            found=text,
            allowed=f"a number and a unit such as {example!r}",
            fix=f"write it like {example!r}",
        )
    number, unit = float(match.group(1)), match.group(2)
    if unit not in units:
        raise InputError(
            f"unknown unit {unit!r} for {dimension}",
            file=file,
            field=field,
            found=text,
            allowed=", ".join(units),
            fix=f"write it like {example!r}",
        )
    value = number * units[unit]
    if not math.isfinite(value) or value < 0:
        raise InputError(
            "a quantity must be finite and not negative",
            file=file,
            field=field,
            found=text,
            allowed="≥ 0",
        )
    return value


def format_si(value: float, unit: str, digits: int = 3, *, pad: bool = False) -> str:
    """``format_si(3.35e12, "B/s")`` gives ``3.35 TB/s``.

    Args:
        value: In SI.
        unit: Without prefix.
        digits: Significant digits.
        pad: Keep trailing zeros (``8.40 ms``), as a column of numbers wants them.
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g} {unit}"
    prefixes = [
        (1e15, "P"),
        (1e12, "T"),
        (1e9, "G"),
        (1e6, "M"),
        (1e3, "k"),
        (1.0, ""),
        (1e-3, "m"),
        (1e-6, "µ"),
        (1e-9, "n"),
        (1e-12, "p"),
    ]
    for factor, prefix in prefixes:
        # Rounding first keeps 999.9996 from printing as "1e+03".
        if float(f"{abs(value) / factor:.{digits}g}") >= 1:
            number = f"{value / factor:{'#' if pad else ''}.{digits}g}".removesuffix(".")
            return f"{number} {prefix}{unit}"
    return f"{value:.{digits}g} {unit}"


def format_seconds(value_s: float, digits: int = 3, *, pad: bool = False) -> str:
    """Seconds with an SI prefix: ``12.3 µs``."""
    return format_si(value_s, "s", digits, pad=pad)


def format_bytes(value_bytes: float, digits: int = 3, *, pad: bool = False) -> str:
    """Bytes with a decimal SI prefix: ``80 GB``."""
    return format_si(value_bytes, "B", digits, pad=pad)
