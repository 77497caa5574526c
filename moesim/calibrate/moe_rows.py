"""Measured rows of expert layers, with what the physics needs of each."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property, partial
from typing import Any

import numpy as np

from moesim.calibrate.frame import Frame
from moesim.calibrate.hygiene import HygieneReport
from moesim.calibrate.moe_load import moe_loads
from moesim.hardware import load_device
from moesim.operators.moe import TILES, MoeDevice, MoeShapes
from moesim.operators.moe_device import moe_device
from moesim.operators.moe_kernels import ACTIVATION_BYTES, ARITHMETIC, tile_choice, weight_bytes
from moesim.operators.moe_transfer import PROFILES, MoeKernel

__all__ = ["GROUP", "MoeTable", "moe_table", "take_device"]

GROUP = MoeKernel._fields
"""What has coefficients of its own."""

ENGINES = ("sglang", "trtllm", "vllm")


@dataclass(frozen=True)
class MoeTable:
    """Measured rows, and what the physics needs of each.

    Attributes:
        frame: The rows after hygiene.
        report: What hygiene dropped.
        shapes: Of every row.
        device: Of every row, arrays ``[rows]``.
        group: Which of ``GROUP`` each row is of, ``[rows] int64``.
    """

    frame: Frame
    report: HygieneReport | None
    shapes: MoeShapes
    device: MoeDevice
    group: np.ndarray

    @cached_property
    def kernels(self) -> tuple[MoeKernel, ...]:
        """Of every group."""
        first = np.full(int(self.group.max()) + 1 if len(self.group) else 0, len(self.group))
        np.minimum.at(first, self.group, np.arange(len(self.group)))
        labels = self.frame.labels
        return tuple(
            MoeKernel(*(labels[name][self.frame[name][row]] for name in GROUP)) for row in first
        )

    def take(self, rows: np.ndarray) -> MoeTable:
        """Some of the rows."""
        frame = self.frame.take(rows)
        layers = self.layers(rows)
        return MoeTable(frame, self.report, *layers, frame.groups(GROUP))

    def layers(self, rows: np.ndarray) -> tuple[MoeShapes, MoeDevice]:
        """What the physics needs of some rows."""
        return self.shapes.take(rows), take_device(self.device, rows)


def moe_table(frame: Frame, report: HygieneReport | None = None) -> MoeTable:
    """What the physics needs of the rows of a ``moe`` frame."""
    frame = frame.take(frame.is_label("engine", *ENGINES))
    group = frame.groups(GROUP)
    rows = len(frame)
    loads = moe_loads(frame)
    columns = {name: frame[name].astype(float) for name in ("hidden", "tokens", "top_k")}
    width = frame["inter"] / frame["moe_tp"]
    local = frame["experts"] / frame["moe_ep"]
    shapes: dict[str, Any] = {
        "hidden": columns["hidden"],
        "width": width,
        "input_matrices": np.where(_is_plain(frame), 1.0, 2.0),
        "weight_bytes": np.zeros(rows),
        "activation_bytes": np.zeros(rows),
        "local_experts": local,
        "group_copies": columns["tokens"] * columns["top_k"],
        "active": loads.mean(lambda n: n > 0),
        "copies": loads.mean(lambda n: n),
        "squared_copies": loads.mean(lambda n: n.astype(float) ** 2),
        "tiles": np.stack([loads.mean(partial(_tiles_of, int(tile))) for tile in TILES]),
        "tile_allowed": np.ones((len(TILES), rows), bool),
        "variant": np.zeros(rows, np.int8),
    }
    _route_locally(frame, shapes)
    device = {field.name: np.zeros(rows) for field in fields(MoeDevice)}
    for code in range(int(group.max()) + 1 if rows else 0):
        chosen = np.flatnonzero(group == code)
        first = frame.describe(int(chosen[0]))
        system, kernel, dtype = (str(first[name]) for name in ("system", "kernel", "dtype"))
        profile = load_device(PROFILES.get(system, system))
        shapes["weight_bytes"][chosen] = weight_bytes(kernel, dtype)
        arithmetic = ARITHMETIC[dtype]
        shapes["activation_bytes"][chosen] = ACTIVATION_BYTES[arithmetic]
        allowed, variant = tile_choice(
            kernel,
            dtype,
            profile.name,
            columns["tokens"][chosen],
            shapes["group_copies"][chosen],
            local[chosen],
            width[chosen],
        )
        shapes["tile_allowed"][:, chosen] = allowed
        shapes["variant"][chosen] = variant
        numbers = moe_device(profile, dtype)
        for name, value in device.items():
            value[chosen] = getattr(numbers, name)
    return MoeTable(frame, report, MoeShapes(**shapes), MoeDevice(**device), group)


def _is_plain(frame: Frame) -> np.ndarray:
    """Rows of experts with one input matrix, ``[rows] bool``.

    The tables do not say so; Nemotron's are plain (squared ReLU), 1856 wide or with 22 of 512
    active, except in SGLang's Triton rows, whose times are those of gated experts.
    """
    nemotron = ((frame["hidden"] == 2688) & (frame["inter"] == 1856)) | (frame["top_k"] == 22)
    return nemotron & ~frame.is_label("kernel", "sglang_fused_moe_triton")


def _route_locally(frame: Frame, shapes: dict[str, Any]) -> None:
    """Correct the loads of SGLang's Triton rows with 22 of 512 experts active.

    Their time hardly falls with the ranks: the runs routed every token to the rank's own experts,
    as many as it has up to top_k.
    """
    rows = np.flatnonzero(frame.is_label("kernel", "sglang_fused_moe_triton"))
    rows = rows[frame["top_k"][rows] == 22]
    local = shapes["local_experts"][rows]
    copies = frame["tokens"][rows] * np.minimum(frame["top_k"][rows], local)
    active = np.minimum(local, copies)
    each = copies / active
    shapes["active"][rows] = active
    shapes["copies"][rows] = copies
    shapes["squared_copies"][rows] = copies * each
    shapes["tiles"][:, rows] = active * np.ceil(each / TILES[:, None])


def _tiles_of(tile: int, tokens: np.ndarray) -> np.ndarray:
    """⌈tokens / tile⌉ of each load."""
    return -(-tokens // tile)


def take_device(device: MoeDevice, rows: np.ndarray) -> MoeDevice:
    """The rows of a mask or an index array."""
    return MoeDevice(
        device.memory_bytes_per_s[rows],
        device.peak_flop_per_s[rows],
        device.cores[rows],
        device.cache_bytes[rows],
    )
