"""Writing the coefficients that moesim ships: fits of all rows, with intervals and provenance."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import numpy as np

from moesim.calibrate.fit_moe import MoeOperator
from moesim.calibrate.intervals import LEVEL, MIN_RESIDUALS
from moesim.calibrate.moe_rows import MoeTable
from moesim.calibrate.tables import PACKAGE
from moesim.operators.moe_fits import FittedMoe, MoeFit, token_regime

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
    residuals = held_out_log_residuals(operator, table)
    dropped = table.report.findings if table.report is not None else ()
    return FittedMoe(
        source=with_version(source),
        rows=len(table.frame),
        rows_dropped={finding.rule: len(finding.rows) for finding in dropped},
        date=date,
        command=command,
        fits=tuple(
            _with_intervals(fit, table, residuals)
            for fit in fits.values()
            if isinstance(fit, MoeFit)  # trees are not shipped
        ),
    )


def held_out_log_residuals(operator: MoeOperator, table: MoeTable) -> np.ndarray:
    """Log of measured over predicted time by fits that had not seen the row's shape, ``[rows]``."""
    shapes = operator.shape_key(table)
    part = np.random.default_rng(0).permutation(int(shapes.max()) + 1)[shapes] % SHAPE_FOLDS
    predicted = np.full(len(shapes), np.nan)
    for number in range(SHAPE_FOLDS):
        held = part == number
        if held.any() and not held.all():
            fits = operator.fit(table, ~held)
            predicted[held] = operator.predict(table, fits)[held]
    return np.log(table.frame["latency_s"] / predicted)


def _with_intervals(fit: MoeFit, table: MoeTable, residuals: np.ndarray) -> MoeFit:
    """The fit with the quantiles of its residuals by token regime, where there are enough."""
    own = np.isfinite(residuals)
    for name in ("system", "engine", "version", "kernel", "dtype"):
        own &= table.frame.is_label(name, getattr(fit, name))
    rows = np.flatnonzero(own)
    regimes = np.array([token_regime(tokens) for tokens in table.frame["tokens"][rows].tolist()])
    intervals = {}
    for regime in ("decode", "mixed", "prefill"):
        found = residuals[rows[regimes == regime]] if len(rows) else np.zeros(0)
        if len(found) >= MIN_RESIDUALS:
            low, high = np.exp(np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
            intervals[regime] = (float(low), float(high))
    return fit.model_copy(update={"intervals": intervals})


def with_version(source: str) -> str:
    """A package's name with its version; a folder as it is."""
    if source != PACKAGE:
        return source
    try:
        return f"aiconfigurator-core {version('aiconfigurator-core')}"
    except PackageNotFoundError:
        return "aiconfigurator-core"
