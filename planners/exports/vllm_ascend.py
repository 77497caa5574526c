"""vLLM-Ascend: ``additional_config.eplb_config.expert_map_path``.

The reader (``vllm_ascend/eplb/core/eplb_utils.py``, expert_file_to_tensor, read at commit 182b75ea)
takes ``layer_list[i]`` for the i-th MoE layer that the model builds: ``layer_id`` is a running
index over MoE layers, not the model's layer number. Devices are read in list order, and each rank's
experts become a logical-to-local map, which has room for one copy of an expert per rank.
https://github.com/vllm-project/vllm-ascend
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import InputError, UsageError
from moesim.placement import Placement
from moesim.planners.exports.common import (
    Exporter,
    ExportResult,
    ModelShape,
    check_fits_model,
    expert_table,
    placement_of,
    redundant_experts,
    refuse_empty_slots,
    refuse_single_device,
)
from moesim.safe_io import read_json, write_atomic

__all__ = ["VLLM_ASCEND"]


def _write(placement: Placement, model: ModelShape, folder: Path) -> ExportResult:
    refuse_empty_slots(placement, "vllm-ascend")
    refuse_single_device(placement, "vllm-ascend")
    check_fits_model(placement, model)
    by_device = placement.physical_to_logical.reshape(placement.layers, placement.devices, -1)
    _refuse_copies_on_one_device(by_device, placement.moe_layers)
    path = write_atomic(folder / "vllm_ascend_expert_map.json", _document(by_device))
    config = {
        "expert_map_path": str(path),
        "num_redundant_experts": redundant_experts(placement),
    }
    return ExportResult(
        files={"vllm-ascend": path},
        launch=(
            *("--tensor-parallel-size", str(placement.devices), "--enable-expert-parallel"),
            *("--additional-config", json.dumps({"eplb_config": config})),
        ),
        notes=(
            "Add the words to vllm serve MODEL; any tensor × data parallel size that gives "
            f"{placement.devices} ranks will do.",
            "Only model runner V1 reads the file, and its documentation announces the removal of "
            "static maps in v0.25.1.",
        ),
    )


def _refuse_copies_on_one_device(by_device: np.ndarray, moe_layers: tuple[int, ...]) -> None:
    ordered = np.sort(by_device, axis=2)
    twice = ordered[:, :, 1:] == ordered[:, :, :-1]
    if twice.any():
        layer, device, slot = np.argwhere(twice)[0]
        raise UsageError(
            "vllm-ascend cannot hold two copies of an expert on one device, and this placement has "
            f"expert {ordered[layer, device, slot]} twice on device {device} in layer "
            f"{moe_layers[layer]}\nfix: plan with fewer redundant experts or another planner, or "
            "export it with sglang, vllm or tensorrt-llm"
        )


def _document(by_device: np.ndarray) -> str:
    """The JSON text of [L, G, S / G] expert ids, one line per device."""
    layers = []
    for index, devices in enumerate(by_device.tolist()):
        lines = ",\n".join(
            f'   {{"device_id": {device}, "device_expert": {json.dumps(experts)}}}'
            for device, experts in enumerate(devices)
        )
        layers.append(
            f'  {{"layer_id": {index}, "device_count": {len(devices)}, "device_list": [\n{lines}\n'
            "  ]}"
        )
    body = ",\n".join(layers)
    return f'{{"moe_layer_count": {len(layers)},\n "layer_list": [\n{body}\n ]}}\n'


def _read(path: Path, model: ModelShape, devices: int) -> Placement:
    data = _object(read_json(path), ("moe_layer_count", "layer_list"), path, "")
    layers = data["layer_list"]
    if not isinstance(layers, list) or len(layers) != data["moe_layer_count"]:
        raise InputError(
            "moe_layer_count is not the length of layer_list",
            file=path,
            field="moe_layer_count",
            found=data["moe_layer_count"],
            allowed=str(len(layers)) if isinstance(layers, list) else "a list of layers",
        )
    rows = [_row(layer, index, devices, path, model) for index, layer in enumerate(layers)]
    table = expert_table(rows, file=path, field="layer_list", experts=model.experts)
    return placement_of(table, model, devices, file=path)


def _row(layer: Any, index: int, devices: int, path: Path, model: ModelShape) -> list[int]:
    """The slots of one layer in device order."""
    where = f"layer_list[{index}]"
    layer = _object(layer, ("layer_id", "device_count", "device_list"), path, where)
    _expect(layer["layer_id"], index, path, f"{where}.layer_id", "a running index over MoE layers")
    _expect(layer["device_count"], devices, path, f"{where}.device_count", "the devices")
    entries = layer["device_list"]
    if not isinstance(entries, list) or len(entries) != devices:
        raise InputError(
            "one entry per device is needed",
            file=path,
            field=f"{where}.device_list",
            found=f"{len(entries)} entries" if isinstance(entries, list) else entries,
            allowed=str(devices),
        )
    held = []
    for device, entry in enumerate(entries):
        place = f"{where}.device_list[{device}]"
        entry = _object(entry, ("device_id", "device_expert"), path, place)
        _expect(entry["device_id"], device, path, f"{place}.device_id", "devices in order")
        held.append(entry["device_expert"])
    field = f"{where}.device_list"
    slots = expert_table(held, file=path, field=field, experts=model.experts)
    return [int(expert) for expert in slots.ravel()]


def _object(value: Any, keys: tuple[str, ...], path: Path, field: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not set(keys) <= set(value):
        raise InputError(
            "an object with certain keys is needed",
            file=path,
            field=field or None,
            found=sorted(value) if isinstance(value, dict) else value,
            allowed=", ".join(keys),
        )
    return value


def _expect(value: object, expected: int, path: Path, field: str, meaning: str) -> None:
    if type(value) is not int or value != expected:
        raise InputError(
            "unexpected value",
            file=path,
            field=field,
            found=value,
            allowed=f"{expected}, {meaning}",
        )


VLLM_ASCEND = Exporter("vllm-ascend", "vLLM-Ascend, eplb_config.expert_map_path", _write, _read)
