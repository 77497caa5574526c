"""Fitting element-by-element kernels to measured conversions to FP8."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moesim.calibrate.measured_rows import (
    KERNEL,
    MeasuredRows,
    kernel_groups,
    kernel_name,
    load_rows,
    predicted_by_nearest,
    regimes,
)
from moesim.calibrate.tables import PACKAGE
from moesim.extras import require
from moesim.operators.elementwise import ElementwiseKernel, elementwise_seconds
from moesim.operators.systems import device_of

__all__ = ["ELEMENTWISE", "ElementwiseOperator"]

LEAST_ROWS = 20
BYTES_PER_ELEMENT = 3
"""A bfloat16 read and an FP8 written."""
START = (2e-6, 0.8)
"""Launch and share of the bandwidth."""
SOFT = 0.15
"""Log error beyond which a row's pull on the fit no longer grows."""


@dataclass(frozen=True)
class ElementwiseOperator:
    """The conversion of a matrix to FP8 as an operator of the calibration."""

    name: str = "scale_matrix"

    def load(
        self,
        source: str | Path = PACKAGE,
        systems: Iterable[str] | None = None,
        versions: str | Iterable[str] = "newest",
        engines: Iterable[str] | None = None,
    ) -> MeasuredRows:
        """Rows after hygiene."""
        return load_rows(self.name, source, systems, versions, engines)

    def shape_key(self, table: MeasuredRows) -> np.ndarray:
        """Codes of k, ``[rows] int64``."""
        return table.frame.groups(("k",))

    def regimes(self, table: MeasuredRows) -> dict[str, np.ndarray]:
        """Codes along which errors differ, the finest division first."""
        return regimes(table.frame, ("kernel", "dtype"))

    def fit(self, table: MeasuredRows, rows: np.ndarray) -> dict[str, ElementwiseKernel]:
        """Fit every kernel on the chosen rows, ``[rows] bool``."""
        require("scipy", "measured", "fitting")
        from scipy.optimize import least_squares

        frame = table.frame
        kernels = {}
        for label, members in kernel_groups(frame, KERNEL, rows, LEAST_ROWS):
            memory = device_of(str(label["system"])).memory_bytes_per_s
            moved = _moved(table, members)
            log_s = np.log(frame["latency_s"][members])

            def error(
                x: np.ndarray, moved: np.ndarray = moved, log_s: np.ndarray = log_s,
                memory: float = memory,
            ) -> np.ndarray:  # fmt: skip
                launch_s, share = np.exp(x).tolist()
                return np.log(elementwise_seconds(moved, launch_s, share * memory)) - log_s

            found = least_squares(error, np.log(START), loss="soft_l1", f_scale=SOFT)
            launch_s, share = np.exp(found.x).tolist()
            kernels[kernel_name(label)] = ElementwiseKernel(
                **{name: str(value) for name, value in label.items()},
                launch_s=launch_s,
                memory_share=share,
                memory_bytes_per_s=memory,
                rows=len(members),
            )
        return kernels

    def predict(
        self, table: MeasuredRows, coefficients: Mapping[str, ElementwiseKernel]
    ) -> np.ndarray:
        """Seconds, ``[rows]``, by each row's kernel or the nearest that was fitted."""

        def seconds(kernel: ElementwiseKernel, rows: np.ndarray) -> np.ndarray:
            return kernel.time(_moved(table, rows)).time_s

        return predicted_by_nearest(table.frame, coefficients.values(), KERNEL, seconds)


def _moved(table: MeasuredRows, rows: np.ndarray) -> np.ndarray:
    return table.frame["m"][rows] * table.frame["k"][rows] * float(BYTES_PER_ELEMENT)


ELEMENTWISE = ElementwiseOperator()
