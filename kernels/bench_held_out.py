"""How well the wave model predicts loads that it was not fitted on, from a benchmark's file."""

from __future__ import annotations

from typing import Any

import numpy as np

from moesim.kernels.config import Part
from moesim.kernels.config_table import default_table
from moesim.kernels.tune import FEWEST_POINTS, Measured, fit, measured_of
from moesim.kernels.wave_model import part_seconds

__all__ = ["held_out_errors"]

FOLDS = 5


def held_out_errors(document: dict[str, Any], seed: int = 0) -> list[float]:
    """|predicted − measured| / measured of every time of a configuration, held out once.

    A fold holds out whole loads: shape and rows per expert, in all configurations at once.

    Args:
        document: Of :func:`moesim.kernels.bench_file.read_bench`, of a GPU.
        seed: Of the order in which loads are dealt into folds.
    """
    if "compute_capability" not in document["environment"]:
        return []
    table = default_table()
    measured = measured_of(document, table)
    names = sorted({_load(one) for one in measured})
    dealt = np.random.default_rng(seed).permutation(len(names)) % FOLDS
    fold_of = dict(zip(names, dealt.tolist(), strict=True))
    errors: list[float] = []
    for entry in table.entries[measured[0].target] if measured else ():
        own = [m for m in measured if (m.config, m.dtype) == (entry.config, entry.dtype)]
        for fold in range(FOLDS):
            rest = [one for one in own if fold_of[_load(one)] != fold]
            test = [one for one in own if fold_of[_load(one)] == fold]
            if not test or len(rest) < FEWEST_POINTS:
                continue
            found = fit(entry.config, rest, entry.coefficients)
            for one in test:
                part = Part(one.config)
                predicted_s = part_seconds(part, found, one.histogram, one.shape, one.speeds)
                errors.append(abs(predicted_s / one.time_s - 1))
    return errors


def _load(one: Measured) -> tuple[int, int, bytes]:
    return one.shape.n, one.shape.k, one.histogram.tobytes()
