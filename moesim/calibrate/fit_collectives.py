"""Fit of a collective's protocols: where they switch, and what each costs.

Given the sizes between which a protocol serves, its cost is linear in non-negative coefficients,
so that least squares on the relative error has one answer. Dynamic programming over the measured
sizes then finds the switches. All of it is deterministic and needs no starting point.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from moesim.extras import require
from moesim.operators.collectives import (
    Collective,
    CollectiveCoefficients,
    Protocol,
    collective_s,
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
    best, best_loss = None, np.inf
    for exponent in EXPONENTS if len(known) > 1 else EXPONENTS[:1]:
        place = message_bytes * np.asarray(ranks, float) ** -exponent
        for protocols in _switches(points, place):
            document = CollectiveCoefficients(
                collective=collective,
                ranks=tuple(int(count) for count in known),
                switch_exponent=exponent,
                protocols=protocols,
                on_bounds=tuple(_zeros(protocols, known)),
            )
            # Judged as it will be used: a switch never makes a larger message faster.
            error = collective_s(document, message_bytes, ranks) / measured_s - 1
            loss = _huber(np.abs(error)) + PROTOCOL_PENALTY * len(protocols)
            if loss < best_loss - 1e-9:
                best, best_loss = document, loss
    return best


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


def _switches(points: _Points, place: np.ndarray) -> Iterator[tuple[Protocol, ...]]:
    """The best protocols of each number up to ``MAX_PROTOCOLS``, by the sum of their losses."""
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
                if fitted is not None and loss + fitted[0] < level.get(last, (np.inf,))[0]:
                    level[last] = (loss + fitted[0], first)
        reached.append(level)
    for depth in range(1, MAX_PROTOCOLS + 1):
        if count in reached[depth]:
            cuts = [count]
            for level in reached[depth:0:-1]:
                cuts.append(level[cuts[-1]][1])
            runs = list(pairwise(reversed(cuts)))
            yield tuple(_protocol(places, *ends, run(*ends)) for ends in runs)


def _protocol(
    places: np.ndarray, first: int, _last: int, fitted: tuple[float, np.ndarray] | None
) -> Protocol:
    """The protocol of a run of sizes; it starts halfway, by ratio, behind the run before."""
    assert fitted is not None  # noqa: S101 - for the type checker; the run was reached through it
    values = fitted[1].tolist()
    return Protocol(
        from_bytes=0.0 if first == 0 else float(np.sqrt(places[first - 1] * places[first])),
        launch_s=values[0],
        step_s=values[1],
        wire_s_per_byte=tuple(values[2:]),
    )


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
    return _huber(error), values / points.scale


def _huber(error: np.ndarray) -> float:
    """Sum of squares that grow linearly beyond ``HUBER``."""
    return float(np.where(error < HUBER, error**2 / 2, HUBER * (error - HUBER / 2)).sum())


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
