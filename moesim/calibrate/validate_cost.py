"""Cost models that a plan's validation predicts with: fitted in the same run, or a profile's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moesim.calibrate.cpu_layers import Layers
from moesim.calibrate.fit_cpu import fit_layers
from moesim.calibrate.fit_grouped import fit_work
from moesim.operators.cpu_experts import CpuExpertCoefficients, ExpertShape, cpu_experts_s
from moesim.operators.grouped_gemm import GroupedWork, grouped_s
from moesim.planners.validation import RunScale

__all__ = ["cpu_s", "fit_cpu", "fit_gpu"]

Loads = Sequence[tuple[int, ...]]
"""Rows of the active experts of devices."""


def fit_cpu(scale: RunScale, others: Loads, times_s: np.ndarray, loads: Loads) -> np.ndarray:
    """[U] seconds of loads by a CPU's cost model, fitted on other loads."""
    return cpu_s(fit_layers(_layers(scale, others), times_s)[0], scale, loads)


def cpu_s(coefficients: CpuExpertCoefficients, scale: RunScale, loads: Loads) -> np.ndarray:
    """[U] seconds of loads by a CPU's coefficients, whatever shapes those were measured on."""
    layers = _layers(scale, loads)
    return cpu_experts_s(coefficients, layers.rows, layers.shape).total_s


def fit_gpu(scale: RunScale, others: Loads, times_s: np.ndarray, loads: Loads) -> np.ndarray:
    """[U] seconds of loads by a grouped kernel's cost model, fitted on other loads."""
    coefficients, _ = fit_work(_grouped(scale, others), times_s, serial=False)
    return grouped_s(coefficients, _grouped(scale, loads))


def _grouped(scale: RunScale, loads: Loads) -> GroupedWork:
    layers = _layers(scale, loads)
    ones = np.ones(len(loads))
    shape = ExpertShape(scale.hidden, scale.inter, dtype=scale.dtype)
    return GroupedWork(
        layers.rows,
        ones * float(shape.weight_bytes),
        ones * float(shape.row_flops),
        ones * float(shape.row_bytes),
    )


def _layers(scale: RunScale, loads: Loads) -> Layers:
    rows = np.zeros((len(loads), max(len(load) for load in loads)))
    for place, load in enumerate(loads):
        rows[place, : len(load)] = load
    ones = np.ones(len(loads), np.int64)
    cached = np.zeros(len(loads), bool)
    return Layers(rows, ones * scale.hidden, ones * scale.inter, cached, scale.dtype)
