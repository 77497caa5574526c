"""Residuals of transfers: what a fit is off by on a system or version that it has not seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from moesim.calibrate.frame import Frame
from moesim.calibrate.splits import imitations

__all__ = ["TransferOperator", "TransferResiduals", "transfer_residuals"]

T_contra = TypeVar("T_contra", contravariant=True)


@runtime_checkable
class TransferOperator(Protocol[T_contra]):
    """An operator whose fits reach kernels without rows, and say how."""

    def fit(self, table: T_contra, rows: np.ndarray) -> Mapping[str, Any]:
        """Coefficients by group, from the rows of a mask ``[rows] bool``."""
        ...

    def predict(
        self, table: T_contra, coefficients: Mapping[str, Any], rows: np.ndarray | None = None
    ) -> np.ndarray:
        """Seconds of all rows, or of some row numbers."""
        ...

    def transfers(
        self, table: T_contra, coefficients: Mapping[str, Any], rows: np.ndarray
    ) -> np.ndarray:
        """Code of how the coefficients of each row were come by, ``[rows]``; 0 is its own rows."""
        ...


@dataclass(frozen=True)
class TransferResiduals:
    """Errors on rows of systems or versions that were held out.

    Attributes:
        log_residual: Log of measured over predicted, ``[residuals]``.
        transfer: Code of the transfer, same shape.
        row: Row that each is of, same shape; a row may occur more than once.
    """

    log_residual: np.ndarray
    transfer: np.ndarray
    row: np.ndarray


def transfer_residuals(
    operator: TransferOperator[T_contra],
    table: T_contra,
    frame: Frame,
    kind: str,
    fit: np.ndarray,
) -> TransferResiduals:
    """Hold out parts of the fitted rows as a split does, and predict them.

    Args:
        operator: The model.
        table: Its rows.
        frame: Their columns.
        kind: ``leave-system-out`` or ``leave-version-out``.
        fit: Rows that may be looked at, ``[rows] bool``.
    """
    residuals: list[np.ndarray] = [np.zeros(0)]
    transfers: list[np.ndarray] = [np.zeros(0, np.int64)]
    rows: list[np.ndarray] = [np.zeros(0, np.int64)]
    for part in imitations(frame, kind, fit):
        found = operator.fit(table, fit & ~part)
        held = np.flatnonzero(part)
        codes = operator.transfers(table, found, held)
        predicted_s = operator.predict(table, found, held)
        residuals.append(np.log(frame["latency_s"][held] / predicted_s))
        transfers.append(codes)
        rows.append(held)
    return TransferResiduals(
        np.concatenate(residuals), np.concatenate(transfers), np.concatenate(rows)
    )
