"""Fitting and scoring what ``moesim kernels bench`` measured, on a GPU or on a CPU.

Every kernel (with its operation and number type) has coefficients of its own. Errors are reported
on held-out cases, shape and load together, all kernels at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moesim.calibrate.metrics import Score, score
from moesim.calibrate.robust_fit import coefficients_of, fit_log
from moesim.errors import InputError
from moesim.kernels.bench_cases import ELEMENT_BYTES
from moesim.operators.grouped_gemm import (
    GroupedCoefficients,
    GroupedWork,
    grouped_s,
    grouped_work,
)
from moesim.safe_io import read_json

__all__ = [
    "FOLDS",
    "HeldOutKernels",
    "KernelTimes",
    "check_some",
    "fit_work",
    "held_out_kernels",
    "held_out_s",
    "is_bench_file",
    "kernel_times",
]

FEWEST_CALLS = 12
"""Calls of a kernel below which nothing is fitted: there are up to nine coefficients."""
FOLDS = 5
STEPS = 200
"""Steps of a search at most."""

TILES = (1, 16, 32, 64, 128)
"""Candidates for the rows of a parallel kernel's tile."""
FEW_ROWS = (0, 1, 2, 4, 6, 8, 12, 16, 32)
"""Candidates for the most rows that a serial kernel multiplies without packing."""
FEW_ROWS_GAIN = 0.1
"""A second kernel has to lower the loss by this share: it adds two coefficients."""
FEW_ROWS_BOUNDS = {
    "few_rows_flop_per_s": (2e10, 1e8, 1e16),
    "pack_bytes_per_s": (1e10, 1e8, 1e14),
}

# name: (start, low, high), of a CPU thread and of a GPU; the bounds are what either can be.
BOUNDS: dict[str, tuple[float, float, float]] = {
    "call_s": (1e-5, 1e-8, 1e-2),
    "expert_s": (1e-6, 1e-9, 1e-3),
    "weight_bytes_per_s": (1e10, 1e8, 2e13),
    "flop_per_s": (1e11, 1e8, 1e16),
    "row_bytes_per_s": (1e10, 1e8, 1e14),
    "overlap_exponent": (1.5, 1.001, 10.0),
}
SERIAL_ON_A_GPU = ("torch-loop",)


@dataclass(frozen=True)
class KernelTimes:
    """Measured calls of one kernel.

    Attributes:
        kernel: Name.
        op: Operation.
        dtype: Number type.
        serial: Whether it takes one expert after the other.
        cases: [N] names of the cases.
        models: [N] whose shapes they are.
        work: [N] what they do.
        time_s: [N] seconds.
        spread: [N] interquartile range over median.
    """

    kernel: str
    op: str
    dtype: str
    serial: bool
    cases: tuple[str, ...]
    models: tuple[str, ...]
    work: GroupedWork
    time_s: np.ndarray
    spread: np.ndarray

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.kernel}/{self.op}/{self.dtype}"


@dataclass(frozen=True)
class HeldOutKernels:
    """Errors on cases that the fit had not seen; every case is held out once.

    Attributes:
        cases: Distinct cases.
        all: Over all kernels.
        by_kernel: By kernel, operation and type.
        ape: Of every held-out call.
    """

    cases: int
    all: Score
    by_kernel: dict[str, Score]
    ape: np.ndarray


def is_bench_file(path: str | Path) -> bool:
    """Whether a file says that it holds a benchmark of kernels."""
    path = Path(path)
    if path.suffix != ".json" or not path.is_file():
        return False
    data = read_json(path)
    return isinstance(data, dict) and data.get("schema") == "moesim.kernels/1"


def kernel_times(document: dict[str, Any]) -> list[KernelTimes]:
    """Measured calls by kernel; kernels with too few of them are left out.

    Calls held to a configuration are left out too: those are told apart by a model of waves
    (:mod:`moesim.kernels.wave_model`), which knows tiles and stages.

    Args:
        document: Of :func:`~moesim.kernels.bench_file.read_bench`.
    """
    groups: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for entry in document["cases"]:
        if entry["op"] in ("grouped-gemm", "experts") and not entry["config"]:
            key = (entry["kernel"], entry["op"], entry["dtype"])
            groups.setdefault(key, {})[entry["case"]] = entry
    on_gpu = document["device"] == "cuda"
    return [
        KernelTimes(
            *key,
            serial=not on_gpu or key[0] in SERIAL_ON_A_GPU,
            cases=tuple(entries),
            models=tuple(entry["shape"].get("model", "") for entry in entries.values()),
            work=_work([(e, document["loads"][case]) for case, e in entries.items()]),
            time_s=np.array([entry["time_s"] for entry in entries.values()]),
            spread=np.array([e["iqr_s"] / e["time_s"] for e in entries.values()]),
        )
        for key, entries in sorted(groups.items())
        if len(entries) >= FEWEST_CALLS
    ]


