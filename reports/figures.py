"""The pictures of a plan: expert load, device load, traffic, and time per layer.

Each is drawn once per placement on a scale that before and after share, as SVG for a page. Heat
maps are images of one pixel per cell inside the SVG, so that 58 × 256 experts stay small.
Palettes run from blue to orange, which every common form of colour blindness tells apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moesim.reports import arithmetic
from moesim.reports.arithmetic import before_after, layer_time_s, relative_load
from moesim.reports.svg import COLOURS, WIDTH_PX, panel, render
from moesim.reports.text import clean, ratio
from moesim.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure

    from moesim.planners.outcome import PlannerScore, PlanOutcome

__all__ = ["Picture", "device_load", "expert_load", "layer_time", "traffic"]

_LEFT_PX = 48.0
_TOP_PX = 10.0
_INNER_PX = WIDTH_PX - _LEFT_PX - 8.0
_BELOW_PX = 70.0  # ticks, then label and colour bar side by side

# Light to dark, one hue family; and blue – nothing – orange about an even load.
_SEQUENTIAL = ("#f4f1ea", "#cfe0e8", "#8fbfd9", "#4a93c0", "#1b659d", "#0b3a68", "#061f3d")
_DIVERGING = ("#0b4f8a", "#5b9bc9", "#b9d5e6", "#f3f0ea", "#f6c78f", "#e58a2e", "#a8470a")


@dataclass(frozen=True)
class Picture:
    """A figure in a page.

    Attributes:
        svg: The drawing.
        title: What and of which placement.
        remark: The number to take away.
        alt: What a reader who does not see it should know.
    """

    svg: str
    title: str
    remark: str
    alt: str


def expert_load(outcome: PlanOutcome) -> Picture:
    """Load of every expert over the mean of its layer."""
    relative = relative_load(outcome.loads)
    layers, experts = relative.shape
    top = max(float(relative.max()), 1.0)

    def draw(figure: Figure) -> None:
        from matplotlib.colors import Normalize

        axes = panel(figure, _LEFT_PX, _TOP_PX, _INNER_PX, height)
        norm = Normalize(0, top)
        _heat(axes, relative, _SEQUENTIAL, norm)
        _ticks(axes.xaxis, range(experts), 8)
        _ticks(axes.yaxis, outcome.moe_layers, 8)
        axes.set_xlabel("expert", loc="left", labelpad=6)
        axes.set_ylabel("MoE layer")
        marks = ((0.0, "0"), (1.0, "1×"), (top, ratio(top)))
        _scale(figure, "load ÷ layer mean", _SEQUENTIAL, norm, marks)

    height = _rows_px(layers)
    return Picture(
        render("expert-load", _TOP_PX + height + _BELOW_PX, draw),
        "Expert load",
        f"hottest {ratio(top)} the mean",
        f"Heat map of the load of {experts} experts in {layers} layers; the hottest expert has "
        f"{ratio(top)} the mean of its layer.",
    )


def device_load(outcome: PlanOutcome) -> tuple[Picture, ...]:
    """Load of every device over the mean of its layer, before and after."""
    loads = [arithmetic.device_load(outcome, score.cost) for score in before_after(outcome)]
    top = max(max(float(load.max()) for load in loads), 1.01)
    height = _rows_px(loads[0].shape[0])

    def picture(score: PlannerScore, load: np.ndarray) -> Picture:
        def draw(figure: Figure) -> None:
            from matplotlib.colors import TwoSlopeNorm

            norm = TwoSlopeNorm(1.0, 0.0, top)
            axes = panel(figure, _LEFT_PX, _TOP_PX, _INNER_PX, height)
            _heat(axes, load, _DIVERGING, norm)
            _node_lines(axes, outcome.cluster.node_of_device, across=False)
            _ticks(axes.xaxis, range(load.shape[1]), 9)
            _ticks(axes.yaxis, outcome.moe_layers, 8)
            axes.set_xlabel("device", loc="left", labelpad=6)
            axes.set_ylabel("MoE layer")
            marks = ((0.0, "0"), (1.0, "even"), (top, ratio(top)))
            _scale(figure, "load ÷ layer mean", _DIVERGING, norm, marks)

        name, worst = clean(score.name), ratio(float(load.max()))
        return Picture(
            render(f"device-load-{score.name}", _TOP_PX + height + _BELOW_PX, draw),
            f"Device load, {name}",
            f"fullest {worst} the mean",
            f"Heat map of the load of {load.shape[1]} devices in {load.shape[0]} layers under "
            f"{name}; the fullest device has {worst} the mean of its layer.",
        )

    return tuple(map(picture, before_after(outcome), loads))


def traffic(outcome: PlanOutcome) -> tuple[Picture, ...]:
    """Bytes per step from device to device, before and after."""
    top = max(float(score.cost.traffic_bytes.max()) for score in before_after(outcome)) or 1.0
    side = _INNER_PX

    def picture(score: PlannerScore) -> Picture:
        sent = np.array(score.cost.traffic_bytes, np.float64)
        np.fill_diagonal(sent, np.nan)
        total = format_bytes(float(np.nansum(sent)))

        def draw(figure: Figure) -> None:
            from matplotlib.colors import Normalize

            axes = panel(figure, _LEFT_PX, _TOP_PX, side, side)
            norm = Normalize(0, top)
            _heat(axes, sent, _SEQUENTIAL, norm)
            _node_lines(axes, outcome.cluster.node_of_device, across=True)
            _ticks(axes.xaxis, range(len(sent)), 9)
            _ticks(axes.yaxis, range(len(sent)), 9)
            axes.set_xlabel("to device", loc="left", labelpad=6)
            axes.set_ylabel("from device")
            marks = ((0.0, "0"), (top / 2, format_bytes(top / 2)), (top, format_bytes(top)))
            _scale(figure, "bytes per step", _SEQUENTIAL, norm, marks)

        name, cost = clean(score.name), score.cost
        remark = f"{format_bytes(cost.internode_bytes)} between nodes"
        return Picture(
            render(f"traffic-{score.name}", _TOP_PX + side + _BELOW_PX, draw),
            name,
            remark if outcome.cluster.nodes > 1 else f"{total} in all",
            f"Matrix of the bytes per step between {len(sent)} devices under {name}; "
            f"{total} in all, {remark}.",
        )

    return tuple(map(picture, before_after(outcome)))


def layer_time(outcome: PlanOutcome) -> tuple[Picture, ...]:
    """Dispatch, experts and combine of every layer, before and after."""
    pair = before_after(outcome)
    before_s = layer_time_s(pair[0].cost)
    top_s = max(float(layer_time_s(score.cost).max()) for score in pair) or 1.0
    layers, height = len(before_s), 200.0

    def picture(score: PlannerScore) -> Picture:
        cost = score.cost
        parts = {
            "dispatch": cost.layer_dispatch_s,
            "experts": cost.layer_compute_s,
            "combine": cost.layer_combine_s,
        }

        def draw(figure: Figure) -> None:
            from matplotlib.ticker import MaxNLocator

            axes = panel(figure, _LEFT_PX + 8, _TOP_PX, _INNER_PX - 8, height)
            floor_s = np.zeros(layers)
            for part, part_s in parts.items():
                axes.bar(np.arange(layers), part_s, 0.78, floor_s, color=COLOURS[part])
                floor_s = floor_s + part_s
            if score is not pair[0]:
                axes.stairs(
                    before_s, np.arange(layers + 1) - 0.5, baseline=None, color=COLOURS["muted"]
                )
            axes.set_xlim(-0.6, layers - 0.4)
            axes.set_ylim(0, 1.05 * top_s)
            axes.spines[["top", "right"]].set_visible(False)
            _ticks(axes.xaxis, outcome.moe_layers, 8)
            axes.yaxis.set_major_locator(MaxNLocator(5))
            axes.yaxis.set_major_formatter(lambda value_s, _: format_seconds(value_s))
            axes.set_xlabel("MoE layer", loc="left", labelpad=6)

        name, worst = clean(score.name), format_seconds(float(layer_time_s(cost).max()))
        sums = ", ".join(f"{k} {format_seconds(float(v.sum()))}" for k, v in parts.items())
        return Picture(
            render(f"layer-time-{score.name}", _TOP_PX + height + 46, draw),
            name,
            f"slowest layer {worst}",
            f"Stacked bars of the time of {layers} layers under {name}: {sums}; the slowest layer "
            f"takes {worst}.",
        )

    return tuple(map(picture, pair))


def _rows_px(rows: int) -> float:
    return float(min(max(24 * rows, 120), max(210, 5 * rows)))


def _colours(stops: Sequence[str]) -> Colormap:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("report", list(stops))


def _heat(axes: Axes, values: np.ndarray, stops: Sequence[str], norm: Normalize) -> None:
    axes.imshow(values, _colours(stops), norm, aspect="auto", interpolation="none")


def _ticks(axis: object, labels: Sequence[int], most: int) -> None:
    """At most ``most`` ticks, at a round distance from the first."""
    step = next(s for s in (1, 2, 4, 8, 16, 32, 64, 128, 256, 10**6) if len(labels) <= s * most)
    places = list(range(0, len(labels), step))
    axis.set_ticks(places, [str(labels[i]) for i in places])  # type: ignore[attr-defined]


def _node_lines(axes: Axes, node_of_device: np.ndarray, *, across: bool) -> None:
    edges = np.flatnonzero(np.diff(node_of_device)) + 0.5
    width = 2.5 if len(edges) < 8 else 0.7
    for edge in edges:
        axes.axvline(edge, color=COLOURS["card"], linewidth=width)
        if across:
            axes.axhline(edge, color=COLOURS["card"], linewidth=width)


def _scale(
    figure: Figure,
    label: str,
    stops: Sequence[str],
    norm: Normalize,
    marks: Sequence[tuple[float, str]],
) -> None:
    """A colour bar along the lower edge, with values written at ``marks``."""
    top_px = figure.get_figheight() * figure.dpi - 36
    axes = panel(figure, WIDTH_PX - 175, top_px, 150, 9)
    axes.imshow(
        np.linspace(0, 1, 128)[None, :],
        _colours(stops),
        aspect="auto",
        extent=(0, 1, 0, 1),
        interpolation="none",
    )
    axes.spines[:].set_visible(False)
    axes.set_yticks([])
    axes.set_xticks([float(norm(value)) for value, _ in marks], [text for _, text in marks])
    axes.text(
        -0.06, 0.5, label, ha="right", va="center", color=COLOURS["muted"],
        transform=axes.transAxes,
    )  # fmt: skip
