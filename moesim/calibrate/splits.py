"""Which rows a model is fitted on and which it is judged on.

Every split is deterministic, and yields ``(name, fit, test)`` with masks ``[rows] bool`` that
never overlap. ``random`` measures interpolation; the others hold out whole shapes, systems or
versions, which is what a prediction for something unmeasured has to survive.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from moesim.calibrate.frame import Frame
from moesim.calibrate.operators import OPERATORS
from moesim.errors import UsageError
from moesim.operators.moe_transfer import architecture

__all__ = ["DEALT_FOLDS", "SPLITS", "Fold", "imitations", "split"]

Fold = tuple[str, np.ndarray, np.ndarray]

MOST_FOLDS, DEALT_FOLDS = 32, 8
"""Beyond so many shapes (dense GEMM has 484) they are dealt into a few folds: each then hides an
eighth of the shapes at once, which asks more of a model than hiding one."""

SIZE_FOLDS = 4
"""Folds of sizes: each leaves every fourth size out, so that the neighbours of a size stay."""

SPLITS = (
    *("random", "leave-shape-out", "leave-system-out", "leave-version-out"),
    *("leave-size-out", "leave-nodes-out"),
)


def split(
    frame: Frame,
    kind: str,
    *,
    fit_fraction: float | None = None,
    seed: int = 0,
    folds: int = DEALT_FOLDS,
) -> Iterator[Fold]:
    """Split the rows of an operator.

    Args:
        frame: The rows.
        kind: ``random``: one fold, ``fit_fraction`` of the rows to fit on and the rest to test.
            ``leave-shape-out``: a fold per model shape (for MoE hidden, inter, top_k and
            experts), or folds of several where there are very many. ``leave-system-out``: a fold
            per system. ``leave-version-out``: a fold per engine and version, for engines with
            more than one; everything else, other engines too, remains to fit on.
            ``leave-size-out``: every fourth message size, or number of tokens, is left out
            everywhere; the smallest and the largest of a series are never tested.
            ``leave-nodes-out``: a fold per number of nodes, of operators that cross nodes.
        fit_fraction: Share of the rows that may be fitted on, drawn at random; 0.1 for
            ``random`` and all of them for the others, unless given.
        seed: Seed of that draw.
        folds: Into which shapes are dealt where there are more than ``MOST_FOLDS`` (or than
            this, if it was lowered).

    Raises:
        UsageError: If the kind is unknown, the fraction is not in (0, 1], or the rows hold a
            single shape, system or version, so that nothing is left to fit on.
    """
    if kind not in SPLITS:
        raise UsageError(f"unknown split {kind}; allowed: {', '.join(SPLITS)}")
    fraction = fit_fraction if fit_fraction is not None else (0.1 if kind == "random" else 1.0)
    if not 0 < fraction <= 1 or (kind == "random" and fraction == 1):
        raise UsageError(f"the fit fraction is {fraction}; allowed: above 0 and below 1")
    chosen = _drawn(len(frame), fraction, seed)
    if kind == "random":
        return iter([("random", chosen, ~chosen)])
    parts = list(_folds(frame, kind, chosen, seed, folds))
    if not parts:
        raise UsageError(
            f"{kind} has nothing to fit on: the rows hold only one of what is left out\n"
            "fix: choose more systems, versions or shapes"
        )
    return iter(parts)


def _folds(frame: Frame, kind: str, chosen: np.ndarray, seed: int, folds: int) -> Iterator[Fold]:
    if kind == "leave-size-out":
        yield from _sizes(frame, chosen)
        return
    if kind == "leave-nodes-out" and "nodes" not in frame.columns:
        raise UsageError(
            f"rows of {frame.operator} have no number of nodes\n"
            "fix: use leave-shape-out, which holds out numbers of ranks"
        )
    names: Sequence[str] = {
        "leave-nodes-out": ("nodes",),
        "leave-shape-out": OPERATORS[frame.operator].shape,
        "leave-system-out": ("system",),
        "leave-version-out": ("engine", "version"),
    }[kind]
    groups = frame.groups(names)
    count = int(groups.max()) + 1 if len(frame) else 0
    most = MOST_FOLDS if folds == DEALT_FOLDS else folds
    if kind == "leave-shape-out" and count > most:
        dealt = np.random.default_rng(seed).permutation(count)[groups] % folds
        for part in range(folds):
            yield f"shapes {part + 1} of {folds}", chosen & (dealt != part), dealt == part
        return
    for group in range(count):
        test = groups == group
        row = int(np.argmax(test))
        fit = chosen & ~test
        others = fit
        if kind == "leave-version-out":
            others = fit & (frame["engine"] == frame["engine"][row])
        if others.any():
            shown = frame.describe(row)
            yield ",".join(f"{name}={shown[name]}" for name in names), fit, test


def imitations(frame: Frame, kind: str, fit: np.ndarray) -> list[np.ndarray]:
    """Parts of the fitted rows whose holding out is like what a split did, ``[rows] bool`` each.

    Errors that fits on the rest make on such a part are honest estimates of the errors on what
    the split held out: systems one by one and architectures as a whole, or versions.

    Args:
        frame: The rows.
        kind: ``leave-system-out`` or ``leave-version-out``.
        fit: Rows that may be fitted on, ``[rows] bool``.
    """
    if kind == "leave-version-out":
        groups = [frame.groups(("engine", "version"))]
    else:
        homes: dict[str | None, int] = {}
        home = [
            homes.setdefault(architecture(system) or system, len(homes))
            for system in frame.labels["system"]
        ]
        groups = [frame["system"], np.array(home)[frame["system"]]]
    parts: dict[bytes, np.ndarray] = {}
    for codes in groups:
        for code in np.unique(codes[fit]):
            part = fit & (codes == code)
            if (fit & ~part).any():
                parts.setdefault(part.tobytes(), part)
    return list(parts.values())


def _sizes(frame: Frame, chosen: np.ndarray) -> Iterator[Fold]:
    """Folds of every fourth size; in each series only sizes between its ends are tested."""
    spec = OPERATORS[frame.operator]
    size = frame.groups((spec.series,))
    around = ("system", "engine", "version", "kernel", *spec.key)
    series = frame.groups([n for n in around if n in frame.columns and n != spec.series])
    ends = np.full((2, int(series.max()) + 1), -1)
    ends[0] = int(size.max()) + 1
    np.minimum.at(ends[0], series, size)
    np.maximum.at(ends[1], series, size)
    inner = (size > ends[0][series]) & (size < ends[1][series])
    for fold in range(SIZE_FOLDS):
        out = size % SIZE_FOLDS == fold
        if (out & inner).any():
            yield f"every fourth size from {fold + 1}", chosen & ~out, out & inner


def _drawn(rows: int, fraction: float, seed: int) -> np.ndarray:
    """A fixed share of the rows at random, at least one, ``[rows] bool``."""
    if fraction == 1:
        return np.ones(rows, bool)
    chosen = np.zeros(rows, bool)
    count = min(rows, max(1, round(rows * fraction)))
    chosen[np.random.default_rng(seed).choice(rows, count, replace=False)] = True
    return chosen