def _work(calls: Sequence[tuple[dict[str, Any], list[int]]]) -> GroupedWork:
    rows = np.zeros((len(calls), max(len(load) for _, load in calls)))
    for place, (_, load) in enumerate(calls):
        rows[place, : len(load)] = load
    n, k, inter = (
        np.array([entry["shape"][name] for entry, _ in calls], np.float64)
        for name in ("n", "k", "inter")
    )
    element = np.array([ELEMENT_BYTES[entry["dtype"]] for entry, _ in calls])
    return grouped_work(rows, n, k, inter, element)


def fit_work(
    work: GroupedWork, time_s: np.ndarray, serial: bool
) -> tuple[GroupedCoefficients, tuple[str, ...]]:
    """Coefficients by robust least squares on log times, once for every candidate kernel."""
    flops = (work.rows.sum(1) * work.row_flops / time_s).max()
    read = ((work.rows > 0).sum(1) * work.expert_bytes / time_s).max()
    started = BOUNDS | {
        "flop_per_s": (float(flops), *BOUNDS["flop_per_s"][1:]),
        "weight_bytes_per_s": (float(read), *BOUNDS["weight_bytes_per_s"][1:]),
        "row_bytes_per_s": (float(4 * read), *BOUNDS["row_bytes_per_s"][1:]),
        "call_s": (float(time_s.min() / 4), *BOUNDS["call_s"][1:]),
    }
    best: tuple[GroupedCoefficients, tuple[str, ...]] | None = None
    best_loss = np.inf
    candidates = [(1, few) for few in FEW_ROWS] if serial else [(tile, 0) for tile in TILES]
    for tile_rows, few_rows in candidates:

        def made(
            values: dict[str, float], tile_rows: int = tile_rows, few_rows: int = few_rows
        ) -> GroupedCoefficients:
            whole = values | {"serial": serial, "tile_rows": tile_rows, "few_rows": few_rows}
            return GroupedCoefficients.model_validate(whole)

        found = fit_log(
            lambda x, made=made: grouped_s(made(dict(x)), work),  # type: ignore[misc]
            time_s,
            coefficients_of(started | (FEW_ROWS_BOUNDS if few_rows else {})),
            evaluations=STEPS,
        )
        loss = found.loss / (1 - FEW_ROWS_GAIN) if few_rows else found.loss
        if loss < best_loss:
            best, best_loss = (made(found.values), found.at_bound), loss
    if best is None:
        raise InputError("nothing could be fitted", field="cases", found=len(time_s))
    return best


def held_out_kernels(times: Sequence[KernelTimes], seed: int = 0) -> HeldOutKernels:
    """Fit on four fifths of the cases and predict the rest, until each was held out once.

    Raises:
        InputError: If no kernel has enough cases.
    """
    check_some(times)
    names = sorted({case for kernel in times for case in kernel.cases})
    dealt = np.random.default_rng(seed).permutation(len(names)) % FOLDS
    fold_of = dict(zip(names, dealt.tolist(), strict=True))
    predicted, by_kernel = [], {}
    for kernel in times:
        own_s = held_out_s(kernel, np.array([fold_of[case] for case in kernel.cases]))
        by_kernel[kernel.name] = score(own_s, kernel.time_s)
        predicted.append(own_s)
    predicted_s = np.concatenate(predicted)
    measured_s = np.concatenate([kernel.time_s for kernel in times])
    known = np.isfinite(predicted_s)
    return HeldOutKernels(
        len(names),
        score(predicted_s, measured_s),
        by_kernel,
        np.abs(predicted_s[known] / measured_s[known] - 1),
    )


def held_out_s(kernel: KernelTimes, folds: np.ndarray) -> np.ndarray:
    """Seconds of calls by fits to the other folds.

    Args:
        kernel: Its N calls.
        folds: [N] which of them are held out together.

    Returns:
        [N], NaN where the others are too few.
    """
    own_s = np.full(len(folds), np.nan)
    for fold in np.unique(folds):
        test = folds == fold
        if (~test).sum() >= FEWEST_CALLS // 2:
            found, _ = fit_work(kernel.work.take(~test), kernel.time_s[~test], kernel.serial)
            own_s[test] = grouped_s(found, kernel.work.take(test))
    return own_s


def check_some(times: Sequence[KernelTimes]) -> None:
    """Whether a kernel has enough calls.

    Raises:
        InputError: If none has.
    """
    if not times:
        raise InputError(
            "too few measured calls to fit anything",
            field="cases",
            allowed=f"at least {FEWEST_CALLS} cases of one kernel",
            fix="run the benchmark again to continue it",
        )
