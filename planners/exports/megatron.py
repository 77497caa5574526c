"""Megatron-LM style: the rank of every expert, ``[L, E]`` int32 in a ``.npy`` file.

This is the table that an expert-parallel layer patched to load a placement needs; MoETuner
(https://arxiv.org/abs/2502.06643) patches Megatron-LM that way, with a saved tensor of its own.
Each expert has one rank, so replicas cannot be said; ranks may hold different numbers of experts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moesim.errors import InputError, UsageError
from moesim.placement import EMPTY_SLOT, Placement
from moesim.planners.exports.common import (
    Exporter,
    ExportResult,
    ModelShape,
    check_fits_model,
    placement_of,
)
from moesim.safe_io import map_npy, write_npy

__all__ = ["MEGATRON"]


def _write(placement: Placement, model: ModelShape, folder: Path) -> ExportResult:
    check_fits_model(placement, model)
    if (placement.replica_count() > 1).any():
        raise UsageError(
            "megatron has one rank per expert, and this placement has replicas\n"
            "fix: plan with --redundant 0, or export it with sglang, vllm, vllm-ascend or "
            "tensorrt-llm"
        )
    slots = placement.logical_to_physical()[:, :, 0]
    path = write_npy(folder / "megatron_expert_to_rank.npy", placement.device_of_slot()[slots])
    notes = [
        "Megatron-LM itself has no option that reads a placement: the file is for an expert-"
        "parallel layer patched to load one, such as MoETuner's.",
        "Within a rank, experts are taken in ascending order.",
    ]
    if placement.has_empty_slots:
        notes.append("Ranks hold different numbers of experts in a layer; the patch must allow it.")
    return ExportResult(
        files={"megatron": path},
        launch=("--expert-model-parallel-size", str(placement.devices)),
        notes=tuple(notes),
    )


def _read(path: Path, model: ModelShape, devices: int) -> Placement:
    """Experts of a rank come back in ascending order, its empty slots behind them."""
    ranks = np.asarray(map_npy(path))
    if ranks.ndim != 2 or ranks.dtype.kind not in "iu" or ranks.shape[1:] != (model.experts,):
        raise InputError(
            "a table of integer ranks is needed",
            file=path,
            found=f"shape {ranks.shape} of {ranks.dtype}",
            allowed=f"[MoE layers, {model.experts}] integers",
        )
    if ranks.size == 0 or ranks.min() < 0 or ranks.max() >= devices:
        raise InputError(
            "a rank is out of range",
            file=path,
            found=f"{ranks.min()} … {ranks.max()}" if ranks.size else "an empty table",
            allowed=f"0 … {devices - 1}",
        )
    return placement_of(_slots(ranks.astype(np.int64), devices), model, devices, file=path)


def _slots(ranks: np.ndarray, devices: int) -> np.ndarray:
    """Slots of the ranks: [L, E] → [L, G·s] int32, s the most experts on any rank."""
    layers, experts = ranks.shape
    count = np.zeros((layers, devices), np.int64)
    np.add.at(count, (np.arange(layers)[:, None], ranks), 1)
    width = int(count.max())
    order = np.argsort(ranks, axis=1, kind="stable")
    sorted_ranks = np.take_along_axis(ranks, order, axis=1)
    first = np.cumsum(count, axis=1) - count
    position = np.arange(experts) - np.take_along_axis(first, sorted_ranks, axis=1)
    table = np.full((layers, devices * width), EMPTY_SLOT, np.int32)
    np.put_along_axis(table, sorted_ranks * width + position, order.astype(np.int32), axis=1)
    return table


MEGATRON = Exporter("megatron", "expert → rank table for a patched Megatron-LM", _write, _read)
