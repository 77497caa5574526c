"""From counts as an engine dumps them to counts of MoE layers in recorded steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moesim.errors import InputError
from moesim.traces.importers.contents import ImportOptions, StepCounts
from moesim.traces.importers.padded import choose_layers

__all__ = ["strip_idle"]


def strip_idle(
    counts: np.ndarray,
    layers: tuple[int, ...],
    options: ImportOptions,
    file: Path,
    *,
    dialect: str,
    stepwise: bool,
    warnings: tuple[str, ...] = (),
) -> StepCounts:
    """Drop steps without any token and layers without experts.

    Args:
        counts: [W, L, E] integers.
        layers: [L] model layer index of each row.
        options: As given by the caller.
        file: For messages.
        dialect: The form that was found.
        stepwise: Whether W are steps of the recording.
        warnings: What the reader of the counts should know.

    Raises:
        InputError: If a count is negative, E is not the model's, or nothing was counted.
    """
    if counts.ndim != 3 or counts.dtype.kind not in "iu" or counts.shape[2] != options.experts:
        raise InputError(
            "not counts of this model",
            file=file,
            field="counts",
            found=f"shape {counts.shape} (steps, layers, experts) of {counts.dtype.name}",
            allowed=f"integers for {options.experts} experts",
            fix="pass the model's number of experts with --experts",
        )
    if counts.size and int(counts.min()) < 0:
        raise InputError(
            "a count is negative",
            file=file,
            field="counts",
            found=int(counts.min()),
            allowed="0 or more",
            fix="record again",
        )
    used_steps = np.flatnonzero(counts.any(axis=(1, 2)))
    rows = [int(row) for row in np.flatnonzero(counts.any(axis=(0, 2)))]
    if not rows:
        raise InputError(
            "nothing was counted", file=file, field="counts", fix="record while requests are served"
        )
    chosen, moe_layers = choose_layers(rows, layers, options.moe_layers, file)
    return StepCounts(
        counts=counts[used_steps][:, chosen].astype(np.int64),
        moe_layers=moe_layers,
        dialect=dialect,
        stepwise=stepwise and len(counts) > 1,
        dropped={
            "empty_steps": len(counts) - len(used_steps),
            "dense_layers": len(layers) - len(rows),
        },
        warnings=warnings,
    )
