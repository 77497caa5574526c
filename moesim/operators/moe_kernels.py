"""What is known of fused expert kernels without timing them: formats, tiles, configurations.

Sources: the default configurations in sglang 0.5.14
(``sglang/srt/layers/moe/moe_runner/triton_utils/fused_moe_triton_config.py``) and vllm 0.24.0
(``vllm/model_executor/layers/fused_moe/fused_moe.py``), and the names of the tuned configurations
in both wheels (``hwprofiles/fitted/triton_tuned.json``).
"""

from __future__ import annotations

from functools import cache

import numpy as np

from moesim.errors import InputError
from moesim.hardware import profiles_folder
from moesim.operators.moe import TILES
from moesim.safe_io import read_json

__all__ = [
    "ACTIVATION_BYTES",
    "ARITHMETIC",
    "WEIGHT_BYTES",
    "cache_bytes",
    "family",
    "measured_dtype",
    "tile_choice",
    "weight_bytes",
]

WEIGHT_BYTES = {
    "bfloat16": 2.0,
    "fp8": 1.0,
    "fp8_block": 1.0 + 4 / 128**2,  # one float32 per 128 × 128 weights
    "sq": 1.0,  # INT8 weights and activations; a scale per column and per token
    "int4_wo": 0.5 + 2 / 32,  # a bfloat16 per 32 weights, as in Kimi-K2's checkpoint
    "w4a16_mxfp4": 0.5 + 1 / 32,  # OCP MX: 8 bits per 32 elements
    "w4a8_mxfp4_mxfp8": 0.5 + 1 / 32,
    "w4afp8": 0.5 + 2 / 128,
    "nvfp4": 0.5 + 1 / 16,  # 8 bits per 16 elements
}
"""Bytes per weight, scales included, by the measured tables' name of the type."""

MEASURED_DTYPES = {
    "none": "bfloat16",
    "fp8": "fp8",
    "fp8-block": "fp8_block",
    "int4": "int4_wo",
    "mxfp4": "w4a16_mxfp4",
    "nvfp4": "nvfp4",
}
"""The tables' name of each quantisation that checkpoints have."""

ARITHMETIC = {
    "bfloat16": "bf16",
    "fp8": "fp8",
    "fp8_block": "fp8",
    "sq": "int8",
    "int4_wo": "bf16",
    "w4a16_mxfp4": "bf16",
    "w4a8_mxfp4_mxfp8": "fp8",
    "w4afp8": "fp8",
    "nvfp4": "fp4",
}
"""Arithmetic of the GEMMs by type: weights narrower than the activations are widened first."""

ACTIVATION_BYTES = {"bf16": 2.0, "fp8": 1.0, "int8": 1.0, "fp4": 0.5}
"""Bytes per element of a GEMM's input, by its arithmetic."""

CACHE_BYTES = {"a100_sxm": 40e6, "h100_sxm": 50e6, "h200_sxm": 50e6, "l40s": 96e6}
CACHE_BYTES |= dict.fromkeys(("b200_sxm", "b300_sxm", "gb200", "gb300"), 126e6)
CACHE_BYTES |= {"rtx_pro_6000_server": 128e6, "arc_b60": 18e6}
"""L2 by device profile: NVIDIA's architecture white papers, Intel's product page."""

SGLANG_TRITON = "sglang_fused_moe_triton"
VLLM_EARLIER = "vllm_fused_moe"
FAMILIES = ("marlin", "deepgemm", "flashinfer_trtllm", "cutlass", "xpu", "triton")


def measured_dtype(method: str) -> str:
    """The measured tables' name of a checkpoint's quantisation.

    Args:
        method: :attr:`~moesim.model.spec.Quantisation.method`, such as ``fp8-block``.

    Raises:
        InputError: If no kernel for such experts was measured.
    """
    if method not in MEASURED_DTYPES:
        raise InputError(
            "no expert kernel was measured with this quantisation",
            field="quantisation.method",
            found=method,
            allowed=", ".join(MEASURED_DTYPES),
        )
    return MEASURED_DTYPES[method]


def cache_bytes(device: str) -> float:
    """Last-level cache of a device; Hopper's where it is not known."""
    return CACHE_BYTES.get(device, CACHE_BYTES["h100_sxm"])


def family(kernel: str) -> str:
    """Which family of implementations a kernel belongs to, as far as its name tells."""
    if kernel in ("moe_torch_flow", "moe_torch_flow_nongated", "moe_torch_flow_min_latency"):
        return "cutlass"
    if kernel == VLLM_EARLIER:
        return "triton"
    return next((name for name in FAMILIES if name in kernel), kernel)


def weight_bytes(kernel: str, dtype: str) -> float:
    """Bytes that a kernel reads per weight.

    SGLang's Triton kernel has no mxfp4 path: it is given weights widened to bfloat16 (measured
    rows stream 2 bytes per weight at the memory's full bandwidth).
    """
    if dtype not in WEIGHT_BYTES:
        raise InputError(
            "a weight format of unknown width", found=dtype, allowed=", ".join(WEIGHT_BYTES)
        )
    if kernel.startswith(SGLANG_TRITON) and dtype == "w4a16_mxfp4":
        return WEIGHT_BYTES["bfloat16"]
    return WEIGHT_BYTES[dtype]


