"""Expert placement: which logical expert sits in which slot of which device.

Axes: L MoE layers, E logical experts, S physical slots, G devices. Slot ``s`` lives on device
``s // (S / G)``, as in SGLang, vLLM and TensorRT-LLM.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from moesim.errors import InputError
from moesim.safe_io import write_json
from moesim.schema import Document

__all__ = ["EMPTY_SLOT", "Placement", "PlanFile", "read_plan", "write_plan"]

EMPTY_SLOT = -1
"""A slot that holds no expert: only placements with unequal devices per layer have them."""


@dataclass(frozen=True)
class Placement:
    """A checked map of slots to experts.

    Attributes:
        physical_to_logical: [L, S] int32, the logical expert in each slot, or ``EMPTY_SLOT``.
        devices: G.
        experts: E.
        moe_layers: [L] model layer index of each row.

    Raises:
        InputError: If the slots do not divide by the devices, an id is out of range, or an expert
            has no slot in some layer.
    """

    physical_to_logical: np.ndarray
    devices: int
    experts: int
    moe_layers: tuple[int, ...]

    def __post_init__(self) -> None:
        given = np.asarray(self.physical_to_logical)
        _check(given, self.devices, self.experts, self.moe_layers)
        # Narrowed after the check: a cast would wrap an id that is out of range into one that is
        # not. A copy of its own, so that the caller's array stays writable.
        table = np.array(given, np.int32, order="C")
        table.setflags(write=False)
        object.__setattr__(self, "physical_to_logical", table)

    @property
    def layers(self) -> int:
        """L, the number of MoE layers."""
        return int(self.physical_to_logical.shape[0])

    @property
    def slots(self) -> int:
        """S, physical slots per layer."""
        return int(self.physical_to_logical.shape[1])

    @property
    def slots_per_device(self) -> int:
        """S / G."""
        return self.slots // self.devices

    @property
    def has_empty_slots(self) -> bool:
        """Whether devices hold unequal numbers of experts in some layer."""
        return bool((self.physical_to_logical == EMPTY_SLOT).any())

    def replica_count(self) -> np.ndarray:
        """[L, E] int32, physical copies of each logical expert."""
        table = self.physical_to_logical
        count = np.zeros((self.layers, self.experts), np.int32)
        rows = np.broadcast_to(np.arange(self.layers)[:, None], table.shape)
        held = table != EMPTY_SLOT
        np.add.at(count, (rows[held], table[held]), 1)
        return count

    def logical_to_physical(self) -> np.ndarray:
        """[L, E, R] int32, the slots of each expert in ascending order, padded with −1.

        R is the largest replica count.
        """
        count = self.replica_count()
        result = np.full((self.layers, self.experts, int(count.max())), -1, np.int32)
        for layer, row in enumerate(self.physical_to_logical):
            order = np.argsort(row, kind="stable")
            order = order[row[order] != EMPTY_SLOT]
            first = np.concatenate(([0], np.cumsum(count[layer])))[row[order]]
            result[layer, row[order], np.arange(len(order)) - first] = order
        return result

    def device_of_slot(self) -> np.ndarray:
        """[S] int32."""
        return (np.arange(self.slots) // self.slots_per_device).astype(np.int32)


def _check(table: np.ndarray, devices: int, experts: int, moe_layers: tuple[int, ...]) -> None:
    field = "physical_to_logical"
    if table.ndim != 2 or 0 in table.shape:
        raise InputError(
            "a non-empty [layers, slots] table is needed", field=field, found=f"shape {table.shape}"
        )
    if table.dtype.kind not in "iu":
        raise InputError(
            "expert ids must be integers of at most 64 bits", field=field, found=str(table.dtype)
        )
    layers, slots = table.shape
    if len(moe_layers) != layers:
        raise InputError(
            "one model layer index per row is needed",
            field="moe_layers",
            found=f"{len(moe_layers)} indices for {layers} rows",
        )
    if list(moe_layers) != sorted(set(moe_layers)) or moe_layers[0] < 0:
        raise InputError("model layer indices must ascend", field="moe_layers", found=moe_layers)
    if devices < 1 or slots % devices:
        raise InputError(
            "the slots do not divide by the devices",
            field=field,
            found=f"{slots} slots on {devices} devices",
            fix="choose redundant experts so that experts + redundant is a multiple of the devices",
        )
    if table.max() >= experts or table.min() < EMPTY_SLOT:
        bad = table[(table >= experts) | (table < EMPTY_SLOT)][0]
        raise InputError(
            "expert id out of range", field=field, found=int(bad), allowed=f"0 … {experts - 1}"
        )
    for layer, row in enumerate(table):
        held = np.zeros(experts, bool)
        held[row[row != EMPTY_SLOT]] = True
        if not held.all():
            raise InputError(
                "an expert has no slot",
                field=f"{field}[{layer}]",
                found=f"expert {int(np.argmin(held))} is nowhere",
                allowed="every expert at least once per layer",
            )


class PlanFile(Document):
    """The plan on disk: the placement and where it came from."""

    schema_id: ClassVar[str] = "moesim.placement/1"

    model: str
    cluster: str
    planner: str
    experts: int = Field(ge=1)
    devices: int = Field(ge=1)
    slots_per_device: int = Field(ge=1)
    moe_layers: tuple[int, ...]
    physical_to_logical: tuple[tuple[int, ...], ...]
    trace_sha256: str | None = None
    """Hash of the trace (or counts file) that the plan was made from."""

    def placement(self, file: str | Path | None = None) -> Placement:
        """The checked placement.

        Raises:
            InputError: If rows differ in length or the map is not a placement.
        """
        lengths = {len(row) for row in self.physical_to_logical}
        if lengths != {self.devices * self.slots_per_device}:
            raise InputError(
                "every row needs devices × slots_per_device entries",
                file=file,
                field="physical_to_logical",
                found=f"lengths {sorted(lengths)}",
                allowed=str(self.devices * self.slots_per_device),
            )
        try:
            return Placement(
                np.array(self.physical_to_logical), self.devices, self.experts, self.moe_layers
            )
        except InputError as error:
            raise error.within(file) from error


def read_plan(path: str | Path) -> tuple[PlanFile, Placement]:
    """Read and check a plan file."""
    document = PlanFile.load(path)
    return document, document.placement(path)


def write_plan(
    path: str | Path,
    placement: Placement,
    *,
    model: str,
    cluster: str,
    planner: str,
    trace_sha256: str | None,
) -> Path:
    """Write a plan file whole."""
    body: dict[str, Any] = PlanFile(
        model=model,
        cluster=cluster,
        planner=planner,
        experts=placement.experts,
        devices=placement.devices,
        slots_per_device=placement.slots_per_device,
        moe_layers=placement.moe_layers,
        physical_to_logical=tuple(map(tuple, placement.physical_to_logical.tolist())),
        trace_sha256=trace_sha256,
    ).to_dict()
    return write_json(path, body)
