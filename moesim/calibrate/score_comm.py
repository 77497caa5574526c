"""Held-out errors of the communication operators: whole sizes, ranks, nodes and shapes left out.

``python -m moesim.calibrate.score_comm [operator …]`` prints them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from moesim.calibrate.fit_comm import COMM_OPERATORS, CommOperator, CommTable
from moesim.calibrate.frame import Frame
from moesim.calibrate.metrics import score
from moesim.calibrate.operators import OPERATORS

__all__ = ["SPLITS", "folds", "score_operator", "without_copies"]

INTERLEAVED = 4
"""Folds of sizes: each leaves every fourth size out, so that the neighbours of a size stay."""
END_SIZES = 3
"""Sizes left out at each end of every series, to extrapolate to."""
COVERAGE = 0.8
MIN_RESIDUALS = 30
"""Fewer in a regime, and the next coarser one gives the interval."""

COPIED = 0.9
"""A table of which this share is found elsewhere to the last digit is a copy."""

SPLITS = ("sizes", "small-end", "large-end", "ranks", "nodes", "shapes")


def folds(
    operator: CommOperator, table: CommTable, split: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Masks of the rows to fit on and to test, fold after fold.

    ``sizes`` tests interpolation: every fourth size is left out everywhere, the smallest and
    largest of a group never count. ``small-end`` and ``large-end`` leave a group's three smallest
    or largest sizes out. ``ranks``, ``nodes`` and ``shapes`` leave one value out at a time.
    """
    frame = table.frame
    sizes = operator.series_key(table)
    groups = frame.groups(operator.group)
    if split == "sizes":
        inner = np.ones(len(frame), bool)
        for group in range(int(groups.max()) + 1):
            members = groups == group
            known = sizes[members]
            inner[members] = (known > known.min()) & (known < known.max())
        for fold in range(INTERLEAVED):
            out = sizes % INTERLEAVED == fold
            yield ~out, out & inner
    elif split in ("small-end", "large-end"):
        out = np.zeros(len(frame), bool)
        for group in range(int(groups.max()) + 1):
            members = groups == group
            known = np.unique(sizes[members])
            if len(known) < 3 * END_SIZES:
                continue
            ends = known[:END_SIZES] if split == "small-end" else known[-END_SIZES:]
            out |= members & np.isin(sizes, ends)
        yield ~out, out
    else:
        left_out = {"ranks": ("devices", "moe_ep"), "nodes": ("nodes",)}
        wanted = left_out.get(split, ("hidden", "top_k", "experts"))
        names = [name for name in wanted if name in frame.columns]
        if not names:
            return
        codes = frame.groups(names)
        for code in range(int(codes.max()) + 1):
            out = codes == code
            if out.any() and not out.all():
                yield ~out, out


def score_operator(operator: CommOperator, table: CommTable, split: str) -> dict[str, Any] | None:
    """Errors and interval coverage of one split, overall and by what rows are of.

    The 80 % interval of a row comes from the held-out residuals of the other folds in its regime
    (of the other half of the systems, or groups, where a split has a single fold). ``None`` where
    nothing can be left out or nothing is covered.
    """
    frame = table.frame
    predicted = np.full(len(frame), np.nan)
    fold_of: np.ndarray = np.full(len(frame), -1)
    for number, (fit, test) in enumerate(folds(operator, table, split)):
        seconds = operator.predict(table, operator.fit(table, fit))
        predicted[test], fold_of[test] = seconds[test], number
    tested = fold_of >= 0
    if not np.isfinite(predicted).any():
        return None
    if len(np.unique(fold_of[tested])) == 1:
        several = len(np.unique(frame["system"])) > 1
        halves = frame.groups(("system",) if several else operator.group)
        fold_of = np.where(tested, halves % 2, -1)
    measured = frame["latency_s"]
    lo, hi = _intervals(predicted, measured, fold_of, operator.regimes(table))
    result = {}
    for word, mask in _cuts(frame, tested).items():
        found = score(predicted[mask], measured[mask]).to_dict()
        known = mask & np.isfinite(lo)
        if known.any():
            inside = (lo <= measured) & (measured <= hi)
            found["interval_coverage"] = float(inside[known].mean())
        result[word] = found
    return result


def _cuts(frame: Frame, tested: np.ndarray) -> dict[str, np.ndarray]:
    """Tested rows by what they are of, ``[rows] bool``; empty ones are left out."""
    cuts = {"all": tested}
    for name in ("system", "kernel", "collective", "phase", "stage", "backend"):
        if name in frame.columns:
            for code, label in enumerate(frame.labels[name]):
                cuts[f"{name}={label}"] = tested & (frame[name] == code)
    for name in ("devices", "nodes", "moe_ep"):
        if name in frame.columns:
            for value in np.unique(frame[name]):
                cuts[f"{name}={value}"] = tested & (frame[name] == value)
    return {word: mask for word, mask in cuts.items() if mask.any()}


def _intervals(
    predicted: np.ndarray, measured: np.ndarray, fold_of: np.ndarray, regimes: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the intervals, NaN where the other folds hold too few residuals."""
    error = np.log(measured / predicted)
    lo, hi = np.full(len(error), np.nan), np.full(len(error), np.nan)
    tails = ((1 - COVERAGE) / 2, (1 + COVERAGE) / 2)
    for codes in regimes.values():
        for code in range(int(codes.max()) + 1):
            for fold in np.unique(fold_of[fold_of >= 0]):
                here = (codes == code) & (fold_of == fold) & np.isnan(lo)
                others = (codes == code) & (fold_of >= 0) & (fold_of != fold) & np.isfinite(error)
                if here.any() and others.sum() >= MIN_RESIDUALS:
                    low, high = np.quantile(error[others], tails)
                    lo[here] = predicted[here] * np.exp(low)
                    hi[here] = predicted[here] * np.exp(high)
    return lo, hi


def without_copies(operator: CommOperator, table: CommTable) -> CommTable:
    """The table without rows that stand under another system as well, time for time.

    DeepEP 0.5.6.post2 is the same measurement under h100_sxm and h200_sxm; counted twice, its
    errors would weigh twice.
    """
    frame = table.frame
    names = [n for n in OPERATORS[operator.name].key if n in frame.columns]
    keys = frame.groups((*names, "engine", "version", "kernel", "latency_s"))
    tables = frame.groups(("system", "engine", "version"))
    later = np.zeros(len(frame), bool)
    seen = np.zeros(int(keys.max()) + 1, bool)
    for code in range(int(tables.max()) + 1):
        members = tables == code
        again = seen[keys[members]]
        later[members] = again & (again.mean() > COPIED)
        seen[keys[members]] = True
    return CommTable(frame.take(~later), table.report)


def _main(names: list[str]) -> None:
    for name in names or list(COMM_OPERATORS):
        operator = COMM_OPERATORS[name]
        versions = "all" if name.startswith("deepep") else "newest"  # only old ones cross nodes
        table = without_copies(operator, operator.load(versions=versions))
        for split in SPLITS:
            result = score_operator(operator, table, split)
            if result is None:
                continue
            for word, found in result.items():
                shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()}
                print(json.dumps({"operator": name, "split": split, "of": word} | shown))  # noqa: T201


if __name__ == "__main__":
    _main(sys.argv[1:])
