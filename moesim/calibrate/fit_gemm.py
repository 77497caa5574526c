"""Fits the dense GEMM model to measured rows, kernel by kernel.

Which tiles a library takes is not in the tables, so every kind of tiling is tried on a small draw
of the rows and the one that fits best is kept. One of them, ``dispatch``, is itself fitted: a tile
for each range of m, as CUTLASS-based kernels choose it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moesim.calibrate.frame import Frame
from moesim.calibrate.measured_rows import (
    KERNEL,
    MeasuredRows,
    kernel_groups,
    kernel_name,
    load_rows,
    predicted_by_nearest,
    regimes,
)
from moesim.calibrate.robust_fit import Coefficient, Fitted, evenly_drawn, fit_log
from moesim.calibrate.tables import PACKAGE
from moesim.operators.gemm import (
    FORMATS,
    TILINGS,
    GemmCoefficients,
    GemmKernel,
    Tile,
    Tiling,
    gemm_geometry,
    gemm_seconds,
    geometry_seconds,
    tile_set,
    tiling_seconds,
)
from moesim.operators.processor import Processor
from moesim.operators.systems import processor_of

__all__ = ["GEMM", "GemmOperator", "Shapes", "fit_kernel", "fitted_dispatch"]

LEAST_ROWS = 60
"""Fewer rows than five per coefficient are not fitted."""
TRIAL_ROWS, TRIAL_STEPS = 300, 10
FINAL_ROWS, FINAL_STEPS = 1000, 20
RANGES = (16, 64, 128, 256, 1024, None)
"""Ends of the ranges of m within which a dispatched kernel keeps its tile."""
OPTIONS = ((16, 64), (64, 16), (64, 32), (64, 64), (64, 128), (128, 64), (128, 128), (128, 256))


@dataclass(frozen=True)
class Shapes:
    """Measured multiplications of one kernel.

    Attributes:
        m: ``[rows]``, like n and k.
        n: Columns of the result.
        k: Shared dimension.
        seconds: Measured, ``[rows]``.
        dtype: A name out of ``FORMATS``.
        batch: Multiplications per launch, ``[rows]`` or 1.
    """

    m: np.ndarray
    n: np.ndarray
    k: np.ndarray
    seconds: np.ndarray
    dtype: str
    batch: np.ndarray | int = 1

    def take(self, rows: np.ndarray) -> Shapes:
        """Some of them."""
        batch = self.batch if isinstance(self.batch, int) else self.batch[rows]
        return Shapes(
            self.m[rows], self.n[rows], self.k[rows], self.seconds[rows], self.dtype, batch
        )


def search_space(shapes: Shapes) -> tuple[Coefficient, ...]:
    """Coefficients of a kernel, with the bounds that physics sets."""
    fastest_s = float(shapes.seconds.min())
    fitted = (
        Coefficient("launch_s", 0.8 * fastest_s, 5e-7, max(2 * fastest_s, 2e-6)),
        Coefficient("host_s", 0.3 * fastest_s, 1e-7, max(2 * fastest_s, 2e-6)),
        Coefficient("tile_s", 7e-7, 1e-8, 2e-5),
        Coefficient("compute_efficiency", 0.75, 0.05, 1.05),
        Coefficient("core_bytes_per_s", 100e9, 5e9, 400e9),
        Coefficient("memory_efficiency", 0.8, 0.2, 1.05),
        Coefficient("split_s", 1e-6, 1e-8, 1e-5),
        Coefficient("overlap_exponent", 2.0, 1.0, 8.0),
        Coefficient("wave_quantisation", 0.5, 1e-3, 1.0),
    )
    if FORMATS[shapes.dtype].input_bytes == 2:
        return fitted
    return (
        *fitted,
        Coefficient("quantise_s_per_byte", 5e-13, 1e-14, 1e-10),
        Coefficient("row_s", 1e-10, 1e-13, 2e-8),
        Coefficient("misaligned_s", 1e-7, 1e-9, 3e-5),
    )


def fit_tiling(
    shapes: Shapes,
    tiles: tuple[Tile, ...],
    processor: Processor,
    steps: int,
    start: Mapping[str, float] | None = None,
) -> Fitted:
    """Fit the coefficients with given tiles."""
    geometry = gemm_geometry(
        shapes.m, shapes.n, shapes.k, shapes.dtype, tiles, processor, shapes.batch
    )
    space = [
        Coefficient(c.name, (start or {}).get(c.name, c.start), c.lower, c.upper)
        for c in search_space(shapes)
    ]

    def seconds(values: Mapping[str, Any]) -> np.ndarray:
        return geometry_seconds(geometry, GemmCoefficients.model_construct(**values), processor)

    return fit_log(seconds, shapes.seconds, space, evaluations=steps)


def fitted_dispatch(
    shapes: Shapes, values: Mapping[str, Any], processor: Processor
) -> tuple[Tile, ...]:
    """For each range of m the tile that meets the measured times best."""
    options = tuple(Tile(rows=a, columns=b) for a, b in OPTIONS)
    geometry = gemm_geometry(
        shapes.m, shapes.n, shapes.k, shapes.dtype, options, processor, shapes.batch
    )
    c = GemmCoefficients.model_construct(**values)
    extra_s = c.launch_s + (c.quantise_s_per_byte * geometry.quantised_bytes + c.row_s * geometry.m)
    miss = np.abs(
        np.log(tiling_seconds(geometry, c, processor) + extra_s) - np.log(shapes.seconds)[:, None]
    )
    tiles, above = [], 0
    for end in RANGES:
        inside = (shapes.m > above) & (shapes.m <= (np.inf if end is None else end))
        best = int(miss[inside].mean(axis=0).argmin()) if inside.any() else len(options) - 2
        a, b = OPTIONS[best]
        tiles.append(Tile(rows=a, columns=b, above_m=above, up_to_m=end))
        above = end or above
    return tuple(tiles)


def fit_kernel(shapes: Shapes, processor: Processor) -> tuple[Tiling, tuple[Tile, ...], Fitted]:
    """Choose the tiling on a small draw, then fit on a larger one."""
    everything = np.arange(len(shapes.m))
    trial = shapes.take(evenly_drawn(everything, TRIAL_ROWS))
    best: tuple[float, Tiling, tuple[Tile, ...], Fitted] | None = None
    for tiling in TILINGS:
        if tiling == "dispatch":
            # The common CUTLASS choice is where the fitted one starts.
            tiles: tuple[Tile, ...] = (
                Tile(rows=64, columns=64, up_to_m=64),
                Tile(rows=64, columns=128, above_m=64, up_to_m=128),
                Tile(rows=128, columns=128, above_m=128),
            )
            found = fit_tiling(trial, tiles, processor, TRIAL_STEPS)
            for _ in range(2):
                tiles = fitted_dispatch(trial, found.values, processor)
                found = fit_tiling(trial, tiles, processor, TRIAL_STEPS, found.values)
        else:
            tiles = ()
            found = fit_tiling(trial, tile_set(tiling), processor, TRIAL_STEPS)
        if best is None or found.loss < best[0]:
            best = (found.loss, tiling, tiles, found)
    assert best is not None  # noqa: S101 - there are tilings
    _, tiling, tiles, found = best
    final = shapes.take(evenly_drawn(everything, FINAL_ROWS, seed=1))
    found = fit_tiling(final, tile_set(tiling, tiles), processor, FINAL_STEPS, found.values)
    return tiling, tiles, found


@dataclass(frozen=True)
class GemmOperator:
    """Dense GEMM as an operator of the calibration."""

    name: str = "gemm"

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
        """Codes of (n, k), ``[rows] int64``."""
        return table.frame.groups(("n", "k"))

    def regimes(self, table: MeasuredRows) -> dict[str, np.ndarray]:
        """Codes along which errors differ, the finest division first."""
        return regimes(table.frame, ("kernel", "dtype"))

    def fit(self, table: MeasuredRows, rows: np.ndarray) -> dict[str, GemmKernel]:
        """Fit every kernel on the chosen rows, ``[rows] bool``."""
        frame = table.frame
        kernels: dict[str, GemmKernel] = {}
        for label, members in kernel_groups(frame, KERNEL, rows, LEAST_ROWS):
            dtype = str(label["dtype"])
            if dtype not in FORMATS:
                continue
            processor = processor_of(str(label["system"]), FORMATS[dtype].arithmetic)
            shapes = self.shapes(frame, members, dtype)
            tiling, tiles, found = fit_kernel(shapes, processor)
            kernels[kernel_name(label)] = GemmKernel(
                **{name: str(value) for name, value in label.items()},
                processor=processor,
                tiling=tiling,
                tiles=tiles,
                coefficients=GemmCoefficients(**found.values),
                rows=len(members),
                on_bounds=found.at_bound,
            )
        return kernels

    def predict(self, table: MeasuredRows, coefficients: Mapping[str, GemmKernel]) -> np.ndarray:
        """Seconds, ``[rows]``, by each row's kernel or the nearest that was fitted."""
        frame = table.frame

        def seconds(kernel: GemmKernel, rows: np.ndarray) -> np.ndarray:
            s = self.shapes(frame, rows, kernel.dtype)
            return gemm_seconds(s.m, s.n, s.k, kernel, batch=s.batch)

        return predicted_by_nearest(frame, coefficients.values(), KERNEL, seconds)

    def shapes(self, frame: Frame, rows: np.ndarray, dtype: str) -> Shapes:
        """The multiplications of some rows."""
        m, n, k, seconds = (frame[name][rows] for name in ("m", "n", "k", "latency_s"))
        return Shapes(m, n, k, seconds, dtype)


GEMM = GemmOperator()