def tile_choice(
    kernel: str,
    dtype: str,
    system: str,
    tokens: np.ndarray,
    group_copies: np.ndarray,
    local_experts: np.ndarray,
    width: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Which tiles a kernel may use for each layer, and in which configuration it runs.

    Args:
        kernel: As the measured tables name it.
        dtype: Same.
        system: Device profile.
        tokens: ``[rows]`` tokens of the expert-parallel group.
        group_copies: ``[rows]`` token copies of the group: tokens times top_k.
        local_experts: ``[rows]`` experts on the device.
        width: ``[rows]`` elements between the GEMMs on the device.

    Returns:
        ``tile_allowed [tiles, rows] bool`` and ``variant [rows] int8`` of
        :class:`~moesim.operators.moe.MoeShapes`. Kernels that tune themselves may use any tile.
    """
    rows = len(tokens)
    every = np.ones((len(TILES), rows), bool)
    if family(kernel) == "marlin":
        return TILES[:, None] == _marlin_tile(group_copies / local_experts), np.zeros(rows, np.int8)
    if not _shipped_configurations(kernel):
        return every, np.zeros(rows, np.int8)
    sglang = kernel.startswith(SGLANG_TRITON)
    if sglang:
        few, tile = _sglang_default(dtype, tokens, local_experts)
    elif kernel == VLLM_EARLIER:
        few, tile = _vllm_earlier_default(dtype, tokens, local_experts)
    else:
        few, tile = _vllm_default(dtype, tokens)
    tuned = _is_tuned("sglang" if sglang else "vllm", system, dtype, local_experts, width)
    variant = np.where(tuned, 0, np.where(few, 1, 2)).astype(np.int8)
    return tuned | (TILES[:, None] == tile), variant


def _shipped_configurations(kernel: str) -> bool:
    """Whether the kernel looks its tiles up in configurations that come with the engine."""
    return (
        kernel.startswith(SGLANG_TRITON)
        or kernel == VLLM_EARLIER
        or kernel.endswith("_triton_tritonexperts")
    )


def _marlin_tile(copies_per_expert: np.ndarray) -> np.ndarray:
    """Marlin's tile: the first of 8, 16, 32, 48, 64 that 0.9 of it holds the copies, ``[rows]``.

    All copies of the group are counted against the device's own experts (``fused_marlin_moe`` of
    both engines), so that ranks of a large group get tiles too large for what they hold. Tiles of
    8 and 48 are taken as 16 and 64.
    """
    place = np.searchsorted(0.9 * np.array([16, 32, 64]), copies_per_expert, side="right")
    return np.array([16, 32, 64, 64])[place]


def _sglang_default(
    dtype: str, tokens: np.ndarray, local_experts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Whether SGLang's default is the one for few tokens, and its tile, ``[rows]`` each."""
    if dtype == "fp8_block":
        return np.zeros(len(tokens), bool), np.full(len(tokens), 64)
    few = tokens <= local_experts
    return few, np.where(few, 64, 128) if dtype == "fp8" else np.where(few, 16, 64)


def _vllm_default(dtype: str, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Same for vLLM."""
    few = tokens <= 64
    if dtype == "fp8_block":
        return few, np.where(few, 16, 64)
    tile = np.array([16, 32, 64, 128])[np.searchsorted([32, 96, 512], tokens)]
    return few, tile


def _vllm_earlier_default(
    dtype: str, tokens: np.ndarray, local_experts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Same for vLLM before 0.20, whose default is that of the kernel SGLang took over."""
    if dtype == "fp8_block":
        return np.zeros(len(tokens), bool), np.full(len(tokens), 64)
    few = tokens <= local_experts
    return few, np.where(few, 16, 64)


def _is_tuned(
    engine: str, system: str, dtype: str, local_experts: np.ndarray, width: np.ndarray
) -> np.ndarray:
    """Whether the engine ships a configuration for the experts and width, ``[rows] bool``."""
    format_ = "bfloat16" if ARITHMETIC.get(dtype) == "bf16" else dtype
    pairs = _tuned()[engine].get(system, {}).get(format_, [])
    wanted = np.array([experts * 2**20 + columns for experts, columns in pairs], np.int64)
    return np.isin(local_experts.astype(np.int64) * 2**20 + width.astype(np.int64), wanted)


@cache
def _tuned() -> dict[str, dict[str, dict[str, list[list[int]]]]]:
    """Engine → system → type → pairs of experts and width."""
    document = read_json(profiles_folder() / "fitted" / "triton_tuned.json")
    tuned: dict[str, dict[str, dict[str, list[list[int]]]]] = document["tuned"]
    return tuned
