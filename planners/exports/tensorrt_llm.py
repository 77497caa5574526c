"""TensorRT-LLM: ``moe_config.load_balancer: FILE.yaml``.

The reader, MoeLoadBalancerConfig in ``tensorrt_llm/llmapi/llm_args.py``, takes three keys and no
others: ``num_slots``, ``initial_global_assignments`` (model layer index → expert of every slot) and
``layer_updates_per_iter``, where 0 keeps the placement. A layer without an entry raises KeyError.
https://github.com/NVIDIA/TensorRT-LLM/tree/main/examples/wide_ep/ep_load_balancer
"""

from __future__ import annotations

import json
from pathlib import Path

from moesim.errors import InputError
from moesim.placement import Placement
from moesim.planners.exports.common import (
    Exporter,
    ExportResult,
    ModelShape,
    check_fits_model,
    expert_table,
    placement_of,
    refuse_empty_slots,
    refuse_single_device,
)
from moesim.safe_io import read_yaml, write_atomic

__all__ = ["TENSORRT_LLM"]

_KEYS = ("num_slots", "initial_global_assignments", "layer_updates_per_iter")


def _write(placement: Placement, model: ModelShape, folder: Path) -> ExportResult:
    refuse_empty_slots(placement, "tensorrt-llm")
    refuse_single_device(placement, "tensorrt-llm")
    check_fits_model(placement, model)
    rows = zip(placement.moe_layers, placement.physical_to_logical.tolist(), strict=True)
    lines = "".join(f"  {layer}: {json.dumps(row)}\n" for layer, row in rows)
    balancer = write_atomic(
        folder / "tensorrt_llm_load_balancer.yaml",
        f"num_slots: {placement.slots}\n"
        "layer_updates_per_iter: 0\n"
        f"initial_global_assignments:\n{lines}",
    )
    # A JSON string is a YAML string, whatever the path holds.
    options = write_atomic(
        folder / "tensorrt_llm_options.yaml",
        "enable_attention_dp: true\n"
        "moe_config:\n"
        "  backend: WIDEEP\n"
        f"  load_balancer: {json.dumps(str(balancer), ensure_ascii=False)}\n",
    )
    devices = str(placement.devices)
    return ExportResult(
        files={"tensorrt-llm": balancer, "tensorrt-llm-options": options},
        launch=(
            *("--tp_size", devices, "--ep_size", devices),
            *("--extra_llm_api_options", str(options)),
        ),
        notes=(
            "Add the words to trtllm-serve MODEL; the options file names the load-balancer file: "
            "correct that path when the files move.",
            "The load balancer needs attention data parallelism; other options of yours belong "
            "into the same options file.",
            "A multi-token-prediction layer is not placed here: switch it off or give it an "
            "assignment of its own.",
        ),
    )


def _read(path: Path, model: ModelShape, devices: int) -> Placement:
    data = read_yaml(path)
    if not isinstance(data, dict) or not set(_KEYS) <= set(data) <= {*_KEYS, "ep_size"}:
        raise InputError(
            "not a static load-balancer file",
            file=path,
            found=sorted(map(str, data)) if isinstance(data, dict) else data,
            allowed=", ".join(_KEYS),
        )
    if data.get("ep_size", devices) != devices:
        raise InputError(
            "the file is for another number of devices",
            file=path,
            field="ep_size",
            found=data["ep_size"],
            allowed=str(devices),
        )
    if data["layer_updates_per_iter"] != 0:
        raise InputError(
            "the engine would change the placement while it runs",
            file=path,
            field="layer_updates_per_iter",
            found=data["layer_updates_per_iter"],
            allowed="0, a static placement",
        )
    field = "initial_global_assignments"
    rows = data[field]
    if not isinstance(rows, dict) or set(rows) != set(model.moe_layers):
        raise InputError(
            "one entry per MoE layer of the model is needed, under its model layer index",
            file=path,
            field=field,
            found=sorted(map(str, rows)) if isinstance(rows, dict) else rows,
            allowed=f"{len(model.moe_layers)} keys, {model.moe_layers[0]} … {model.moe_layers[-1]}",
            fix="check that the file is for this model",
        )
    ordered = [rows[layer] for layer in model.moe_layers]
    table = expert_table(ordered, file=path, field=field, experts=model.experts)
    if data["num_slots"] != table.shape[1]:
        raise InputError(
            "num_slots is not the length of the rows",
            file=path,
            field="num_slots",
            found=data["num_slots"],
            allowed=str(table.shape[1]),
        )
    return placement_of(table, model, devices, file=path)


TENSORRT_LLM = Exporter("tensorrt-llm", "TensorRT-LLM, moe_config.load_balancer", _write, _read)
