"""The document of a measured file's kernels: all calls fitted, with intervals and provenance.

It prices the experts of other models than the benchmark's, so its intervals come from models held
out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from moesim.calibrate.fit_grouped import (
    FOLDS,
    KernelTimes,
    check_some,
    fit_work,
    held_out_s,
    kernel_times,
)
from moesim.errors import InputError
from moesim.kernels.bench_file import read_bench
from moesim.operators.grouped_gemm import GroupedFit, GroupedFits

__all__ = ["fit_file", "interval", "read_times"]

INTERVAL = (0.1, 0.9)
FEWEST_MODELS = 3
"""Models below which their errors when held out say too little."""


def read_times(source: str | Path) -> tuple[dict[str, Any], list[KernelTimes]]:
    """A measured file, and what it holds by kernel.

    Raises:
        InputError: If the file is none, or holds too little.
    """
    document = read_bench(source)
    times = kernel_times(document)
    try:
        check_some(times)
    except InputError as error:
        raise error.within(source) from None
    return document, times


def fit_file(source: str | Path) -> GroupedFits:
    """All kernels of a measured file fitted, with intervals from models held out.

    Raises:
        InputError: If the file is none, or holds too little.
    """
    document, times = read_times(source)
    fits = []
    for kernel in times:
        coefficients, at_bound = fit_work(kernel.work, kernel.time_s, kernel.serial)
        ends, held_out = interval(kernel)
        fits.append(
            GroupedFit(
                system=document["system"],
                kernel=kernel.kernel,
                op=kernel.op,
                dtype=kernel.dtype,
                rows=len(kernel.cases),
                at_bound=at_bound,
                interval=ends,
                held_out=held_out,
                coefficients=coefficients,
            )
        )
    described, ceilings = document["environment"], document.get("ceilings", {})
    on_gpu = document["device"] == "cuda"
    return GroupedFits(
        system=document["system"],
        device=document["device"],
        processor=described.get("gpu", described["processor"]),
        clock=described.get("clock", ""),
        source=Path(source).name,
        date=document.get("date", ""),
        versions=described.get("versions", {}),
        cores=described.get("cores") if on_gpu else None,
        memory_bytes=described.get("memory_bytes") if on_gpu else None,
        copy_bytes_per_s=ceilings.get("copy_bytes_per_s"),
        dense_flop_per_s=ceilings.get("dense_flop_per_s"),
        fits=tuple(fits),
    )


def interval(kernel: KernelTimes) -> tuple[tuple[float, float], Literal["model", "case"]]:
    """Central 80 % of measured over predicted on what a fit had not seen, and what that was.

    Args:
        kernel: Its measured calls.
    """
    names, models = np.unique(kernel.models, return_inverse=True)
    of_models = len(names) >= FEWEST_MODELS
    folds = models if of_models else np.arange(len(kernel.cases)) % FOLDS
    ratio = kernel.time_s / held_out_s(kernel, folds)
    low, high = np.nanquantile(ratio, INTERVAL)
    return (float(low), float(high)), "model" if of_models else "case"
