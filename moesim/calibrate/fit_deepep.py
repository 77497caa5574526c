"""Fit of DeepEP's coefficients to measured dispatch and combine times.

Coefficients are fitted as logarithms between bounds of physics, with a robust loss on the log of
predicted over measured time, from one fixed starting point.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from moesim.calibrate.robust_fit import Coefficient, Fitted, evenly_drawn, fit_log
from moesim.operators.deepep import (
    LowLatencyCoefficients,
    NormalCoefficients,
    Phase,
    low_latency_s,
    normal_s,
)

__all__ = ["fit_low_latency", "fit_normal"]

Bound = tuple[float, float, float]
"""Start, least and most of a coefficient."""


LINK: Bound = (3e-12, 4e-13, 5e-11)  # 2.5 TB/s … 20 GB/s; NVLink 5 has 0.9, PCIe 4 0.03
RDMA: Bound = (2.2e-11, 5e-12, 2e-10)  # 200 … 5 GB/s; a 400 Gbit/s card has 50
OVERLAP: Bound = (2.0, 1.0, 12.0)  # from a sum to all but the maximum
LATENCY: Bound = (1.2, 0.8, 8.0)  # below 1: the latency grows while the first tokens flow

LOW_LATENCY: Mapping[str, Bound] = {
    "launch_s": (1e-5, 1e-6, 1e-3),
    "expert_s": (1e-8, 1e-11, 1e-6),
    "internode_s": (1e-5, 1e-8, 1e-3),
    "token_s": (1e-6, 1e-9, 1e-4),
    "token_s_per_byte": (1e-10, 1e-13, 1e-8),
    "copy_s_per_byte": (1e-11, 1e-14, 1e-9),
    "link_s_per_byte": LINK,
    "rdma_s_per_byte": RDMA,
    "flow_overlap": OVERLAP,
    "latency_overlap": LATENCY,
}
NORMAL: Mapping[str, Bound] = {
    "launch_s": (3e-5, 1e-6, 1e-3),
    "launch_s_per_byte": (1e-9, 1e-12, 1e-7),
    "internode_s": (3e-5, 1e-7, 1e-3),
    "token_s": (3e-7, 1e-10, 1e-5),
    "token_s_per_byte": (2e-11, 1e-14, 1e-9),
    "copy_s": (6e-8, 1e-10, 1e-5),
    "copy_s_per_byte": (4e-11, 1e-13, 1e-9),
    "link_s_per_byte": LINK,
    "relay_s_per_byte": (5e-11, 1e-13, 1e-8),
    "rdma_s_per_byte": RDMA,
    "flow_overlap": OVERLAP,
    "latency_overlap": LATENCY,
}
ACROSS = ("internode_s", "relay_s_per_byte", "rdma_s_per_byte")
"""Coefficients that only rows across nodes tell anything about."""

EVALUATIONS = 80
PRIOR = 0.02
"""Weight of the starting values: one that is e times off costs as much as a row that is 2 % off.
It only decides what the rows leave open, such as launch against expert time of a single model."""
FIT_ROWS = 1200
"""Rows that a fit uses at most, drawn evenly: a hundred for each coefficient."""


def fit_low_latency(
    phase: Phase, columns: Mapping[str, Any], measured_s: np.ndarray, device_sms: int
) -> LowLatencyCoefficients:
    """Coefficients of a low-latency phase.

    Args:
        phase: Dispatch or combine.
        columns: ``tokens hidden top_k experts ranks nodes``, each [rows].
        measured_s: [rows] seconds.
        device_sms: Streaming multiprocessors of the GPU.
    """
    nodes = tuple(int(count) for count in np.unique(columns["nodes"]))
    fixed: dict[str, Any] = {"phase": phase, "device_sms": device_sms, "nodes": nodes}
    bounds = _identified(LOW_LATENCY, nodes)
    absent: dict[str, Any] = {name: None for name in LOW_LATENCY if name not in bounds}

    def model(values: Mapping[str, Any]) -> np.ndarray:
        document = LowLatencyCoefficients.model_construct(**fixed, **values, **absent)
        return low_latency_s(document, **columns)

    fitted = _fit(bounds, model, measured_s)
    return LowLatencyCoefficients(**fixed, **fitted.values, **absent, on_bounds=fitted.at_bound)


def fit_normal(
    phase: Phase, columns: Mapping[str, Any], measured_s: np.ndarray
) -> NormalCoefficients:
    """Coefficients of a normal phase; arguments as of ``fit_low_latency``, with ``sms``."""
    nodes = tuple(int(count) for count in np.unique(columns["nodes"]))
    drawn = evenly_drawn(np.arange(len(measured_s)), FIT_ROWS)
    columns, measured_s = {name: c[drawn] for name, c in columns.items()}, measured_s[drawn]
    fixed: dict[str, Any] = {"phase": phase, "nodes": nodes}
    bounds = dict(_identified(NORMAL, nodes))
    rdma = bounds.pop("rdma_s_per_byte", None)
    across = [count for count in nodes if count > 1]
    if rdma is not None:
        bounds |= {f"rdma_s_per_byte[{count}]": rdma for count in across}

    def gathered(values: Mapping[str, float]) -> dict[str, Any]:
        plain: dict[str, Any] = {name: v for name, v in values.items() if "[" not in name}
        if rdma is not None:
            each = {count: values[f"rdma_s_per_byte[{count}]"] for count in across}
            plain["rdma_s_per_byte"] = tuple(each.get(count, 0.0) for count in nodes)
        return plain | {name: None for name in NORMAL if name not in plain}

    def model(values: Mapping[str, float]) -> np.ndarray:
        return normal_s(NormalCoefficients.model_construct(**fixed, **gathered(values)), **columns)

    fitted = _fit(bounds, model, measured_s)
    return NormalCoefficients(**fixed, **gathered(fitted.values), on_bounds=fitted.at_bound)


def _fit(
    bounds: Mapping[str, Bound],
    model: Callable[[Mapping[str, float]], np.ndarray],
    measured_s: np.ndarray,
) -> Fitted:
    """Fit the rows, and the starting values as if they were one more weak row each."""
    coefficients = [Coefficient(name, *bound) for name, bound in bounds.items()]

    def seconds(values: Mapping[str, float]) -> np.ndarray:
        off = [values[coefficient.name] / coefficient.start for coefficient in coefficients]
        return np.concatenate([model(values), np.array(off) ** PRIOR])

    target = np.concatenate([measured_s, np.ones(len(coefficients))])
    return fit_log(seconds, target, coefficients, evaluations=EVALUATIONS)


def _identified(bounds: Mapping[str, Bound], nodes: tuple[int, ...]) -> dict[str, Bound]:
    """The coefficients that the rows say something about."""
    return {name: b for name, b in bounds.items() if max(nodes) > 1 or name not in ACROSS}
