"""Expert counts: what planning needs when there is no per-token routing.

    counts.json           schema, model, layers, moe_layers, experts, source, sha256 per file
    counts.npy            [L, E] int64, token assignments summed over all steps
    windowed_counts.npy   [W, L, E] int64, optional: the same per step of the recording

Axes: L MoE layers, E logical experts, W windows (here: recorded steps).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, model_validator

from moesim.errors import InputError
from moesim.safe_io import map_npy, read_json, read_text, sha256_file, write_json, write_npy
from moesim.schema import Document

__all__ = ["Counts", "CountsManifest", "logical_count", "read_counts", "write_counts"]

LARGEST_COUNT = 1e18
"""Far more tokens than any recording holds, and far less than what planning could overflow on."""

MAX_CELLS = 2**27
"""Largest [L, E] table made from a CSV file; 1 GiB as float64."""


class CountsManifest(Document):
    """What a counts folder says of itself."""

    schema_id: ClassVar[str] = "moesim.counts/1"

    model: str
    layers: int = Field(ge=1)
    moe_layers: tuple[int, ...]
    experts: int = Field(ge=1, le=65536)
    steps: int = Field(ge=1)
    source: str = ""
    sha256: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> CountsManifest:
        if len(self.moe_layers) != self.layers:
            raise InputError(
                "one model layer index per MoE layer is needed",
                field="moe_layers",
                found=f"{len(self.moe_layers)} indices",
                allowed=str(self.layers),
            )
        return self


@dataclass(frozen=True)
class Counts:
    """Checked expert counts.

    Attributes:
        loads: [L, E] float64, token assignments of every expert, summed over the recording.
        moe_layers: [L] model layer index of each row.
        sha256: Hash of the file that the counts were read from.
        source: That file, and where its counts came from if it says so.
    """

    loads: np.ndarray
    moe_layers: tuple[int, ...]
    sha256: str
    source: str

    @property
    def experts(self) -> int:
        """E, the number of logical experts."""
        return int(self.loads.shape[1])


def write_counts(
    folder: str | Path,
    counts: np.ndarray,
    *,
    model: str,
    moe_layers: tuple[int, ...],
    source: str,
    stepwise: bool,
) -> CountsManifest:
    """Write a counts folder; the manifest comes last, so that a folder with one is complete.

    Args:
        folder: Made if needed; a folder that holds counts already is refused.
        counts: [W, L, E] integers ≥ 0, one window per recorded step.
        model: Name of the model that was recorded.
        moe_layers: [L] model layer index of each row.
        source: Where the counts came from, in words.
        stepwise: Whether the steps are kept too, besides their sum.

    Raises:
        InputError: If the folder holds counts or cannot be written to.
    """
    folder = Path(folder)
    if (folder / "counts.json").exists():
        raise InputError(
            "the folder holds counts already",
            file=folder,
            fix="choose another --out or remove the folder",
        )
    steps, layers, experts = counts.shape
    files = {"counts.npy": write_npy(folder / "counts.npy", counts.sum(axis=0, dtype=np.int64))}
    if stepwise:
        name = "windowed_counts.npy"
        files[name] = write_npy(folder / name, counts.astype(np.int64, copy=False))
    manifest = CountsManifest(
        model=model,
        layers=layers,
        moe_layers=moe_layers,
        experts=experts,
        steps=steps,
        source=source,
        sha256={name: sha256_file(file) for name, file in files.items()},
    )
    write_json(folder / "counts.json", manifest.to_dict())
    return manifest


def read_counts(
    path: str | Path, *, experts: int | None = None, moe_layers: tuple[int, ...] | None = None
) -> Counts:
    """Read expert counts from any form that they come in.

    Args:
        path: A ``.npy`` array [L, E] or [W, L, E]; a folder made by ``moesim trace import``; a
            JSON file with ``logical_count`` as SGLang's ``--init-expert-location`` takes it; or a
            CSV file with the columns layer, expert, count (pairs that are absent count 0).
        experts: E of the model, if known; another number in the file is an error.
        moe_layers: The model layer indices of the MoE layers, if known. A file with one row per
            model layer (as SGLang writes) is then reduced to these rows.

    Raises:
        InputError: If the array has the wrong rank, holds NaN, infinite or negative counts, or a
            layer without any tokens.
    """
    path = Path(path)
    layers: tuple[int, ...] | None
    if path.is_dir():
        file = path / "counts.npy"
        manifest = CountsManifest.load(path / "counts.json")
        table, layers, source = map_npy(file), manifest.moe_layers, manifest.source or str(path)
        _require_shape(table, (manifest.layers, manifest.experts), file)
    else:
        file, source = path, str(path)
        table, layers = _read_file(path, experts)
    loads = _sum_of_steps(table, file)
    if layers is None:
        drop_idle = path.suffix.lower() == ".json"
        loads, layers = _name_layers(loads, moe_layers, drop_idle=drop_idle, file=file)
    elif moe_layers is not None and moe_layers != layers:
        raise InputError(
            "the MoE layers differ from the model's",
            file=file,
            field="moe_layers",
            found=layers,
            allowed=str(moe_layers),
            fix="use the counts of this model, or the model of these counts",
        )
    if experts is not None:
        _require_shape(loads, (len(layers), experts), file)
    idle = np.flatnonzero(loads.sum(axis=1) == 0)
    if len(idle):
        raise InputError(
            "a layer has no tokens at all",
            file=file,
            field=f"layer {layers[int(idle[0])]}",
            found=f"{len(idle)} such layers",
            fix="leave layers without experts out, or record more steps",
        )
    return Counts(loads, layers, sha256_file(file), source)


def _require_shape(table: np.ndarray, shape: tuple[int, int], file: Path) -> None:
    if table.shape != shape:
        raise InputError(
            "the table has not one row per MoE layer and one column per expert",
            file=file,
            field="shape",
            found=f"{table.shape}",
            allowed=f"{shape}",
            fix="use the counts of this model, or the model of these counts",
        )


def _read_file(path: Path, experts: int | None) -> tuple[np.ndarray, tuple[int, ...] | None]:
    """The table as it stands in the file, and its layer indices where the file states them."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return map_npy(path), None
    if suffix == ".json":
        return logical_count(read_json(path), path), None
    if suffix == ".csv":
        return _read_csv(path, experts)
    raise InputError(
        "not a form of expert counts that can be read",
        file=path,
        field="file name",
        found=suffix or "no ending",
        allowed=".npy, .json with logical_count, .csv, or a folder with counts.json",
        fix="import recordings with: moesim trace import FILE --format F --experts E --out DIR",
    )


