"""From a matplotlib figure to SVG that belongs into a page.

Colours are drawn as marks and turned into CSS variables, and text stays text, so that a figure
takes the page's fonts and its light or dark colours. The bytes depend on the data alone: no dates,
no random ids, no local matplotlibrc, no pyplot.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from moesim.reports.styles import light_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "WIDTH_PX", "panel", "render", "standalone"]

WIDTH_PX = 420.0
"""Drawn at this width; the page scales it, two in a row on a desk and one on a phone."""

COLOURS = {
    "ink": "#010203",
    "muted": "#040506",
    "rule": "#070809",
    "card": "#0a0b0c",
    "dispatch": "#0d0e0f",
    "experts": "#101112",
    "combine": "#131415",
}
"""CSS variable → the mark that stands for it while matplotlib draws."""

_STYLE = {
    "svg.fonttype": "none",
    "font.size": 12,
    "axes.linewidth": 0.8,
    "axes.edgecolor": COLOURS["rule"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.labelsize": 12,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "text.color": COLOURS["ink"],
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "xtick.color": COLOURS["rule"],
    "ytick.color": COLOURS["rule"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "xtick.major.size": 3,
    "ytick.major.size": 3,
}
_DPI = 72.0  # one SVG point per pixel


def render(name: str, height_px: float, draw: Callable[[Figure], None]) -> str:
    """Draw on a fresh figure and return ``<svg>…</svg>`` for a page.

    Args:
        name: Unique in the page; ids are derived from it.
        height_px: Height at a width of :data:`WIDTH_PX`.
        draw: Puts the content on the figure.
    """
    import matplotlib.style
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", _STYLE | {"svg.hashsalt": name}]):
        figure = Figure(figsize=(WIDTH_PX / _DPI, height_px / _DPI), dpi=_DPI)
        FigureCanvasSVG(figure)
        draw(figure)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return _inline(stream.getvalue())


def panel(figure: Figure, left_px: float, top_px: float, width_px: float, height_px: float) -> Axes:
    """Axes at a place in pixels from the upper left corner: the layout depends on no font."""
    whole_px = figure.get_figheight() * _DPI
    return figure.add_axes(
        (
            left_px / WIDTH_PX,
            1 - (top_px + height_px) / whole_px,
            width_px / WIDTH_PX,
            height_px / whole_px,
        )
    )


def standalone(svg: str) -> str:
    """A drawing as a file of its own: the page's light colours, its paper behind it."""
    light = light_colours()
    for variable in COLOURS:
        svg = svg.replace(f"var(--{variable})", light[variable])
    svg = svg.replace(' aria-hidden="true" focusable="false"', "", 1)
    paper = f'<rect width="100%" height="100%" fill="{light["card"]}"/>'
    head, rest = svg.split(">", 1)
    style = (
        ' font-family="system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif"'
    )
    return f"{head}{style}>\n{paper}{rest}\n"


def _inline(svg: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Its rule for "*" would reach out of the figure into the page.
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' font-family: [^;"]*;?', "", svg)
    svg = re.sub(r' transform="rotate\(-0 [^)]*\)"', "", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
    used = set(re.findall(r'(?:url\(|href=")#([\w.-]+)', svg))
    svg = re.sub(
        r' id="([^"]*)"', lambda match: match.group(0) if match.group(1) in used else "", svg
    )
    for variable, mark in COLOURS.items():
        svg = svg.replace(mark, f"var(--{variable})")
    return re.sub(r"\s*\n\s*", "\n", svg).strip()
