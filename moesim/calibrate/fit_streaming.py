"""Fits the model of streaming kernels: quantising, convolutions, recurrences, hyper-connections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moesim.calibrate.frame import Frame
from moesim.calibrate.measured_rows import (
    MeasuredRows,
    kernel_groups,
    kernel_name,
    load_rows,
    predicted_by_nearest,
    regimes,
)
from moesim.calibrate.operators import OPERATORS
from moesim.calibrate.robust_fit import Coefficient, Fitted, evenly_drawn, fit_log
from moesim.calibrate.tables import PACKAGE
from moesim.operators.processor import Processor
from moesim.operators.streaming import (
    CHUNKS,
    StreamCoefficients,
    StreamKernel,
    StreamWork,
    convolution_work,
    delta_rule_work,
    hyper_connection_work,
    quantise_work,
    role_of,
    stream_seconds,
)
from moesim.operators.systems import processor_of

__all__ = ["STREAMING", "StreamOperator"]

LABELS = ("system", "engine", "version", "kernel", "dtype", "phase", "stage")
LEAST_ROWS = 12
FIT_ROWS, STEPS = 800, 40
SHORTEST_S = 3e-7
"""Differences of two measurements below this (a tenth of a launch) are noise."""


def search_space(seconds: np.ndarray) -> tuple[Coefficient, ...]:
    """Coefficients of a kernel, with the bounds that physics sets."""
    fastest_s = float(seconds.min())
    return (
        Coefficient("launch_s", 0.8 * fastest_s, 1e-7, max(2 * fastest_s, 2e-6)),
        Coefficient("memory_efficiency", 0.6, 0.01, 4.0),
        Coefficient("item_s", 1e-8, 1e-11, 1e-4),
        Coefficient("step_s", 1e-7, 1e-11, 1e-4),
        Coefficient("compute_efficiency", 0.3, 1e-3, 2.0),
        Coefficient("overlap_exponent", 2.0, 1.0, 8.0),
    )


@dataclass(frozen=True)
class StreamOperator:
    """One table of streaming kernels as an operator of the calibration."""

    name: str

    def load(
        self,
        source: str | Path = PACKAGE,
        systems: Iterable[str] | None = None,
        versions: str | Iterable[str] = "newest",
        engines: Iterable[str] | None = None,
    ) -> MeasuredRows:
        """Rows after hygiene, those too short to be told from nothing left out."""
        found = load_rows(self.name, source, systems, versions, engines)
        long = found.frame["latency_s"] > SHORTEST_S
        return replace(found, frame=found.frame.take(long))

    def shape_key(self, table: MeasuredRows) -> np.ndarray:
        """Codes of the model's sizes, ``[rows] int64``."""
        return table.frame.groups(OPERATORS[self.name].shape)

    def regimes(self, table: MeasuredRows) -> dict[str, np.ndarray]:
        """Codes along which errors differ, the finest division first."""
        return regimes(table.frame, ("kernel", "phase", "stage"))

    def fit(self, table: MeasuredRows, rows: np.ndarray) -> dict[str, StreamKernel]:
        """Fit every kernel on the chosen rows, ``[rows] bool``."""
        frame = table.frame
        kernels: dict[str, StreamKernel] = {}
        for label, members in kernel_groups(frame, self._labels(frame), rows, LEAST_ROWS):
            drawn = members[evenly_drawn(np.arange(len(members)), FIT_ROWS)]
            processor = processor_of(str(label["system"]), "bf16")
            work, measured = self.work(frame, drawn), frame["latency_s"][drawn]

            chunk, found = _fitted(work, measured, processor)
            coefficients = StreamCoefficients(chunk_tokens=chunk, **found.values)
            kernels[kernel_name(label)] = StreamKernel.model_validate(
                {name: str(value) for name, value in label.items()}
                | {"processor": processor, "coefficients": coefficients}
                | {"rows": len(members), "on_bounds": found.at_bound}
            )
        return kernels

    def predict(self, table: MeasuredRows, coefficients: Mapping[str, StreamKernel]) -> np.ndarray:
        """Seconds, ``[rows]``, by each row's kernel or the nearest that was fitted."""
        frame = table.frame

        def seconds(kernel: StreamKernel, rows: np.ndarray) -> np.ndarray:
            return stream_seconds(self.work(frame, rows), kernel.coefficients, kernel.processor)

        return predicted_by_nearest(frame, coefficients.values(), self._labels(frame), seconds)

    def work(self, frame: Frame, rows: np.ndarray) -> StreamWork:
        """What the calls of some rows of one kernel do."""
        part = frame.take(rows)
        if self.name == "compute_scale":
            return quantise_work(part["m"], part["k"], writes=False)
        if self.name == "hyper_connection":
            return hyper_connection_work(part["tokens"], part["hidden"], part["hc_mult"])
        if self.name == "mamba2":
            channels = part["nheads"] * part["head_dim"] + 2 * part["n_groups"] * part["d_state"]
            state = (part["n_groups"], part["d_state"], part["nheads"], part["head_dim"])
        else:
            state = (
                *(part["num_k_heads"], part["head_k_dim"]),
                *(part["num_v_heads"], part["head_v_dim"]),
            )
            channels = 2 * state[0] * state[1] + state[2] * state[3]
        kernel = str(part.describe(0)["kernel"]) if len(rows) else ""
        if role_of(kernel) == "convolution":
            return convolution_work(part["batch"], part["query_tokens"], channels, part["d_conv"])
        return delta_rule_work(part["batch"], part["query_tokens"], *state)

    def _labels(self, frame: Frame) -> tuple[str, ...]:
        return tuple(name for name in LABELS if name in frame.columns)


def _fitted(work: StreamWork, measured_s: np.ndarray, device: Processor) -> tuple[int, Fitted]:
    """The chunk that fits best, of those that make a difference, and the other coefficients."""
    longest = float(work.length.max(initial=1))
    options = [chunk for chunk in CHUNKS if chunk == CHUNKS[0] or longest > CHUNKS[0]]

    def fit(chunk: int) -> Fitted:
        def seconds(values: Mapping[str, Any]) -> np.ndarray:
            c = StreamCoefficients.model_construct(chunk_tokens=chunk, **values)
            return stream_seconds(work, c, device)

        return fit_log(seconds, measured_s, search_space(measured_s), evaluations=STEPS)

    return min(((chunk, fit(chunk)) for chunk in options), key=lambda one: one[1].loss)


STREAMING = tuple(
    StreamOperator(name) for name in ("compute_scale", "gdn", "kda", "mamba2", "hyper_connection")
)
