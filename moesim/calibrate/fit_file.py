"""Writing the coefficients that moesim ships: fits of all rows, with intervals and provenance."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import numpy as np

from moesim.calibrate.fit_moe import MoeOperator
from moesim.calibrate.intervals import LEVEL, MIN_RESIDUALS, central
from moesim.calibrate.moe_rows import MoeTable
from moesim.calibrate.tables import PACKAGE
from moesim.calibrate.transfers import transfer_residuals
from moesim.operators.moe_fits import REGIMES, FittedMoe, Intervals, MoeFit
from moesim.operators.moe_transfer import KINDS, TransferKind

__all__ = ["fitted_moe", "held_out_log_residuals", "with_version"]

SHAPE_FOLDS = 4
"""Parts that the model shapes are cut into for the residuals behind the intervals."""


def fitted_moe(
    operator: MoeOperator, table: MoeTable, *, source: str, date: str, command: str
) -> FittedMoe:
    """Fit every kernel on all of its rows; intervals come from shapes held out in turn.

    Args:
        operator: The model.
        table: Rows after hygiene.
        source: What was read: the package's name, or a folder.
        date: Of the fit, as given by the caller.
        command: That repeats it.
    """
    everything = np.ones(len(table.frame), bool)
    fits = operator.fit(table, everything)
    residuals, borrowed = held_out_log_residuals(operator, table)
    of_all = _by_regime(table, np.flatnonzero(np.isfinite(residuals) & ~borrowed), residuals)
    dropped = table.report.findings if table.report is not None else ()
    return FittedMoe(
        source=with_version(source),
        rows=len(table.frame),
        rows_dropped={finding.rule: len(finding.rows) for finding in dropped},
        date=date,
        command=command,
        transfer_intervals=_transfer_intervals(operator, table),
        fits=tuple(
            _with_intervals(fit, table, residuals, borrowed, of_all)
            for fit in fits.values()
            if isinstance(fit, MoeFit)  # trees are not shipped
        ),
    )


def held_out_log_residuals(operator: MoeOperator, table: MoeTable) -> tuple[np.ndarray, np.ndarray]:
    """Errors of fits that had not seen the row's shape.

    Returns:
        Log of measured over predicted time ``[rows]``, and which of them ``[rows] bool`` come from
        other kernels' coefficients, because the kernel was measured on no other shape.
    """
    shapes = operator.shape_key(table)
    part = np.random.default_rng(0).permutation(int(shapes.max()) + 1)[shapes] % SHAPE_FOLDS
    predicted = np.full(len(shapes), np.nan)
    borrowed = np.zeros(len(shapes), bool)
    for number in range(SHAPE_FOLDS):
        held = part == number
        if held.any() and not held.all():
            fits = operator.fit(table, ~held)
            rows = np.flatnonzero(held)
            predicted[rows] = operator.predict(table, fits, rows)
            borrowed[rows] = operator.transfers(table, fits, rows) > 0
    return np.log(table.frame["latency_s"] / predicted), borrowed


def _with_intervals(
    fit: MoeFit,
    table: MoeTable,
    residuals: np.ndarray,
    borrowed: np.ndarray,
    of_all: Intervals,
) -> MoeFit:
    """The fit with the quantiles of its residuals by token regime; of all where it has few."""
    group = table.kernels.index(fit.key)
    rows = np.flatnonzero((table.group == group) & np.isfinite(residuals))
    found = _by_regime(table, rows, residuals, bool(borrowed[rows].all()))
    return fit.model_copy(update={"intervals": of_all | found})


def _transfer_intervals(operator: MoeOperator, table: MoeTable) -> dict[TransferKind, Intervals]:
    """Intervals of systems and architectures held out, by kind of transfer and token regime."""
    everything = np.ones(len(table.frame), bool)
    found = transfer_residuals(operator, table, table.frame, "leave-system-out", everything)
    intervals: dict[TransferKind, Intervals] = {}
    known = np.isfinite(found.log_residual)
    for code in np.unique(found.transfer[known]).tolist():
        chosen = known & (found.transfer == code)
        regimes: Intervals = {}
        tokens = table.frame["tokens"][found.row]
        for regime, (least, most) in REGIMES.items():
            values = found.log_residual[chosen & (tokens > least) & (tokens <= most)]
            if len(values) >= MIN_RESIDUALS:
                size = float(np.exp(np.quantile(np.abs(values), LEVEL)))
                regimes[regime] = (1 / size, size)
        intervals[KINDS[code]] = regimes
    return intervals


def _by_regime(
    table: MoeTable, rows: np.ndarray, residuals: np.ndarray, either_way: bool = False
) -> Intervals:
    """Central 80 % of measured over predicted time by token regime, where there are enough."""
    tokens = table.frame["tokens"][rows]
    shapes = table.frame.groups(("hidden", "inter", "top_k", "experts"))[rows]
    intervals: Intervals = {}
    for regime, (least, most) in REGIMES.items():
        chosen = (tokens > least) & (tokens <= most)
        if chosen.sum() >= MIN_RESIDUALS:
            low, high, size = np.exp(central(residuals[rows][chosen], shapes[chosen]))
            intervals[regime] = (float(1 / size), float(size)) if either_way else (low, high)
    return intervals


def with_version(source: str) -> str:
    """A package's name with its version; a folder as it is."""
    if source != PACKAGE:
        return source
    try:
        return f"aiconfigurator-core {version('aiconfigurator-core')}"
    except PackageNotFoundError:
        return "aiconfigurator-core"
