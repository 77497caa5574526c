"""What all exporters share: what they take, what they give, and the checks of both directions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from moesim.errors import InputError, UsageError
from moesim.placement import Placement

__all__ = [
    "ExportResult",
    "Exporter",
    "ModelShape",
    "check_fits_model",
    "expert_table",
    "json_rows",
    "redundant_experts",
    "refuse_empty_slots",
    "refuse_single_device",
]


class ModelShape(Protocol):
    """The part of a model that the formats depend on; ``ModelSpec`` has it."""

    @property
    def name(self) -> str:
        """Name of the model, for messages."""

    @property
    def layers(self) -> int:
        """Transformer layers, dense ones included."""

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Model layer index of every MoE layer, ascending."""

    @property
    def experts(self) -> int:
        """Routed experts per MoE layer (E)."""


@dataclass(frozen=True)
class ExportResult:
    """What an exporter wrote and how to start the engine with it.

    Attributes:
        files: Path of each file, by a name that is unique over all exporters.
        launch: Command-line words to add to the engine's own. Paths in them, and in the files, are
            written as the folder was given.
        notes: What to know before using it, one sentence or two each.
    """

    files: dict[str, Path]
    launch: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Exporter:
    """A format that a serving or training engine reads.

    Attributes:
        name: As in ``--export``.
        engine: The engine and its reader, in words.
        write: Writes the placement for a model into a folder.
        read: Reads a file of the format back, for a model on a number of devices.
    """

    name: str
    engine: str
    write: Callable[[Placement, ModelShape, Path], ExportResult]
    read: Callable[[Path, ModelShape, int], Placement]


def redundant_experts(placement: Placement) -> int:
    """Slots beyond one per expert, S − E."""
    return placement.slots - placement.experts


def check_fits_model(placement: Placement, model: ModelShape) -> None:
    """Check that the placement covers exactly the MoE layers and experts of the model.

    An engine reads one row per layer and fails, or worse does not, where one is missing.

    Raises:
        InputError: Naming the first layer that is beyond the model, dense, or missing.
    """
    if placement.experts != model.experts:
        raise InputError(
            f"the placement is not one of {model.name}",
            field="experts",
            found=placement.experts,
            allowed=str(model.experts),
            fix="plan with the model that is exported for",
        )
    if placement.moe_layers == tuple(model.moe_layers):
        return
    for layer in placement.moe_layers:
        if layer >= model.layers:
            raise InputError(
                "a layer lies beyond the model's last",
                field="moe_layers",
                found=layer,
                allowed=f"0 … {model.layers - 1} ({model.name} has {model.layers} layers)",
                fix="number layers as the model does, dense layers included",
            )
        if layer not in model.moe_layers:
            raise InputError(
                f"layer {layer} of {model.name} is dense",
                field="moe_layers",
                found=f"indices {placement.moe_layers[0]} … {placement.moe_layers[-1]}",
                allowed=f"its MoE layers, {_span(model.moe_layers)}",
                fix="number layers as the model does, dense layers included",
            )
    missing = sorted(set(model.moe_layers) - set(placement.moe_layers))
    raise InputError(
        f"MoE layers of {model.name} are missing",
        field="moe_layers",
        found=f"no row for {_span(missing)}",
        allowed=f"all {len(model.moe_layers)} MoE layers",
        fix="plan from a trace or counts that cover every MoE layer",
    )


def _span(layers: Sequence[int]) -> str:
    """``3 … 60`` for a run of indices, else a list of the first few."""
    if len(layers) == 1:
        return f"layer {layers[0]}"
    if list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"layers {layers[0]} … {layers[-1]}"
    return "layers " + ", ".join(map(str, layers[:6])) + (" …" if len(layers) > 6 else "")


def refuse_empty_slots(placement: Placement, name: str) -> None:
    """Refuse placements whose devices hold unequal numbers of experts in a layer.

    Raises:
        UsageError: Naming the exporter that can take it.
    """
    if placement.has_empty_slots:
        raise UsageError(
            f"{name} needs the same number of experts on every device in every layer, and this "
            "placement leaves slots empty (free cluster sizes)\n"
            "fix: export it with megatron, or plan with a planner of equal slots "
            "(moetuner instead of moetuner-free)"
        )


def refuse_single_device(placement: Placement, name: str) -> None:
    """Refuse placements on one device, where the engine has expert parallelism switched off.

    Raises:
        UsageError: If there is only one device.
    """
    if placement.devices < 2:
        raise UsageError(
            f"{name} reads a placement only with expert parallelism over 2 or more devices, and "
            "this one is for a single device\nfix: plan for a cluster with more devices"
        )


def json_rows(rows: Sequence[Sequence[int]], indent: str = "") -> str:
    """A JSON list of lists of integers, one inner list per line."""
    return "[\n" + ",\n".join(f"{indent} {json.dumps(list(row))}" for row in rows) + f"\n{indent}]"


def expert_table(value: Any, *, file: str | Path, field: str, experts: int) -> np.ndarray:
    """Check a list of equally long lists of expert ids.

    Returns:
        [rows, slots] int32.

    Raises:
        InputError: Naming the first entry that is wrong.
    """
    if not isinstance(value, list) or not value:
        raise InputError("a non-empty list of rows is needed", file=file, field=field, found=value)
    for index, row in enumerate(value):
        where = f"{field}[{index}]"
        if not isinstance(row, list) or not row:
            raise InputError("a row of expert ids is needed", file=file, field=where, found=row)
        if len(row) != len(value[0]):
            raise InputError(
                "rows differ in length",
                file=file,
                field=where,
                found=f"{len(row)} entries",
                allowed=f"{len(value[0])}, as in the first row",
            )
        for slot, expert in enumerate(row):
            # bool is an int in Python, and no expert id in any engine.
            if type(expert) is not int or not 0 <= expert < experts:
                raise InputError(
                    "not an expert id",
                    file=file,
                    field=f"{where}[{slot}]",
                    found=expert,
                    allowed=f"0 … {experts - 1}",
                )
    return np.array(value, np.int32)


def placement_of(
    table: np.ndarray, model: ModelShape, devices: int, *, file: str | Path
) -> Placement:
    """The placement of a table that has one row per MoE layer of the model.

    Args:
        table: [L, S] expert ids.
        model: Gives layer indices and E.
        devices: G.
        file: Named in errors.

    Raises:
        InputError: If the rows are not as many as the MoE layers, or they are no placement.
    """
    if len(table) != len(model.moe_layers):
        raise InputError(
            "one row per MoE layer is needed",
            file=file,
            found=f"{len(table)} rows",
            allowed=f"{len(model.moe_layers)}, the MoE layers of {model.name}",
            fix="check that the file is for this model",
        )
    try:
        return Placement(table, devices, model.experts, tuple(model.moe_layers))
    except InputError as error:
        raise error.within(file) from error
