"""Writing the fits that moesim ships: all rows fitted, intervals from rows held out, provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moesim.calibrate.fit_file import with_version
from moesim.calibrate.frame import Frame
from moesim.calibrate.intervals import LEVEL, MIN_RESIDUALS
from moesim.calibrate.operator import CalibratedOperator
from moesim.operators.fitted import Band, FittedOperator, KernelFit
from moesim.operators.moe_fits import FittedMoe
from moesim.safe_io import write_atomic

__all__ = ["bands", "fitted_operator", "held_out", "write_operator"]

PARTS = 4
"""Parts that shapes are cut into, each held out in turn, for the residuals behind the bands."""
MANY_ROWS = 100_000
"""From so many rows on one half of the shapes is held out once, on ``BAND_SYSTEMS`` systems:
residuals enough. Kernels of other systems take the bands of the same kernel on these."""
BAND_SYSTEMS = 3
BANDS = 3
TRANSFER_ROWS = 20_000
"""Rows of a system that are predicted by the others' fits."""
DIGITS = 5


def fitted_operator(
    operator: CalibratedOperator[Any],
    table: Any,
    *,
    source: str,
    date: str,
    command: str,
) -> FittedOperator[Any]:
    """Fit every kernel on all of its rows, with the intervals of rows that a fit had not seen.

    Args:
        operator: The model.
        table: Rows after hygiene.
        source: What was read: the package's name, or a folder.
        date: Of the fit, as given by the caller.
        command: That repeats it.
    """
    frame = table.frame
    everything = np.ones(len(frame), bool)
    fits: Mapping[str, Any] = operator.fit(table, everything)
    predicted = held_out(operator, table)
    dropped = table.report.findings if table.report is not None else ()
    return FittedOperator[Any](
        operator=operator.name,
        source=with_version(source),
        rows=len(frame),
        rows_dropped={finding.rule: len(finding.rows) for finding in dropped},
        date=date,
        command=command,
        transfer=_transfer(operator, table, fits),
        fits=_with_bands(fits, frame, predicted),
    )


def held_out(operator: CalibratedOperator[Any], table: Any) -> np.ndarray:
    """Times by fits that had not seen the row's shape, ``[rows]``; NaN for rows not held out.

    An operator that is asked for any size of few shapes has a ``held_out_key`` of its own.
    """
    key = getattr(operator, "held_out_key", operator.shape_key)(table)
    many = len(key) > MANY_ROWS
    parts = 2 if many else PARTS
    part = np.random.default_rng(0).permutation(int(key.max()) + 1)[key] % parts
    predicted = np.full(len(key), np.nan)
    asked = _most_engines(table.frame) if many else np.ones(len(key), bool)
    for number in range(1 if many else parts):
        held, rest = asked & (part == number), asked & (part != number)
        if held.any() and rest.any():
            fits = operator.fit(table, rest)
            # Rows of kernels that too few rows were left of say nothing of a fit of their own.
            own = held & _has_fit(table.frame, fits)
            predicted[own] = operator.predict(table, fits)[own]
    return predicted


def _has_fit(frame: Frame, fits: Mapping[str, Any]) -> np.ndarray:
    """Rows whose kernel was fitted itself, ``[rows] bool``."""
    found = np.zeros(len(frame), bool)
    if fits:
        names = _label_names(frame, fits)
        members = _members(frame, names)
        for fit in fits.values():
            key = tuple(str(value) for name, value in fit.labels.items() if name in names)
            found[members.get(key, [])] = True
    return found


def _most_engines(frame: Frame) -> np.ndarray:
    """Rows of the few systems with the most rows, ``[rows] bool``: all engines run there."""
    counts = np.bincount(frame["system"], minlength=len(frame.labels["system"]))
    return np.isin(frame["system"], np.argsort(-counts, kind="stable")[:BAND_SYSTEMS])


