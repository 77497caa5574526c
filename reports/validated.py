"""What a report says of placements whose experts were run: sentences, facts, a table, a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moesim.reports.figures import Picture
from moesim.reports.svg import COLOURS, WIDTH_PX, panel, render
from moesim.reports.tables import Fact, Table
from moesim.reports.text import NOTHING, clean, count, percent, ratio
from moesim.units import format_seconds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moesim.planners.validation import PlacementValidation, ValidatedPlanner

__all__ = ["validation_facts", "validation_picture", "validation_table", "validation_text"]

_HELD = {True: "yes", False: "no", None: "within the noise"}
_MARKS = (("experts", "o"), ("dispatch", "s"), ("combine", "^"))


def validation_text(found: PlacementValidation) -> str:
    """What was run where, at which scale."""
    scale = found.scale
    smaller = []
    if scale.width_divisor > 1:
        smaller.append(f"widths 1/{scale.width_divisor} ({scale.hidden} × {scale.inter})")
    if scale.rows_divisor > 1:
        smaller.append(f"1/{scale.rows_divisor} of the tokens")
    size = f"at {' and '.join(smaller)}" if smaller else "at full size"
    text = (
        f"The experts of every device were run on {found.processor}, one device after the other, "
        f"{size}, in {scale.dtype}; {found.layers_run} of {count(found.planned)} layers of "
        f"batches, {found.rounds} rounds, timed by {_CLOCKS.get(found.clock, found.clock)}. A "
        "layer takes as long as its slowest device."
    )
    if found.interrupted:
        text += " The measurement was interrupted."
    return clean(" ".join([text, *(f"Note: {note}." for note in found.notes)]))


_CLOCKS = {"thread-cpu": "one thread's processor time", "cuda-event": "events of the GPU"}


def validation_facts(found: PlacementValidation) -> tuple[Fact, ...]:
    """How well the prediction stands up."""
    agreement = NOTHING if found.agreement is None else percent(found.agreement)
    rank = NOTHING if found.spearman is None else f"{found.spearman:.3f}"
    return (
        Fact(
            "error of the slowest device's time",
            percent(found.median_ape),
            f"median; {percent(found.p90_ape)} at the 90th percentile; all devices "
            f"{percent(found.device_median_ape)}; cost model {clean(found.model)}, "
            f"{found.fitted_points} other loads",
        ),
        Fact("rank correlation", rank, f"Spearman, {count(found.points)} points"),
        Fact(
            "better placement predicted",
            agreement,
            f"{found.pairs_agreeing} of {found.pairs_beyond_noise} pairs that differ by more than "
            f"the noise, of {found.pairs}",
        ),
        Fact("noise", f"± {percent(found.noise)}", "of a slowest device's time, from the repeats"),
    )


def validation_table(found: PlacementValidation) -> Table:
    """Measured against predicted, by placement."""
    return Table(
        (
            "planner",
            "measured",
            "predicted",
            "measured speedup",
            "95 % interval",
            "predicted speedup",
            "gain holds",
        ),
        tuple(_row(clean(name), row, found) for name, row in found.planners.items()),
    )


def _row(name: str, row: ValidatedPlanner, found: PlacementValidation) -> tuple[str, ...]:
    is_base = name == clean(found.baseline)
    return (
        name,
        format_seconds(row.measured_s, pad=True),
        format_seconds(row.predicted_s, pad=True),
        ratio(row.measured_speedup),
        NOTHING if is_base else f"{ratio(row.speedup_lo)} – {ratio(row.speedup_hi)}",
        ratio(row.predicted_speedup),
        NOTHING if is_base else _HELD[row.gain_holds],
    )


def validation_picture(found: PlacementValidation) -> Picture:
    """Measured over predicted, a mark per layer of a batch and placement."""
    height, left = 260.0, 64.0

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        axes = panel(figure, left, 26.0, WIDTH_PX - left - 8.0, height)
        values = np.concatenate([found.measured_s.ravel(), found.predicted_s.ravel()])
        low, high = float(values.min()), float(values.max())
        margin = 0.05 * (high - low) or 0.05 * high
        ends = (low - margin, high + margin)
        axes.plot(ends, ends, color=COLOURS["muted"], linewidth=1)
        for place, name in enumerate(found.planner_names):
            colour, mark = _MARKS[place % len(_MARKS)]
            axes.plot(
                found.predicted_s[place],
                found.measured_s[place],
                mark,
                markersize=4,
                color=COLOURS[colour],
                label=clean(name),
            )
        axes.set_xlim(*ends)
        axes.set_ylim(*ends)
        axes.spines[["top", "right"]].set_visible(False)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(4))
            axis.set_major_formatter(lambda value_s, _: format_seconds(value_s))
        axes.set_xlabel("predicted", loc="left", labelpad=6)
        axes.set_title("measured", loc="left", fontsize=12, color=COLOURS["muted"])
        axes.legend(frameon=False, loc="lower right", fontsize=11, labelcolor=COLOURS["ink"])

    rank = "" if found.spearman is None else f", rank correlation {found.spearman:.2f}"
    return Picture(
        render("validation", height + 76.0, draw),
        "Slowest device of a layer",
        f"median error {percent(found.median_ape)}",
        f"Measured against predicted seconds of {found.points} layers of batches under "
        f"{', '.join(map(clean, found.planner_names))}: median error "
        f"{percent(found.median_ape)}{rank}.",
    )
