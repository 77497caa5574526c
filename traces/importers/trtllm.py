"""Expert statistics of TensorRT-LLM (``EXPERT_STATISTIC_ITER_RANGE``): a folder.

Source: NVIDIA/TensorRT-LLM, tensorrt_llm/_torch/modules/fused_moe (ExpertStatistic) and
examples/wide_ep/ep_load_balancer/utils.py.

- ``meta_info.json``: ``{num_experts, num_experts_per_token, …}``;
- ``rank*.safetensors``: ``"{iteration}_{layer}"`` → token count per expert [E], summed over ranks;
- ``rank*_raw.safetensors`` (newer): the same keys → ``token_selected_experts`` [tokens, top_k].

Layers carry their index in the model (3 … 60 for DeepSeek-V3).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import InputError
from moesim.safe_io import read_json, read_safetensors
from moesim.traces.importers.contents import ImportOptions, Routing, StepCounts
from moesim.traces.importers.padded import Padded, strip_padding
from moesim.traces.importers.step_counts import strip_idle

__all__ = ["import_trtllm"]

_FILE = re.compile(r"rank(\d{1,6})(_raw)?\.safetensors")
_KEY = re.compile(r"(\d{1,9})_(\d{1,6})")
Cells = dict[tuple[int, int], np.ndarray]
"""Tensor of every (iteration, layer)."""


def import_trtllm(folder: Path, options: ImportOptions) -> Routing | StepCounts:
    """Read the statistics of all ranks: routing where raw ids were saved, else counts.

    Raises:
        InputError: If a file is missing or broken, or an iteration lacks a layer.
    """
    if not folder.is_dir():
        raise InputError(
            "a folder with meta_info.json and rank*.safetensors is needed",
            file=folder,
            found="a file" if folder.exists() else "no such folder",
            fix="name the folder given as EXPERT_STATISTIC_PATH",
        )
    _check_meta(folder / "meta_info.json", options)
    names = {file: match for file in folder.iterdir() if (match := _FILE.fullmatch(file.name))}
    raw = {int(match[1]): file for file, match in names.items() if match[2]}
    counted = {int(match[1]): file for file, match in names.items() if not match[2]}
    if not names:
        raise InputError(
            "no statistics in the folder",
            file=folder,
            allowed="rank*.safetensors",
            fix="name the folder given as EXPERT_STATISTIC_PATH",
        )
    chosen = raw or counted
    ranks = {rank: _read_rank(chosen[rank], options) for rank in sorted(chosen)}
    return (_routing if raw else _counts)(folder, chosen, ranks, options)


def _check_meta(file: Path, options: ImportOptions) -> None:
    meta = read_json(file)
    if not isinstance(meta, dict):
        raise InputError("a mapping is needed", file=file, found=meta)
    stated = {"num_experts": options.experts, "num_experts_per_token": options.top_k}
    for key, expected in stated.items():
        if meta.get(key) is not None and expected is not None and meta[key] != expected:
            raise InputError(
                "the statistics are of another model",
                file=file,
                field=key,
                found=meta[key],
                allowed=str(expected),
                fix="correct --experts or --top-k",
            )


def _read_rank(file: Path, options: ImportOptions) -> Cells:
    """The tensors of one rank within the wanted iterations."""
    first, last = options.iterations or (0, 2**62)
    cells: Cells = {}
    for name, tensor in read_safetensors(file).items():
        match = _KEY.fullmatch(name)
        if match is None:
            raise InputError(
                "not the name of a statistic",
                file=file,
                field=name,
                allowed="ITERATION_LAYER",
                fix="name the folder given as EXPERT_STATISTIC_PATH",
            )
        if tensor.dtype.kind not in "iu":
            raise InputError("integers are needed", file=file, field=name, found=tensor.dtype.name)
        iteration, layer = int(match[1]), int(match[2])
        if first <= iteration <= last:
            cells[iteration, layer] = tensor
    if not cells:
        raise InputError(
            "no iteration in the file",
            file=file,
            found="none" if options.iterations is None else f"none of {first} … {last}",
            fix="correct --iterations",
        )
    return cells


def _axes(files: Mapping[int, Path], ranks: dict[int, Cells]) -> tuple[list[int], list[int]]:
    """Iterations and layers, once every rank has all layers of all iterations."""
    keys = {key for cells in ranks.values() for key in cells}
    iterations, layers = sorted({i for i, _ in keys}), sorted({layer for _, layer in keys})
    for rank, cells in ranks.items():
        for iteration in iterations:
            for layer in layers:
                if (iteration, layer) not in cells:
                    raise InputError(
                        "a layer is missing in an iteration",
                        file=files[rank],
                        field=f"{iteration}_{layer}",
                        found="nothing",
                        allowed=f"{len(layers)} layers in each of {len(iterations)} iterations",
                        fix="choose complete iterations with --iterations A-B",
                    )
    return iterations, layers


def _counts(
    folder: Path, files: Mapping[int, Path], ranks: dict[int, Cells], options: ImportOptions
) -> StepCounts:
    iterations, layers = _axes(files, ranks)
    counts = np.zeros((len(iterations), len(layers), options.experts), np.int64)
    step_of = {iteration: step for step, iteration in enumerate(iterations)}
    row_of = {layer: row for row, layer in enumerate(layers)}
    for rank, cells in ranks.items():
        for (iteration, layer), tensor in cells.items():
            if tensor.shape != (options.experts,):
                raise InputError(
                    "one count per expert is needed",
                    file=files[rank],
                    field=f"{iteration}_{layer}",
                    found=tensor.shape,
                    allowed=f"({options.experts},)",
                    fix="pass the model's number of experts with --experts",
                )
            counts[step_of[iteration], row_of[layer]] += tensor.astype(np.int64)
    return strip_idle(
        counts,
        tuple(layers),
        options,
        folder,
        dialect="counts",
        stepwise=True,
        warnings=("counts only: which experts a token chose together was not recorded",),
    )


def _routing(
    folder: Path, files: Mapping[int, Path], ranks: dict[int, Cells], options: ImportOptions
) -> Routing:
    iterations, layers = _axes(files, ranks)
    kept = _without_replicas(ranks)
    blocks = []
    for iteration in iterations:
        for rank, cells in kept.items():
            first = cells[iteration, layers[0]]
            for layer in layers:
                tensor = cells[iteration, layer]
                if tensor.ndim != 2 or tensor.shape != first.shape:
                    raise InputError(
                        "the layers of an iteration differ in tokens or top-k",
                        file=files[rank],
                        field=f"{iteration}_{layer}",
                        found=tensor.shape,
                        allowed=f"(tokens, top-k), {first.shape} as in layer {layers[0]}",
                        fix="choose complete iterations with --iterations A-B",
                    )
            blocks.append(np.stack([cells[iteration, layer] for layer in layers]))
    widths = {block.shape[2] for block in blocks}
    if len(widths) > 1:
        raise InputError(
            "the iterations differ in top-k", file=folder, field="top-k", found=sorted(widths)
        )
    padded = Padded(np.concatenate(blocks, axis=1), tuple(layers), folder, "token_selected_experts")
    routing = strip_padding(padded, options, "raw")
    replicas = _tokens(ranks, layers[0]) - _tokens(kept, layers[0])
    warnings = routing.warnings
    if replicas:
        warnings += ("ranks that recorded the same tokens as another rank were counted once",)
    return replace(
        routing, dropped=routing.dropped | {"replica_tokens": replicas}, warnings=warnings
    )


def _without_replicas(ranks: dict[int, Cells]) -> dict[int, Cells]:
    """Drop ranks that hold the same tokens as a lower one (tensor parallelism, not data)."""
    kept: dict[int, Cells] = {}
    for rank, cells in ranks.items():
        if not any(_same(cells, other) for other in kept.values()):
            kept[rank] = cells
    return kept


def _same(own: Mapping[Any, np.ndarray], other: Mapping[Any, np.ndarray]) -> bool:
    return own.keys() == other.keys() and all(np.array_equal(own[k], other[k]) for k in own)


def _tokens(ranks: dict[int, Cells], layer: int) -> int:
    return sum(len(t) for cells in ranks.values() for (_, at), t in cells.items() if at == layer)
