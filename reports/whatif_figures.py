"""The pictures of ``moesim whatif cache``: hit rate, speed and memory against slots."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moesim.reports.figures import Picture
from moesim.reports.svg import COLOURS, WIDTH_PX, panel, render
from moesim.reports.text import clean, count
from moesim.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from moesim.offload.slot_curves import Curve, CurvesOfBatch
    from moesim.offload.whatif import WhatIf

__all__ = ["hit_rates", "memory", "speeds"]

_LEFT_PX, _TOP_PX, _HEIGHT_PX, _BELOW_PX = 56.0, 12.0, 210.0, 46.0
_RIGHT_PX = 96.0
_LINES = ("experts", "combine", "dispatch", "ink", "muted")
_DASHES = ("-", "--", "-.", ":")


def hit_rates(curves: CurvesOfBatch, chosen: int) -> Picture:
    """Hit rate of every policy."""
    shown = list(curves.policies.values())
    return _lines(
        f"hit-rate-{curves.batch}",
        f"Hit rate, batch {curves.batch}",
        shown,
        [100 * curve.hit_rate for curve in shown],
        lambda value, _: f"{value:g} %",
        chosen,
        top=100.0,
    )


def speeds(curves: CurvesOfBatch, chosen: int) -> Picture:
    """Tokens per second of every policy and, where a CPU helps, of those systems."""
    shown = [*curves.policies.values(), *curves.with_cpu.values()]
    return _lines(
        f"tokens-per-s-{curves.batch}",
        f"Tokens per second, batch {curves.batch}",
        shown,
        [curve.tokens_per_s for curve in shown],
        lambda value, _: count(value),
        chosen,
    )


def memory(found: WhatIf) -> Picture:
    """What slots take and what is left for keys and values."""
    of = found.memory
    slots_bytes = of.slots * of.slot_bytes
    left = np.maximum(of.budget_bytes - of.other_bytes - slots_bytes, 0)
    inside = np.minimum(slots_bytes, of.budget_bytes - of.other_bytes)

    def draw(figure: Figure) -> None:
        axes = _axes(figure)
        at = np.arange(len(of.slots))
        floor = np.full(len(at), of.other_bytes)
        axes.bar(at, floor, 0.78, color=COLOURS["muted"])
        axes.bar(at, inside, 0.78, floor, color=COLOURS["experts"])
        axes.bar(at, left, 0.78, floor + inside, color=COLOURS["dispatch"])
        axes.axhline(of.budget_bytes, color=COLOURS["ink"], linewidth=1)
        axes.set_xticks(at, [str(size) for size in of.slots])
        axes.set_ylim(0, 1.08 * of.budget_bytes)
        axes.yaxis.set_major_formatter(lambda value, _: format_bytes(value))
        axes.set_xlabel("slots per layer", loc="left", labelpad=6)
        names = (("muted", "other weights"), ("experts", "slots"), ("dispatch", "left for KV"))
        for row, (colour, name) in enumerate(names):
            axes.text(
                1.03, 0.95 - 0.09 * row, name, transform=axes.transAxes, color=COLOURS[colour],
                fontsize=11,
            )  # fmt: skip

    return Picture(
        render("memory", _TOP_PX + _HEIGHT_PX + _BELOW_PX, draw),
        "One memory, two uses",
        f"{format_bytes(of.budget_bytes)} in all",
        f"Stacked bars: other weights {format_bytes(of.other_bytes)}, slots "
        f"{format_bytes(of.slot_bytes)} each over all layers, the rest for keys and values, for "
        f"{', '.join(map(str, of.slots))} slots per layer.",
    )


def _axes(figure: Figure) -> Axes:
    width = WIDTH_PX - _LEFT_PX - _RIGHT_PX
    axes = panel(figure, _LEFT_PX, _TOP_PX, width, _HEIGHT_PX)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _lines(
    name: str,
    title: str,
    curves: Sequence[Curve],
    values: Sequence[np.ndarray],
    label: Callable[[float, object], str],
    chosen: int,
    top: float | None = None,
) -> Picture:
    def draw(figure: Figure) -> None:
        axes = _axes(figure)
        axes.axvline(chosen, color=COLOURS["rule"], linewidth=1.5)
        for row, (curve, line) in enumerate(zip(curves, values, strict=True)):
            colour = COLOURS[_LINES[row % len(_LINES)]]
            dash = _DASHES[(row // len(_LINES)) % len(_DASHES)] if curve.online else ":"
            axes.plot(curve.slots, line, dash, color=colour, marker=".", linewidth=1.8)
            place = 0.97 - 0.085 * row
            axes.plot(
                [1.03, 1.10], [place, place], dash, color=colour, transform=axes.transAxes,
                clip_on=False, linewidth=1.8,
            )  # fmt: skip
            axes.text(
                1.12, place, clean(curve.name)[:14], transform=axes.transAxes, va="center",
                color=COLOURS["muted"], fontsize=11,
            )  # fmt: skip
        axes.set_ylim(0, top or 1.05 * max(float(line.max()) for line in values))
        axes.set_xlim(left=0)
        axes.yaxis.set_major_formatter(label)
        axes.set_xlabel("slots per layer", loc="left", labelpad=6)

    ends = ", ".join(
        f"{clean(curve.name)} {label(float(line[0]), None)} to {label(float(line[-1]), None)}"
        for curve, line in zip(curves, values, strict=True)
    )
    return Picture(
        render(name, _TOP_PX + _HEIGHT_PX + _BELOW_PX, draw),
        title,
        f"line: {chosen} slots, recommended",
        f"{title} against slots per layer, from the fewest to the most slots: {ends}.",
    )
