"""What a calibrated operator must offer, and scoring it on rows that its fit has not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from moesim.calibrate.frame import Frame
from moesim.calibrate.hygiene import HygieneReport
from moesim.calibrate.intervals import Interval, either_way, leave_fold_out
from moesim.calibrate.metrics import Score, by_regime, score
from moesim.calibrate.splits import DEALT_FOLDS, Fold, split
from moesim.calibrate.transfers import TransferOperator, transfer_residuals
from moesim.errors import UsageError
from moesim.schema import Document

__all__ = ["CalibratedOperator", "Evaluation", "Table", "evaluate"]

TRANSFER_SPLITS = ("leave-system-out", "leave-version-out")
FEW_FOLDS = ("leave-system-out", "leave-version-out", "leave-nodes-out")
"""Splits whose folds are few, and each unlike the others."""
INNER_FOLDS = 2
"""Parts that the rows of a single fit are cut into, to get held-out residuals out of them."""


class Table(Protocol):
    """Measured rows of one operator, and whatever the operator keeps beside them."""

    @property
    def frame(self) -> Frame:
        """The rows after hygiene."""
        ...

    @property
    def report(self) -> HygieneReport | None:
        """What hygiene dropped."""
        ...


T = TypeVar("T", bound=Table)


class CalibratedOperator(Protocol[T]):
    """An operator model with coefficients that measured rows decide."""

    name: str

    def load(
        self,
        source: str,
        systems: list[str] | None,
        versions: str | list[str] = "newest",
        engines: list[str] | None = None,
    ) -> T:
        """Rows after hygiene."""
        ...

    def shape_key(self, table: T) -> np.ndarray:
        """Codes of rows that leave-shape-out holds out together, ``[rows] int64``."""
        ...

    def fit(self, table: T, rows: np.ndarray) -> Mapping[str, Document]:
        """Coefficients by group, from the rows of a mask ``[rows] bool`` and no others."""
        ...

    def predict(self, table: T, coefficients: Mapping[str, Any]) -> np.ndarray:
        """Seconds ``[rows]``; NaN where the coefficients do not reach."""
        ...

    def regimes(self, table: T) -> dict[str, np.ndarray]:
        """Codes ``[rows]`` along which errors differ, finest division first."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """An operator scored on held-out rows.

    Attributes:
        score: Over all held-out rows.
        by_regime: By tokens, type, kernel, system and so on.
        by_fold: By what was held out.
        coefficients: Fitted documents by fold and group.
        predicted_s: ``[rows]``; NaN where a row was never held out or is not covered.
        interval: 80 % interval of each row.
    """

    score: Score
    by_regime: dict[str, Score]
    by_fold: dict[str, Score]
    coefficients: dict[str, Mapping[str, Document]]
    predicted_s: np.ndarray
    interval: Interval

    def to_dict(self) -> dict[str, Any]:
        """For JSON, in the shape of ``moesim.calibrate/1``."""
        return {
            **self.score.to_dict(),
            "by_regime": {name: found.to_dict() for name, found in self.by_regime.items()},
            "by_fold": {name: found.to_dict() for name, found in self.by_fold.items()},
            "coefficients": {
                fold: {name: document.to_dict() for name, document in fits.items()}
                for fold, fits in self.coefficients.items()
            },
        }


def evaluate(
    operator: CalibratedOperator[T],
    table: T,
    kind: str,
    *,
    fit_fraction: float | None = None,
    seed: int = 0,
    hold_out: Sequence[str] = (),
    folds: int = DEALT_FOLDS,
) -> Evaluation:
    """Fit on each fold's rows, predict the rows it holds out, score all of those together.

    Intervals of a fold come from the residuals of the other folds' held-out rows. A split with
    one fold cuts its fitted rows again, so that no residual of a judged row is ever used. Where a
    whole system or version is held out, and the operator says how its coefficients got there
    (:class:`~moesim.calibrate.transfers.TransferOperator`), they come from transfers of the same
    kind among the fitted rows alone.

    Args:
        operator: The model.
        table: Its rows.
        kind: A split of :func:`moesim.calibrate.splits.split`.
        fit_fraction: Share of the rows that may be fitted on.
        seed: Of that draw.
        hold_out: Judge only folds with one of these in their name; the others still give
            residuals for the intervals.
        folds: Into which many shapes are dealt.

    Raises:
        UsageError: If no fold has such a name.
    """
    frame = table.frame
    measured_s = frame["latency_s"]
    parts = list(split(frame, kind, fit_fraction=fit_fraction, seed=seed, folds=folds))
    judged = {name for name, _, _ in parts if _named(name, hold_out)}
    if not judged:
        raise UsageError(
            f"nothing is held out under {', '.join(hold_out)}\n"
            f"fix: use part of {'; '.join(name for name, _, _ in parts)}"
        )
    predicted = np.full(len(frame), np.nan)
    fold_of = np.full(len(frame), -1)
    transfer = np.zeros(len(frame), np.int64)
    coefficients = {}
    transferring = isinstance(operator, TransferOperator)
    for number, (name, fit, test) in enumerate(parts):
        if transferring and kind in TRANSFER_SPLITS and name not in judged:
            continue  # its residuals are not needed
        fits = operator.fit(table, fit)
        predicted[test] = _predicted(operator, table, fits, test)
        fold_of[test] = number
        if isinstance(operator, TransferOperator):
            transfer[test] = operator.transfers(table, fits, np.flatnonzero(test))
        if name in judged:
            coefficients[name] = fits
    regimes = {
        name: codes * (int(transfer.max(initial=0)) + 1) + transfer
        for name, codes in operator.regimes(table).items()
    }
    if transferring and kind in TRANSFER_SPLITS:
        chosen = [part for part in parts if part[0] in judged]
        interval = _transfer_interval(operator, table, kind, chosen, predicted, transfer)
    else:
        residuals, residual_fold = predicted.copy(), fold_of.copy()
        if len(parts) == 1:
            inner = _inner_predictions(operator, table, parts[0][1], seed)
            seen = np.isfinite(inner)
            residuals[seen], residual_fold[seen] = inner[seen], -2
            residuals[~seen] = np.nan
        interval = leave_fold_out(
            predicted,
            fold_of,
            np.log(measured_s / residuals),
            residual_fold,
            regimes,
            few_folds=kind in FEW_FOLDS,
            borrowed=transfer > 0,
        )
    tested = np.isin(fold_of, [i for i, (name, _, _) in enumerate(parts) if name in judged])
    by_fold = {
        name: score(*(a[fold_of == i] for a in (predicted, measured_s, *interval.ends())))
        for i, (name, _, _) in enumerate(parts)
        if name in judged
    }
    ends = [end[tested] for end in interval.ends()]
    return Evaluation(
        score(predicted[tested], measured_s[tested], *ends),
        by_regime(frame.take(tested), predicted[tested], *ends),
        by_fold,
        coefficients,
        np.where(tested, predicted, np.nan),
        interval,
    )


def _transfer_interval(
    operator: Any,
    table: Table,
    kind: str,
    folds: Sequence[Fold],
    predicted_s: np.ndarray,
    transfer: np.ndarray,
) -> Interval:
    """Intervals of each fold from transfers among its fitted rows, of the same kind and batch."""
    batch = next(reversed(operator.regimes(table).values()))
    low, high = np.full(len(predicted_s), np.nan), np.full(len(predicted_s), np.nan)
    for _, fit, test in folds:
        found = transfer_residuals(operator, table, table.frame, kind, fit)
        count = int(batch.max()) + 1
        interval = either_way(
            predicted_s[test],
            (transfer[test] * count + batch[test], transfer[test]),
            found.log_residual,
            (found.transfer * count + batch[found.row], found.transfer),
        )
        low[test], high[test] = interval.ends()
    return Interval(low, high)


def _inner_predictions(
    operator: CalibratedOperator[T], table: T, fit: np.ndarray, seed: int
) -> np.ndarray:
    """Predictions of fitted rows by fits on the other parts of them, ``[rows]`` seconds."""
    predicted = np.full(len(fit), np.nan)
    rows = np.flatnonzero(fit)
    part = np.random.default_rng((seed, 1)).integers(INNER_FOLDS, size=len(rows))
    for number in range(INNER_FOLDS):
        others = np.zeros(len(fit), bool)
        others[rows[part != number]] = True
        own = rows[part == number]
        predicted[own] = _predicted(operator, table, operator.fit(table, others), own)
    return predicted


def _predicted(
    operator: CalibratedOperator[T], table: T, coefficients: Mapping[str, Any], rows: np.ndarray
) -> np.ndarray:
    """Seconds of some rows, a mask or numbers; where the operator can, of no others."""
    if isinstance(operator, TransferOperator):
        numbers = np.flatnonzero(rows) if rows.dtype == bool else rows
        return np.asarray(operator.predict(table, coefficients, numbers))
    return operator.predict(table, coefficients)[rows]


def _named(name: str, wanted: Sequence[str]) -> bool:
    """Whether a fold is one of those asked for: it has one of the words among its values."""
    values = {value for part in name.split(",") for value in (part, part.partition("=")[2])}
    return not wanted or any(word in values or word == name for word in wanted)
