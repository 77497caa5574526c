"""The pictures of ``moesim capacity``: frontier, costs, memory, and time by call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.reports.figures import Picture
from moesim.reports.svg import COLOURS, WIDTH_PX, panel, render
from moesim.reports.text import clean, count
from moesim.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from moesim.forward.simulate import ForwardStep

__all__ = ["cost", "frontier", "memory", "operators"]

_LEFT_PX, _TOP_PX, _HEIGHT_PX, _BELOW_PX, _RIGHT_PX = 64.0, 14.0, 220.0, 50.0, 14.0
_SHOWN_CALLS = 9

Data = dict[str, Any]


def frontier(data: Data) -> Picture:
    """Throughput of a device against the speed that a user sees, with 80 % intervals."""
    points = data["frontier"]
    users = np.array([one["tokens_per_s_per_user"] for one in points])
    rates, low, high = (
        np.array([one[key] for one in points]) for key in ("tokens_per_s_per_device", "lo", "hi")
    )
    best, target = data["best"], data["targets"]["tpot_s"]

    def draw(figure: Figure) -> None:
        axes = _axes(figure)
        axes.fill_between(users, low, high, color=COLOURS["experts"], alpha=0.18, linewidth=0)
        axes.plot(users, rates, color=COLOURS["experts"], marker="o", markersize=4, linewidth=1.6)
        if best["tokens_per_s_per_user"]:
            axes.plot(
                [best["tokens_per_s_per_user"]], [best["tokens_per_s_per_device"]], "D",
                color=COLOURS["combine"], markersize=8,
            )  # fmt: skip
        if target is not None:
            axes.axvline(1 / target, color=COLOURS["rule"], linewidth=1.5)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: count(value))
        axes.minorticks_off()
        axes.set_xlim(left=0)
        axes.set_xlabel(
            "tokens/s per user; vertically, tokens/s per device", loc="left", labelpad=6
        )

    remark = "diamond: the answer" + ("; line: target of TPOT" if target is not None else "")
    listed = "; ".join(
        f"{one['name']}: {rate:.0f} per device at {user:.0f} per user"
        for one, rate, user in zip(points, rates, users, strict=True)
    )
    return Picture(
        render("frontier", _TOP_PX + _HEIGHT_PX + _BELOW_PX, draw),
        "Throughput against interactivity",
        remark,
        f"Frontier with 80 % intervals. {listed}.",
    )


def cost(data: Data) -> Picture | None:
    """Dollars, or joules, per token against the speed that a user sees."""
    points = data["frontier"]
    key, title, unit = "usd_per_mtok", "Cost", "USD per million tokens"
    if any(one[key] is None for one in points):
        key, title, unit = "energy_j_per_token", "Energy", "J per token"
    if any(one[key] is None for one in points):
        return None
    users = np.array([one["tokens_per_s_per_user"] for one in points])
    values = np.array([one[key] for one in points])

    def draw(figure: Figure) -> None:
        axes = _axes(figure)
        axes.plot(users, values, color=COLOURS["dispatch"], marker="o", markersize=4, linewidth=1.6)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        axes.minorticks_off()
        axes.set_xlim(left=0)
        axes.set_xlabel(f"tokens/s per user; vertically, {unit}", loc="left", labelpad=6)

    return Picture(
        render("cost", _TOP_PX + _HEIGHT_PX + _BELOW_PX, draw),
        f"{title} against interactivity",
        unit,
        f"{title} of the frontier, {unit}: "
        + ", ".join(f"{v:.3g} at {u:.0f}" for u, v in zip(users, values, strict=True))
        + " tokens/s per user.",
    )


def memory(data: Data, available_bytes: float) -> Picture:
    """What a decoding device holds."""
    parts = {name: size for name, size in data["best"]["memory"].items() if size > 0}
    return _bars(
        "memory",
        "Memory of a decoding device",
        f"{format_bytes(sum(parts.values()))} of {format_bytes(available_bytes)}",
        parts,
        format_bytes,
    )


def operators(name: str, step: ForwardStep) -> Picture:
    """Time by call, the longest first."""
    times: dict[str, float] = {}
    for priced in step.ops:
        times[priced.op.name] = times.get(priced.op.name, 0.0) + priced.time_s
    ranked = sorted(times.items(), key=lambda item: -item[1])
    shown = dict(ranked[:_SHOWN_CALLS])
    rest = sum(time_s for _, time_s in ranked[_SHOWN_CALLS:])
    if rest:
        shown["others"] = rest
    title = f"Time of a {name} step"
    return _bars(f"calls-{name}", title, format_seconds(step.step_s), shown, format_seconds)


def _bars(name: str, title: str, remark: str, parts: dict[str, float], label: Any) -> Picture:
    values = list(parts.values())
    height_px = 26.0 * len(values)

    def draw(figure: Figure) -> None:
        axes = panel(figure, 148.0, _TOP_PX, WIDTH_PX - 148.0 - 72.0, height_px)
        axes.spines[["top", "right", "bottom", "left"]].set_visible(False)
        places = np.arange(len(values))[::-1]
        axes.barh(places, values, 0.66, color=COLOURS["experts"])
        axes.set_yticks(places, [clean(part)[:22] for part in parts])
        axes.set_xticks([])
        axes.tick_params(axis="y", length=0)
        for place, value in zip(places, values, strict=True):
            axes.text(value, place, " " + label(value), va="center", fontsize=11)

    return Picture(
        render(name, _TOP_PX + height_px + 12.0, draw),
        title,
        remark,
        f"{title}: " + ", ".join(f"{part} {label(value)}" for part, value in parts.items()) + ".",
    )


def _axes(figure: Figure) -> Axes:
    width_px = WIDTH_PX - _LEFT_PX - _RIGHT_PX
    axes = panel(figure, _LEFT_PX, _TOP_PX, width_px, _HEIGHT_PX)
    axes.spines[["top", "right"]].set_visible(False)
    return axes
