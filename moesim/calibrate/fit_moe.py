"""Fitting the fused expert layer's coefficients to measured rows.

One document per system, engine, version, kernel and type. Where a fit has no rows of its own (a
system, version or shape was held out), the coefficients come from the nearest kernels that have:
efficiencies are shares of each device's specification, so they carry over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from moesim.calibrate.hygiene import clean
from moesim.calibrate.metrics import LARGE, SMALL
from moesim.calibrate.moe_residual import CorrectedMoe, learn_residual
from moesim.calibrate.moe_rows import MoeTable, moe_table, take_device
from moesim.calibrate.operators import read_operator
from moesim.calibrate.tables import open_catalogue, version_key
from moesim.extras import require
from moesim.operators.moe import MoeCoefficients, MoeDevice, MoeShapes, moe_time_s
from moesim.operators.moe_fits import MoeFit
from moesim.operators.moe_slopes import moe_time_and_slopes
from moesim.operators.moe_transfer import KINDS, MoeKernel, transferred, version_drift

__all__ = ["MoeOperator", "fit_coefficients"]

FIT_ROWS = 2000
"""Rows drawn for one fit; 20 coefficients need no more, and twice as many change errors by less
than 0.1 points."""
RESIDUAL_ROWS = 8000
"""Rows drawn for one residual."""
MIN_ROWS = 30
"""A kernel with fewer rows of its own takes the nearest kernels' coefficients instead."""
EVALUATIONS = 10
"""Steps of the fit; more follow the rows drawn too closely and predict others no better."""
SOFT = 0.15
"""Log error beyond which a row's pull on the fit no longer grows."""
SHRINKAGE = 0.02
"""Weight of one prior standard deviation against the mean loss of the rows."""

PRIOR = {
    "launch_s": (25e-6, 0.7),
    "active_expert_s": (0.1e-6, 1.5),
    "local_expert_s": (0.01e-6, 1.5),
    "copy_s": (0.5e-9, 1.5),
    "group_copy_s": (0.5e-9, 1.5),
    "weight_bandwidth_share": (0.8, 0.4),
    "activation_bandwidth_share": (0.5, 0.7),
    "group_bandwidth_share": (2.0, 1.0),
    "tile_rows": (40.0, 0.7),
    "row_cost": (1.3, 0.4),
    "overlap_exponent": (2.0, 0.5),
    "k_step_s": (3e-9, 1.0),
    "wave_weight": (1.0, 1.0),
    "k_prologue": (200.0, 1.0),
    "k_prologue_memory": (100.0, 1.0),
    "small_bandwidth": (1.0, 0.3),
    "large_bandwidth": (0.8, 0.3),
    "small_cost": (1.0, 0.5),
    "large_cost": (1.5, 0.5),
    "cache_penalty": (0.2, 1.0),
}
"""Centre and standard deviation (of the logarithm) that each coefficient is drawn towards."""
REACH = 5.0
"""Standard deviations from the centre at which a coefficient is bounded."""