def logical_count(data: object, file: Path) -> np.ndarray:
    """The array under the key ``logical_count``, as SGLang's ``--init-expert-location`` takes it.

    Source: sgl-project/sglang, python/sglang/srt/eplb/expert_location.py.
    """
    value = data.get("logical_count") if isinstance(data, dict) else None
    if value is None:
        raise InputError(
            "no expert counts in the file",
            file=file,
            field="logical_count",
            allowed="[layers, experts] or [steps, layers, experts]",
            fix="dump the recorder of SGLang, or write the counts under this key",
        )
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(
            "rows of different lengths", file=file, field="logical_count", found=str(error)
        ) from error
    if array.dtype.kind not in "iuf":
        raise InputError(
            "counts must be numbers", file=file, field="logical_count", found=array.dtype.name
        )
    return array


def _sum_of_steps(table: np.ndarray, file: Path) -> np.ndarray:
    """[L, E] float64 of a table [L, E] or [W, L, E], checked entry by entry."""
    if table.ndim not in (2, 3) or 0 in table.shape or table.dtype.kind not in "iuf":
        raise InputError(
            "not a table of counts",
            file=file,
            field="shape",
            found=f"{table.shape} {table.dtype.name}",
            allowed="[layers, experts] or [steps, layers, experts] of numbers",
            fix="use one row per MoE layer and one column per expert",
        )
    steps = table.reshape(-1, *table.shape[-2:])
    loads = np.zeros(steps.shape[1:])
    for number, step in enumerate(steps):
        values = step.astype(np.float64)
        bad = ~((values >= 0) & (values <= LARGEST_COUNT))
        if bad.any():
            layer, expert = (int(i) for i in np.argwhere(bad)[0])
            raise InputError(
                "a count is too large, negative or not a number",
                file=file,
                field=f"step {number}, row {layer}, expert {expert}",
                found=float(values[layer, expert]),
                allowed=f"0 … {LARGEST_COUNT:g}",
                fix="export the counts again",
            )
        loads += values
    return loads


