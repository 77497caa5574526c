"""SGLang: ``--init-expert-location FILE.json``.

The reader, ``python/sglang/srt/eplb/expert_location.py`` at commit 01fec5c2, passes the object's
keys on as keyword arguments, so the map must be the only one. It is indexed by the model's own
layer number: dense layers have a row too.
https://github.com/sgl-project/sglang
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moesim.errors import InputError
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
)
from moesim.safe_io import read_json, write_atomic

__all__ = ["SGLANG"]

_KEY = "physical_to_logical_map"


def _write(placement: Placement, model: ModelShape, folder: Path) -> ExportResult:
    refuse_empty_slots(placement, "sglang")
    check_fits_model(placement, model)
    # Dense layers route nothing; the engine's own trivial map fills their rows.
    trivial = np.arange(placement.slots, dtype=np.int32) % placement.experts
    table = np.tile(trivial, (model.layers, 1))
    table[list(placement.moe_layers)] = placement.physical_to_logical
    path = write_atomic(
        folder / "sglang_expert_location.json",
        f'{{"{_KEY}": {json_rows(table.tolist())}}}\n',
    )
    devices = str(placement.devices)
    return ExportResult(
        files={"sglang": path},
        launch=(
            *("--tp-size", devices, "--ep-size", devices, "--moe-a2a-backend", "deepep"),
            *("--init-expert-location", str(path)),
            *("--ep-num-redundant-experts", str(redundant_experts(placement))),
            *("--ep-dispatch-algorithm", "static"),
        ),
        notes=(
            "Add the words to python -m sglang.launch_server --model-path MODEL; without "
            "--ep-dispatch-algorithm the router's ids are not translated to the slots of the map.",
            "static binds each rank to one copy of a replicated expert; dynamic draws a copy per "
            "token.",
            "Leave --enable-eplb out: it replaces the map after the first rebalance.",
        ),
    )


def _read(path: Path, model: ModelShape, devices: int) -> Placement:
    data = read_json(path)
    if not isinstance(data, dict) or set(data) != {_KEY}:
        found = sorted(data) if isinstance(data, dict) else data
        raise InputError(
            "SGLang needs an object with one key",
            file=path,
            found=found,
            allowed=f'{{"{_KEY}": [[…]]}}',
            fix="remove the other keys; logical_count holds loads, not a placement",
        )
    table = expert_table(data[_KEY], file=path, field=_KEY, experts=model.experts)
    if len(table) != model.layers:
        raise InputError(
            "one row per model layer is needed, dense layers included",
            file=path,
            field=_KEY,
            found=f"{len(table)} rows",
            allowed=f"{model.layers}, the layers of {model.name}",
            fix="check that the file is for this model",
        )
    return placement_of(table[list(model.moe_layers)], model, devices, file=path)


SGLANG = Exporter("sglang", "SGLang, --init-expert-location", _write, _read)