class MoeOperator:
    """The fused expert layer, as :class:`~moesim.calibrate.operator.CalibratedOperator`."""

    name = "moe"
    has_residual = True

    def __init__(self, *, residual: bool = False) -> None:
        """With ``residual``, trees correct the physics of every group that has own rows."""
        self._residual = residual
        self._known: dict[str, tuple[MoeCoefficients, tuple[str, ...]]] = {}
        self._corrected: dict[str, CorrectedMoe] = {}

    def load(
        self,
        source: str,
        systems: list[str] | None,
        versions: str | list[str] = "newest",
        engines: list[str] | None = None,
    ) -> MoeTable:
        """Rows of the newest (or given) tables after hygiene, with its report."""
        catalogue = open_catalogue(source)
        frame = read_operator(catalogue, "moe", systems=systems, engines=engines, versions=versions)
        kept, report = clean(frame)
        return moe_table(kept, report)

    def shape_key(self, table: MoeTable) -> np.ndarray:
        """Codes that leave-shape-out holds out together."""
        return table.frame.groups(("hidden", "inter", "top_k", "experts"))

    def fit(self, table: MoeTable, rows: np.ndarray) -> Mapping[str, MoeFit | CorrectedMoe]:
        """Coefficients of every group in the table, from the rows of a mask only."""
        own = np.bincount(table.group[rows], minlength=len(table.kernels))
        fits: dict[MoeKernel, MoeFit | CorrectedMoe] = {}
        measured: list[MoeFit] = []
        for group in np.flatnonzero(own >= MIN_ROWS).tolist():
            chosen = np.flatnonzero(rows & (table.group == group))
            found = self._fit(table, table.kernels[group], chosen)
            measured.append(found)
            fits[found.key] = self._correct(found, table, chosen) if self._residual else found
        if len(measured) < len(own) and measured:
            for found in _from_others(table, own, measured):
                fits[found.key] = found
        return {"/".join(kernel): fits[kernel] for kernel in table.kernels if kernel in fits}

    def predict(
        self,
        table: MoeTable,
        coefficients: Mapping[str, MoeFit | CorrectedMoe],
        rows: np.ndarray | None = None,
    ) -> np.ndarray:
        """Seconds of all rows, or of some row numbers; NaN where a group has no coefficients."""
        rows = np.arange(len(table.group)) if rows is None else rows
        groups = table.group[rows]
        seconds = np.full(len(rows), np.nan)
        for group in np.unique(groups).tolist():
            found = coefficients.get("/".join(table.kernels[group]))
            if found is None:
                continue
            chosen = groups == group
            layers = table.layers(rows[chosen])
            if isinstance(found, CorrectedMoe):
                seconds[chosen] = found.time_s(*layers)
            else:
                seconds[chosen] = moe_time_s(*layers, found.coefficients)
        return seconds

    def transfers(
        self,
        table: MoeTable,
        coefficients: Mapping[str, MoeFit | CorrectedMoe],
        rows: np.ndarray,
    ) -> np.ndarray:
        """Place in ``KINDS`` of how each row's coefficients were come by, ``[rows]``."""
        kinds = np.zeros(len(table.kernels), np.int64)
        for group, kernel in enumerate(table.kernels):
            found = coefficients.get("/".join(kernel))
            if isinstance(found, MoeFit):
                kinds[group] = KINDS.index(found.transfer)
        return kinds[table.group[rows]]

    def regimes(self, table: MoeTable) -> dict[str, np.ndarray]:
        """Codes along which errors differ, finest first: intervals are taken per regime."""
        tokens = np.searchsorted([SMALL, LARGE], table.frame["tokens"], side="left")
        kernel = table.frame.groups(("kernel", "dtype"))
        return {"kernel and tokens": kernel * 3 + tokens, "tokens": tokens}

    def _fit(self, table: MoeTable, kernel: MoeKernel, rows: np.ndarray) -> MoeFit:
        """One fit; the same rows are not fitted twice."""
        drawn = rows[_draw(len(rows), FIT_ROWS)]
        seen = hashlib.sha256(drawn.tobytes()).hexdigest()
        if seen not in self._known:
            self._known[seen] = fit_coefficients(
                *table.layers(drawn), table.frame["latency_s"][drawn]
            )
        coefficients, on_bounds = self._known[seen]
        return MoeFit(
            **kernel._asdict(), rows=len(rows), on_bounds=on_bounds, coefficients=coefficients
        )

    def _correct(self, fit: MoeFit, table: MoeTable, rows: np.ndarray) -> CorrectedMoe:
        """The fit with its residual; the same rows do not teach twice."""
        rows = rows[_draw(len(rows), RESIDUAL_ROWS)]
        seen = hashlib.sha256(rows.tobytes()).hexdigest()
        if seen not in self._corrected:
            self._corrected[seen] = learn_residual(
                fit, *table.layers(rows), table.frame["latency_s"][rows]
            )
        return self._corrected[seen]


