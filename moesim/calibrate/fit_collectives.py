"""Fit of a collective's protocols: where they switch, and what each costs.

Given the sizes between which a protocol serves, its cost is linear in non-negative coefficients,
so that least squares on the relative error has one answer. Dynamic programming over the measured
sizes then finds the switches. All of it is deterministic and needs no starting point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from moesim.extras import require
from moesim.operators.collectives import (
    Collective,
    CollectiveCoefficients,
    Protocol,
    ring_steps,
    wire_bytes,
)

__all__ = ["fit_collective"]

MAX_PROTOCOLS = 3
"""NCCL has LL, LL128 and Simple; a custom all-reduce has one-shot, two-shot and NCCL beyond."""
MIN_SIZES = 3
"""Sizes that a protocol must serve, of which launch and bandwidth take two."""
HUBER = 0.05
"""Relative error beyond which a point counts linearly: twice the usual spread of repeats of NCCL
measurements (2 % in the median, 10 % at p90)."""
PROTOCOL_PENALTY = 0.02
"""Loss that a further protocol must save: that of 16 points that are 5 % off. With half or twice
as much the held-out median error changes by less than 0.3 percentage points."""
EXPONENTS = (0, 1, -1)


@dataclass(frozen=True)
class _Points:
    """The rows of one collective: columns of the linear model and what was measured."""

    columns: np.ndarray  # [rows, 2 + D]: launch, steps, wire bytes of each number of ranks
    scale: np.ndarray  # [2 + D] largest entry of each column
    measured_s: np.ndarray  # [rows]


def fit_collective(
    collective: Collective, message_bytes: np.ndarray, ranks: np.ndarray, measured_s: np.ndarray
) -> CollectiveCoefficients | None:
    """Coefficients of one collective of one library version on one system.

    Args:
        collective: Which.
        message_bytes: [rows] sizes.
        ranks: [rows] numbers of ranks.
        measured_s: [rows] seconds.

    Returns:
        The coefficients, or ``None`` if there are too few sizes.
    """
    known = np.unique(ranks)
    points = _points(collective, message_bytes, ranks, measured_s, known)
    best: tuple[float, int, list[tuple[float, np.ndarray]]] | None = None
    for exponent in EXPONENTS if len(known) > 1 else EXPONENTS[:1]:
        found = _switches(points, message_bytes * np.asarray(ranks, float) ** -exponent)
        if found is not None and (best is None or found[0] < best[0] - 1e-9):
            best = (found[0], exponent, found[1])
    if best is None:
        return None
    protocols = tuple(
        Protocol(
            from_bytes=start,
            launch_s=float(values[0]),
            step_s=float(values[1]),
            wire_s_per_byte=tuple(float(value) for value in values[2:]),
        )
        for start, values in best[2]
    )
    return CollectiveCoefficients(
        collective=collective,
        ranks=tuple(int(count) for count in known),
        switch_exponent=best[1],
        protocols=protocols,
        on_bounds=tuple(_zeros(protocols, known)),
    )


def _points(
    collective: Collective,
    message_bytes: np.ndarray,
    ranks: np.ndarray,
    measured_s: np.ndarray,
    known: np.ndarray,
) -> _Points:
    columns = np.zeros((len(measured_s), 2 + len(known)))
    columns[:, 0] = 1
    if len(known) > 1:  # else launch and steps cannot be told apart
        columns[:, 1] = ring_steps(collective, ranks)
    sent = wire_bytes(collective, message_bytes, ranks)
    for place, count in enumerate(known):
        columns[:, 2 + place] = np.where(ranks == count, sent, 0.0)
    return _Points(columns, np.maximum(columns.max(axis=0), 1e-30), measured_s)


def _switches(
    points: _Points, place: np.ndarray
) -> tuple[float, list[tuple[float, np.ndarray]]] | None:
    """Least penalised loss over up to ``MAX_PROTOCOLS`` runs of sizes, with their coefficients."""
    places = np.unique(place)
    codes = np.searchsorted(places, place)
    fits: dict[tuple[int, int], tuple[float, np.ndarray] | None] = {}

    def run(first: int, last: int) -> tuple[float, np.ndarray] | None:
        if (first, last) not in fits:
            fits[first, last] = _fit_run(points, (codes >= first) & (codes < last))
        return fits[first, last]

    count = len(places)
    reached: list[dict[int, tuple[float, int]]] = [{0: (0.0, 0)}]
    for _ in range(MAX_PROTOCOLS):
        level: dict[int, tuple[float, int]] = {}
        for first, (loss, _start) in reached[-1].items():
            for last in range(first + MIN_SIZES, count + 1):
                fitted = run(first, last)
                if fitted is None:
                    continue
                total = loss + fitted[0] + PROTOCOL_PENALTY
                if last not in level or total < level[last][0]:
                    level[last] = (total, first)
        reached.append(level)
    ends = [(level[count][0], depth) for depth, level in enumerate(reached) if count in level]
    if not ends:
        return None
    loss, depth = min(ends)
    cuts = [count]
    for level in reached[depth:0:-1]:
        cuts.append(level[cuts[-1]][1])
    found = []
    for first, last in pairwise(reversed(cuts)):
        start = 0.0 if first == 0 else float(np.sqrt(places[first - 1] * places[first]))
        fitted = run(first, last)
        if fitted is not None:  # always: it was reached through it
            found.append((start, fitted[1]))
    return loss, found


def _fit_run(points: _Points, rows: np.ndarray) -> tuple[float, np.ndarray] | None:
    """Loss and coefficients of one protocol over some rows; ``None`` if those are too few."""
    optimize = require("scipy.optimize", "measured", "fitting coefficients")
    columns = points.columns[rows] / points.scale
    measured = points.measured_s[rows]
    used = (columns > 0).any(axis=0)
    if len(measured) < max(MIN_SIZES + 1, int(used.sum())) or not used[2:].all():
        return None
    relative = columns / measured[:, None]
    weight = np.ones(len(measured))
    for _ in range(3):  # reweighting towards the Huber loss
        values, _norm = optimize.nnls(relative * weight[:, None], weight)
        error = np.abs(relative @ values - 1)
        weight = np.sqrt(np.minimum(1.0, HUBER / np.maximum(error, 1e-12)))
    loss = np.where(error < HUBER, error**2 / 2, HUBER * (error - HUBER / 2)).sum()
    return float(loss), values / points.scale


def _zeros(protocols: Sequence[Protocol], known: np.ndarray) -> list[str]:
    """Names of the coefficients that ended at 0, their lower bound."""
    names = []
    for index, protocol in enumerate(protocols):
        if protocol.launch_s == 0:
            names.append(f"protocols[{index}].launch_s")
        if protocol.step_s == 0 and len(known) > 1:
            names.append(f"protocols[{index}].step_s")
        names += [
            f"protocols[{index}].wire_s_per_byte[{place}]"
            for place, value in enumerate(protocol.wire_s_per_byte)
            if value == 0
        ]
    return names
