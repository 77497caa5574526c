"""How the time of an expert layer changes with its coefficients, in closed form, for fits."""

from __future__ import annotations

import numpy as np

from moesim.operators.moe import (
    GemmParts,
    MoeCoefficients,
    MoeDevice,
    MoeShapes,
    gemm_parts,
    gemm_sizes,
    overhead_parts_s,
    smooth_maximum,
)

__all__ = ["moe_time_and_slopes"]


def moe_time_and_slopes(
    shapes: MoeShapes, device: MoeDevice, of: MoeCoefficients
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of each layer, and their derivatives by the logarithm of every coefficient.

    Returns:
        ``[rows]`` as :func:`~moesim.operators.moe.moe_time_s` gives them, and
        ``[rows, coefficients]`` in the order of the fields.
    """
    names = list(MoeCoefficients.model_fields)
    slopes = np.zeros((len(names), len(shapes.hidden)))
    total_s = np.zeros(len(shapes.hidden))
    for name, part_s in overhead_parts_s(shapes, device, of).items():
        total_s = total_s + part_s
        # Times grow with a time and shrink with a share of the bandwidth.
        slopes[names.index(name)] += part_s if name.endswith("_s") else -part_s
    for columns, depth in gemm_sizes(shapes):
        gemm = gemm_parts(shapes, device, of, columns, depth)
        gemm_s = smooth_maximum(of.overlap_exponent, *gemm.parts_s())
        total_s = total_s + gemm_s
        for name, slope in _gemm_slopes(gemm, gemm_s, shapes.variant, depth, of).items():
            slopes[names.index(name)] += slope
    return total_s, slopes.T


def _gemm_slopes(
    gemm: GemmParts,
    gemm_s: np.ndarray,
    variant: np.ndarray,
    depth: np.ndarray,
    of: MoeCoefficients,
) -> dict[str, np.ndarray]:
    """Derivatives of one GEMM's smooth maximum by the logarithms of its coefficients."""
    some = np.maximum(gemm_s, 1e-30)
    relative = [part / some for part in gemm.parts_s()]
    weights = [ratio**of.overlap_exponent for ratio in relative]
    logs = [np.log(np.maximum(ratio, 1e-300)) for ratio in relative]
    memory, compute, latency = (gemm_s * weight for weight in weights)
    streamed = of.k_prologue_memory / depth
    few, many = variant == 1, variant == 2
    waves = of.wave_weight / (1 + of.wave_weight) ** 2
    return {
        "overlap_exponent": gemm_s
        * sum((w * log for w, log in zip(weights, logs, strict=True)), np.zeros_like(gemm_s)),
        "weight_bandwidth_share": -memory,
        "small_bandwidth": -memory * few,
        "large_bandwidth": -memory * many,
        "k_prologue_memory": memory * streamed / (1 + streamed),
        "tile_rows": compute * gemm.tile_share,
        "row_cost": compute * (gemm.row_share + gemm.cache_share),
        "cache_penalty": compute * gemm.cache_share,
        "wave_weight": compute * (gemm.tile_share + gemm.row_share) * gemm.full * waves,
        "k_prologue": compute * of.k_prologue / (depth + of.k_prologue),
        "small_cost": compute * few,
        "large_cost": compute * many,
        "k_step_s": latency,
    }