def fit_coefficients(
    shapes: MoeShapes, device: MoeDevice, measured_s: np.ndarray
) -> tuple[MoeCoefficients, tuple[str, ...]]:
    """Robust least squares on log latency, with a weak pull towards ``PRIOR``.

    Returns:
        The coefficients, and the names of those that ended on a bound.
    """
    optimize = require("scipy.optimize", "measured", "fitting coefficients")
    centre = np.log([value for value, _ in PRIOR.values()])
    spread = np.array([deviation for _, deviation in PRIOR.values()])
    log_s = np.log(measured_s)

    def log_error(point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values = dict(zip(PRIOR, np.exp(point), strict=True))
        seconds, slopes = moe_time_and_slopes(
            shapes, device, MoeCoefficients.model_construct(**values)
        )
        return np.log(seconds) - log_s, slopes / seconds[:, None]

    def soft(error: np.ndarray) -> np.ndarray:
        root = np.sqrt(1 + (error / SOFT) ** 2)
        return np.asarray(error * np.sqrt(2 / (root + 1)))

    def residuals(point: np.ndarray) -> np.ndarray:
        error, _ = log_error(point)
        return np.concatenate(
            [soft(error) / np.sqrt(len(error)), SHRINKAGE * (point - centre) / spread]
        )

    def slopes(point: np.ndarray) -> np.ndarray:
        error, by = log_error(point)
        root = np.sqrt(1 + (error / SOFT) ** 2)
        softened = np.sqrt((root + 1) / 2) / root
        return np.vstack(
            [by * (softened / np.sqrt(len(error)))[:, None], SHRINKAGE * np.diag(1 / spread)]
        )

    low, high = centre - REACH * spread, centre + REACH * spread
    found = optimize.least_squares(
        residuals, centre, jac=slopes, max_nfev=EVALUATIONS, x_scale=spread, bounds=(low, high)
    )
    on_bound = (found.x - low < 0.01 * spread) | (high - found.x < 0.01 * spread)
    names = tuple(name for name, on in zip(PRIOR, on_bound, strict=True) if on)
    return MoeCoefficients.of_vector(np.exp(found.x)), names


def _from_others(table: MoeTable, own: np.ndarray, measured: list[MoeFit]) -> list[MoeFit]:
    """Fits of the groups that have too few rows of their own, from those that have enough.

    Args:
        table: The rows; of the groups without, only what the key says is looked at.
        own: Rows that may be fitted on, ``[groups]``.
        measured: Fits of the groups with rows.
    """
    first = {kernel: int(np.argmax(table.group == g)) for g, kernel in enumerate(table.kernels)}
    devices = {
        kernel.system: take_device(table.device, np.array(row)) for kernel, row in first.items()
    }
    versions = {(kernel.engine, kernel.version) for kernel in table.kernels}
    ordered = sorted(versions, key=lambda version: version_key(version[1]))
    drift = version_drift(measured, devices, {version: i for i, version in enumerate(ordered)})
    fits = []
    for group in np.flatnonzero(own < MIN_ROWS).tolist():
        kernel = table.kernels[group]
        device = take_device(table.device, np.array(first[kernel]))
        found = transferred(kernel, measured, device, drift=drift)
        fits.append(
            MoeFit(
                **kernel._asdict(),
                rows=0,
                borrowed_from=tuple("/".join(donor) for donor in found.donors),
                transfer=found.kind,
                coefficients=found.coefficients,
            )
        )
    return fits


def _draw(rows: int, most: int) -> np.ndarray:
    """Which rows a fit looks at, ascending."""
    if rows <= most:
        return np.arange(rows)
    return np.sort(np.random.default_rng(rows).choice(rows, most, replace=False))