def _name_layers(
    loads: np.ndarray, moe_layers: tuple[int, ...] | None, *, drop_idle: bool, file: Path
) -> tuple[np.ndarray, tuple[int, ...]]:
    """The rows of MoE layers and their model layer indices.

    SGLang counts every layer of the model, and layers without experts stay at zero.
    """
    rows = len(loads)
    if moe_layers is None:
        kept = np.flatnonzero(loads.any(axis=1)) if drop_idle and loads.any() else np.arange(rows)
        return loads[kept], tuple(int(row) for row in kept)
    if rows == len(moe_layers):
        return loads, moe_layers
    others = np.delete(loads, [i for i in moe_layers if i < rows], axis=0)
    if rows <= max(moe_layers) or others.any():
        raise InputError(
            "the rows are neither the MoE layers nor all layers of the model",
            file=file,
            field="shape",
            found=f"{rows} rows",
            allowed=f"{len(moe_layers)} rows, one per MoE layer",
            fix="use the counts of this model, or the model of these counts",
        )
    return loads[list(moe_layers)], moe_layers


def _read_csv(path: Path, experts: int | None) -> tuple[np.ndarray, tuple[int, ...]]:
    """[L, E] float64 and the layer indices of a file with the columns layer, expert, count."""
    lines = csv.reader(read_text(path).splitlines())
    columns = ("layer", "expert", "count")
    try:
        header = [name.strip().lower() for name in next(lines, [])]
        if sorted(header) != sorted(columns):
            raise InputError(
                "the header must name the columns",
                file=path,
                field="line 1",
                found=",".join(header),
                allowed="layer,expert,count",
            )
        order = [header.index(name) for name in columns]
        cells = dict(_csv_cells(path, lines, order))
    except csv.Error as error:
        raise InputError("not a CSV file", file=path, found=str(error)) from error
    if not cells:
        raise InputError("no counts in the file", file=path, fix="add one line per count")
    layers = sorted({layer for layer, _ in cells})
    width = max(experts or 0, 1 + max(expert for _, expert in cells))
    if len(layers) * width > MAX_CELLS:
        raise InputError("an expert id is out of range", file=path, field="expert", found=width - 1)
    row_of_layer = {layer: row for row, layer in enumerate(layers)}
    loads = np.zeros((len(layers), width))
    for (layer, expert), count in cells.items():
        loads[row_of_layer[layer], expert] = count
    return loads, tuple(layers)


def _csv_cells(path: Path, lines: Any, order: list[int]) -> Iterator[tuple[tuple[int, int], float]]:
    """(layer, expert) and count of every line, each pair once."""
    seen = set()
    for cells in lines:
        if not cells:
            continue
        where = f"line {lines.line_num}"
        try:
            layer, expert, count = (cells[i] for i in order)
            key, value = (int(layer), int(expert)), float(count)
        except (IndexError, ValueError) as error:
            raise InputError(
                "not a layer, an expert and a count",
                file=path,
                field=where,
                found=",".join(cells),
                allowed="two integers and a number",
            ) from error
        if len(cells) != len(order) or min(key) < 0 or max(key) >= 2**31:
            raise InputError("not a usable row", file=path, field=where, found=",".join(cells))
        if key in seen:
            raise InputError(
                "this layer and expert were counted above",
                file=path,
                field=where,
                found=",".join(cells),
                fix="add the counts up, one line per layer and expert",
            )
        seen.add(key)
        yield key, value
