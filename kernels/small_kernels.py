"""The kernels around the GEMMs as their ops launch them, for the compiler's check."""

from __future__ import annotations

from typing import Any

from moesim.kernels import combine, permute, quantise, routing, row_kernel, tile_table
from moesim.kernels.aot import Constant
from moesim.kernels.quantise import BLOCK
from moesim.kernels.targets import Target

__all__ = ["ELEMENTS", "Arguments", "small_kernels"]

Arguments = dict[str, str | Constant]
"""Of a kernel: the type or the constant of every argument."""

ELEMENTS = {
    "bf16": {"cuda": "bf16", "hip": "bf16"},
    "fp8": {"cuda": "fp8e4nv", "hip": "fp8e4b8"},
}
"""Names of types in signatures, by type and backend."""


def small_kernels(target: Target) -> dict[str, tuple[Any, Arguments]]:
    """The kernels around the GEMMs, for DeepSeek-V3's layer: 256 experts, top-8, H = 7168."""
    experts, top_k = Constant(256), Constant(8)
    found: dict[str, tuple[Any, Arguments]] = {
        "route": (
            routing.route_kernel,
            {
                "logits": "*bf16",
                "bias": "*fp32",
                "ids": "*i32",
                "weights": "*fp32",
                "tokens": "i32",
                "experts": "i32:16",
                "scale": "fp32",
                "stride_t": "i32:16",
                "stride_e": Constant(1),
                "TOP_K": top_k,
                "TOP_K_PADDED": top_k,
                "EXPERTS": experts,
                "BLOCK_T": Constant(16),
                "SIGMOID": Constant(True),
                "BIAS": Constant(True),
                "RENORMALISE": Constant(True),
            },
        ),
        "permute-count": (
            permute.count_kernel,
            {
                "ids": "*i32",
                "block_counts": "*i32",
                "choices": "i32",
                "experts": "i32:16",
                "BLOCK": Constant(permute.BLOCK),
                "EXPERTS": experts,
            },
        ),
        "permute-scan": (
            permute.scan_kernel,
            {
                "block_counts": "*i32",
                "block_starts": "*i32",
                "counts": "*i32",
                "blocks": "i32",
                "experts": "i32:16",
                "BLOCKS": Constant(permute.SCAN_BLOCKS),
                "EXPERTS": Constant(permute.SCAN_EXPERTS),
            },
        ),
        "permute-place": (
            permute.place_kernel,
            {
                "ids": "*i32",
                "weights": "*fp32",
                "block_starts": "*i32",
                "counts": "*i32",
                "token": "*i32",
                "row": "*i32",
                "weight": "*fp32",
                "choices": "i32",
                "experts": "i32:16",
                "TOP_K": top_k,
                "BLOCK": Constant(permute.BLOCK),
                "EXPERTS": experts,
            },
        ),
        "tile-table": (
            tile_table.tile_table_kernel,
            {
                **dict.fromkeys(("counts", "tiles", "used"), "*i32"),
                "experts": "i32:16",
                **dict.fromkeys(("rows", "capacity", "fewest", "most"), "i32"),
                "BLOCK_M": Constant(128),
                "EXPERTS": experts,
            },
        ),
        "sum": (
            row_kernel.sum_kernel,
            {
                "partial": "*fp32",
                "out": "*bf16",
                "row_scale": "*fp32",
                "tiles": "*i32",
                "used": "*i32",
                "capacity": "i32",
                "n": "i32:16",
                "stride_om": "i32:16",
                "BLOCK_M": Constant(16),
                "BLOCK_N": Constant(128),
                "SPLIT_K": Constant(4),
                "GATED": Constant(True),
                "ROW_SCALE": Constant(True),
            },
        ),
        "combine": (
            combine.combine_kernel,
            {
                "y": "*bf16",
                "row": "*i32",
                "out": "*bf16",
                "hidden": "i32:16",
                "stride_y": "i32:16",
                "TOP_K": top_k,
                "BLOCK": Constant(1024),
            },
        ),
    }
    if target.fp8 is not None:
        found["quantise"] = (
            quantise.quantise_rows_kernel,
            {
                "x": "*bf16",
                "elements": f"*{ELEMENTS['fp8'][target.backend]}",
                "scales": "*fp32",
                "rows": "i32",
                "k": "i32:16",
                "stride_x": "i32:16",
                "most": "fp32",
                "ROWS": Constant(quantise.ROWS_PER_PROGRAM),
                "BLOCK_K": Constant(BLOCK),
                "ROUND_FIRST": Constant(False),
            },
        )
    return found