def bands(predicted_s: np.ndarray, measured_s: np.ndarray) -> tuple[Band, ...]:
    """The central 80 % of measured over predicted time, by thirds of the predicted times.

    Args:
        predicted_s: ``[rows]``; NaN for rows without a prediction.
        measured_s: ``[rows]``.

    Returns:
        One band where there are few rows, none where there are too few for any.
    """
    known = np.isfinite(predicted_s)
    ratio, place = (measured_s / predicted_s)[known], predicted_s[known]
    if len(ratio) < MIN_RESIDUALS:
        return ()
    count = BANDS if len(ratio) >= BANDS * MIN_RESIDUALS else 1
    cuts = np.quantile(place, np.arange(1, count) / count)
    which = np.searchsorted(cuts, place)
    found = []
    for number in range(count):
        part = ratio[which == number]
        if len(part):
            lo, hi = np.quantile(part, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            end = float(cuts[number]) if number < count - 1 else None
            found.append(Band(up_to_s=end, lo=float(lo), hi=float(hi)))
    return tuple(found)


def write_operator(path: Path, document: FittedOperator[Any] | FittedMoe) -> Path:
    """The document as JSON, one line per fit, numbers to ``DIGITS`` digits, defaults left out."""
    plain = document.model_dump(mode="json", exclude={"fits"})
    head = {"schema": document.schema_id, **_rounded(plain)}
    lines = [json.dumps(name) + ": " + json.dumps(value) for name, value in head.items()]
    fits = [
        json.dumps(_rounded(fit.model_dump(mode="json", exclude_defaults=True)))
        for fit in document.fits
    ]
    text = "{\n " + ",\n ".join(lines) + ',\n "fits": [\n  ' + ",\n  ".join(fits) + "\n ]\n}\n"
    return write_atomic(path, text)


def _with_bands(
    fits: Mapping[str, KernelFit], frame: Frame, predicted: np.ndarray
) -> tuple[KernelFit, ...]:
    """The fits with their own bands, or their kernel's on all systems, or those of all kernels.

    The nearest of which enough rows were held out count.
    """
    held = np.flatnonzero(np.isfinite(predicted))
    ratio = frame.take(held), predicted[held], frame["latency_s"][held]
    of_all = bands(*ratio[1:])
    labels = _label_names(frame, fits)
    parts = [
        {key: bands(ratio[1][rows], ratio[2][rows]) for key, rows in _members(ratio[0], n).items()}
        for n in (labels, [name for name in labels if name not in ("system", "version")])
    ]
    found = []
    for fit in fits.values():
        values = {name: str(value) for name, value in fit.labels.items() if name in labels}
        own = parts[0].get(tuple(values.values()), ())
        values.pop("system"), values.pop("version")
        same = parts[1].get(tuple(values.values()), ())
        found.append(fit.model_copy(update={"bands": own or same or of_all}))
    return tuple(found)


def _label_names(frame: Frame, fits: Mapping[str, KernelFit]) -> list[str]:
    """Labels that tell the fits apart and that the rows have, in the fits' order."""
    first = next(iter(fits.values()))
    return [name for name in first.labels if name in frame.columns]


def _members(frame: Frame, names: Sequence[str]) -> dict[tuple[str, ...], np.ndarray]:
    """Row numbers by the values of some columns."""
    if not len(frame):
        return {}
    ids = frame.groups(names)
    order = np.argsort(ids, kind="stable")
    ends = np.searchsorted(ids[order], np.arange(int(ids.max()) + 2))
    found = {}
    for code in range(len(ends) - 1):
        rows = order[ends[code] : ends[code + 1]]
        shown = frame.describe(int(rows[0]))
        found[tuple(str(shown[name]) for name in names)] = rows
    return found


def _transfer(
    operator: CalibratedOperator[Any], table: Any, fits: Mapping[str, KernelFit]
) -> tuple[Band, ...]:
    """Bands of predicting each system by the fits of the others."""
    frame = table.frame
    predicted = np.full(len(frame), np.nan)
    for system in frame.labels["system"]:
        others = {name: fit for name, fit in fits.items() if fit.system != system}
        rows = np.flatnonzero(frame.is_label("system", system))
        if not others or not len(rows):
            continue
        if len(rows) > TRANSFER_ROWS:
            rows = np.sort(np.random.default_rng(0).choice(rows, TRANSFER_ROWS, replace=False))
        part = type(table)(frame.take(rows), table.report)
        predicted[rows] = operator.predict(part, others)
    return bands(predicted, frame["latency_s"])


def _rounded(value: Any) -> Any:
    """Plain data with its numbers cut to ``DIGITS`` significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return value
