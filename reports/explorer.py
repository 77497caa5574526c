"""Pictures that move: data for a page's script, and the content security policy that allows it.

A page with explorers holds one script, ``templates/explore.js``, allowed by its hash alone; data
are JSON inside the page. Without scripts, everything else on the page still reads.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from moesim.reports.text import clean

__all__ = ["domain", "explorer", "measure", "script_policy", "script_text"]

_SCRIPT = Path(__file__).parent / "templates" / "explore.js"

Kind = Literal["heat", "points", "lines"]


def explorer(kind: Kind, spec: Mapping[str, Any]) -> str:
    """A card that the script fills.

    Args:
        kind: ``heat`` (rows, columns, variants with values [rows][columns], row_name, column_name,
            variant_name, unit, even: whether 1 is the middle), ``points`` (x and y with name,
            domain, log; points with x, y, label, group, perhaps lo and hi; diagonal), or ``lines``
            (sizes, size_name, chosen, measures with name, unit and series of values; notes).
        spec: What it shows, with a ``title``.
    """
    # "</" would end the element; "<!--" would start a comment in it.
    text = json.dumps(spec, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    title = escape(str(spec["title"]))
    return (
        f'<div class="card explorer" data-explore="{kind}"><h3>{title}</h3>'
        f'<script type="application/json">{text}</script></div>'
    )


def measure(name: str, unit: str, series: Mapping[str, Iterable[float]]) -> dict[str, object]:
    """One measure of ``lines``: values of every series by size."""
    return {
        "name": name,
        "unit": unit,
        "series": [
            {"name": clean(title), "values": [round(float(value), 5) for value in values]}
            for title, values in series.items()
        ],
    }


def domain(values: Sequence[float], *, log: bool = False) -> list[float]:
    """Ends of an axis that holds the values with some room."""
    kept = [value for value in values if isfinite(value) and (value > 0 or not log)]
    if not kept:
        return [1.0, 10.0] if log else [0.0, 1.0]
    low, high = min(kept), max(kept)
    if log:
        return [low / 1.25, high * 1.25]
    return [min(0.0, low), high * 1.06 if high > 0 else 1.0]


def script_text() -> str:
    """The script as it stands in a page."""
    return "\n" + _SCRIPT.read_text(encoding="utf-8").strip() + "\n"


def script_policy() -> str:
    """What a content security policy says to allow that script and no other."""
    digest = base64.b64encode(hashlib.sha256(script_text().encode()).digest()).decode()
    return f"script-src 'sha256-{digest}'"
