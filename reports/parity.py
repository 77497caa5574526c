"""Predicted against measured time, operator by operator: the cost model at a glance."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from moesim.safe_io import write_atomic

__all__ = ["draw_parity"]

COLUMNS = 4
POINTS = 4000
"""Points drawn of one operator: more only paint over each other."""
PANEL_INCHES = 2.7
BAND = 1.25
"""The grey band: predictions within 25 % of the measurement."""


def draw_parity(
    points: Mapping[str, tuple[np.ndarray, np.ndarray]], path: str | Path, note: str
) -> Path:
    """Write a PNG with a panel for each operator, both axes logarithmic.

    Args:
        points: By operator, predicted and measured seconds ``[rows]``.
        path: Where to.
        note: What rows these are, below the panels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(points))
    rows = -(-len(points) // columns)
    figure = Figure((columns * PANEL_INCHES, rows * PANEL_INCHES + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for place in axes.flat[len(points) :]:
        place.set_axis_off()
    for place, (name, (predicted, measured)) in zip(axes.flat, points.items(), strict=False):
        drawn = np.random.default_rng(0).permutation(len(measured))[:POINTS]
        ends = np.array(
            [min(predicted.min(), measured.min()), max(predicted.max(), measured.max())]
        )
        place.fill_between(ends, ends / BAND, ends * BAND, color="0.88", linewidth=0)
        place.plot(ends, ends, color="0.35", linewidth=0.8)
        place.scatter(
            measured[drawn], predicted[drawn], s=2, alpha=0.25, color="#0b4f8a", linewidths=0
        )
        place.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
        median = float(np.median(np.abs(predicted / measured - 1)))
        place.set_title(f"{name}: median error {median:.1%}", fontsize=8)
        place.tick_params(labelsize=6, which="both")
    figure.supxlabel(f"measured (s). {note}", fontsize=8)
    figure.supylabel("predicted (s)", fontsize=8)
    stream = io.BytesIO()
    # Without a software tag: the same points make the same file.
    figure.savefig(stream, format="png", dpi=120, metadata={"Software": None})
    return write_atomic(path, stream.getvalue())
