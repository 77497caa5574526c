"""vLLM: a JSON list of one row per MoE layer.

No released vLLM reads a placement from a file. The format is that of the open pull request
https://github.com/vllm-project/vllm/pull/49572 (``eplb_config.initial_expert_map_path``): a list of
physical-to-logical lists, dense layers left out, or one such list for all layers.
"""

from __future__ import annotations

import json
from pathlib import Path

from moesim.placement import Placement
from moesim.planners.exports.common import (
    Exporter,
    ExportResult,
    ModelShape,
    check_fits_model,
    expert_table,
    json_rows,
    placement_of,
    redundant_experts,
    refuse_empty_slots,
    refuse_single_device,
)
from moesim.safe_io import read_json, write_atomic

__all__ = ["VLLM"]


def _write(placement: Placement, model: ModelShape, folder: Path) -> ExportResult:
    refuse_empty_slots(placement, "vllm")
    refuse_single_device(placement, "vllm")
    check_fits_model(placement, model)
    path = write_atomic(
        folder / "vllm_expert_map.json", json_rows(placement.physical_to_logical.tolist()) + "\n"
    )
    redundant = redundant_experts(placement)
    extended = json.dumps(
        {"num_redundant_experts": redundant, "initial_expert_map_path": str(path)}
    )
    return ExportResult(
        files={"vllm": path},
        launch=(
            *("--tensor-parallel-size", "1", "--data-parallel-size", str(placement.devices)),
            *("--enable-expert-parallel", "--enable-eplb"),
            *("--eplb-config", json.dumps({"num_redundant_experts": redundant})),
        ),
        notes=(
            "No released vLLM reads a placement from a file: with these words it reserves the same "
            "slots and places experts itself.",
            "A build with pull request 49572 (open when this was written) loads the file with "
            f"--eplb-config '{extended}'.",
            "Add the words to vllm serve MODEL; any tensor × data parallel size that gives "
            f"{placement.devices} ranks will do.",
        ),
    )


def _read(path: Path, model: ModelShape, devices: int) -> Placement:
    data = read_json(path)
    if isinstance(data, list) and data and not isinstance(data[0], list):
        data = [data] * len(model.moe_layers)
    table = expert_table(data, file=path, field="map", experts=model.experts)
    return placement_of(table, model, devices, file=path)


VLLM = Exporter("vllm", "vLLM, open pull request 49572", _write, _read)
