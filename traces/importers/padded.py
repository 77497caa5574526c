"""From ids as an engine pads them to ids as a bundle stores them.

Engines write fixed [L, T, K] arrays: −1 where a token has fewer experts, whole tokens of −1 where a
batch was padded, and rows of −1 or 0 for layers that have no experts. A bundle has no padding
value, so these are dropped, and short rows get ``valid_k``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from moesim.errors import InputError
from moesim.traces.bundle import routing_dtype
from moesim.traces.importers.contents import ImportOptions, Requests, Routing

__all__ = ["Padded", "choose_layers", "strip_padding"]


@dataclass(frozen=True)
class Padded:
    """Ids and what belongs to them, as found in a file.

    Attributes:
        ids: [L, T, K] integers, −1 for no expert.
        layers: [L] model layer index of each row, or None if the format does not say.
        file: For messages.
        field: For messages: where in the file the ids stand.
        gates: [L, T, K] floats or None.
        requests: One entry per token, or None.
        dense_layers: Whether layers without experts may be among the rows.
    """

    ids: np.ndarray
    layers: tuple[int, ...] | None
    file: Path
    field: str
    gates: np.ndarray | None = None
    requests: Requests | None = None
    dense_layers: bool = False


def strip_padding(padded: Padded, options: ImportOptions, dialect: str) -> Routing:
    """Check ids and gates and drop what is padding.

    Raises:
        InputError: If there are no tokens, an id is out of range, the top-k is not the model's, the
            layers are not those asked for, or a gate is negative or not finite.
    """
    ids, file, field = padded.ids, padded.file, padded.field
    if ids.ndim != 3 or 0 in ids.shape:
        raise InputError(
            "no routing in the file",
            file=file,
            field=field,
            found=f"shape {ids.shape} (layers, tokens, top-k)",
            fix="record at least one token",
        )
    if ids.dtype.kind not in "iu":
        raise InputError(
            "expert ids must be integers", file=file, field=field, found=ids.dtype.name
        )
    valid = _valid_entries(padded, options)
    rows = _routed_rows(padded, valid)
    tokens = np.zeros(ids.shape[1], bool)
    for row in rows:
        tokens |= valid[row] > 0
    if not rows or not tokens.any():
        raise InputError(
            "every entry is padding",
            file=file,
            field=field,
            found="no expert id",
            fix="record at least one token",
        )
    layers = padded.layers
    if layers is None and len(rows) < len(ids):
        layers = tuple(range(len(ids)))  # with the dense ones among them, rows are model layers
    chosen, moe_layers = choose_layers(rows, layers, options.moe_layers, file)
    top_k = max(int(valid[row].max()) for row in chosen)
    _check_top_k(top_k, options, file, field)
    result = Routing(
        routing=np.zeros((len(chosen), int(tokens.sum()), top_k), routing_dtype(options.experts)),
        moe_layers=moe_layers,
        dialect=dialect,
        requests=None if padded.requests is None else padded.requests.take(tokens),
        dropped={
            "padding_tokens": int((~tokens).sum()),
            "dense_layers": len(ids) - len(rows),
        },
    )
    result = _fill(result, padded, valid, chosen, tokens)
    return replace(result, warnings=_warnings(result, layers is None and not options.moe_layers))


def choose_layers(
    rows: list[int],
    layers: tuple[int, ...] | None,
    wanted: tuple[int, ...] | None,
    file: Path,
) -> tuple[list[int], tuple[int, ...]]:
    """Which rows to take, and the model layer index of each.

    Args:
        rows: Rows of the file that hold routed layers.
        layers: Model layer index of every row of the file, if the format says so.
        wanted: Model layer indices that the caller asks for.
        file: For messages.

    Raises:
        InputError: If a wanted layer is absent, or as many names as rows are needed.
    """
    if layers is not None:
        row_of_layer = {layers[row]: row for row in rows}
        names = tuple(sorted(row_of_layer)) if wanted is None else wanted
        absent = [name for name in names if name not in row_of_layer]
        if absent:
            raise InputError(
                "a layer that was asked for is not in the file",
                file=file,
                field="moe_layers",
                found=f"layer {absent[0]} asked for",
                allowed=", ".join(str(name) for name in sorted(row_of_layer)),
                fix="correct --moe-layers or leave it out",
            )
        return [row_of_layer[name] for name in names], names
    if wanted is None:
        return rows, tuple(range(len(rows)))
    if len(wanted) != len(rows):
        raise InputError(
            "the file has another number of MoE layers",
            file=file,
            field="moe_layers",
            found=f"{len(rows)} layers in the file, {len(wanted)} named",
            fix="name exactly the MoE layers of the file with --moe-layers",
        )
    return rows, wanted


def _valid_entries(padded: Padded, options: ImportOptions) -> np.ndarray:
    """[L, T] uint8, entries that are experts; refuses ids that are neither experts nor −1."""
    ids = padded.ids
    if ids.shape[2] > 255:
        raise InputError(
            "top-k is too large",
            file=padded.file,
            field=padded.field,
            found=ids.shape[2],
            allowed="1 … 255",
        )
    valid = np.zeros(ids.shape[:2], np.uint8)
    for row, layer in enumerate(ids):
        low, high = int(layer.min()), int(layer.max())
        if low < -1 or high >= options.experts:
            wrong = np.argwhere((layer < -1) | (layer >= options.experts))[0]
            name = row if padded.layers is None else padded.layers[row]
            raise InputError(
                "expert id out of range",
                file=padded.file,
                field=f"{padded.field}, layer {name}, token {wrong[0]}",
                found=int(layer[tuple(wrong)]),
                allowed=f"0 … {options.experts - 1}, or -1 for none",
                fix="pass the model's number of experts with --experts",
            )
        valid[row] = ids.shape[2] if low >= 0 else (layer >= 0).sum(axis=1)
    return valid


def _routed_rows(padded: Padded, valid: np.ndarray) -> list[int]:
    """Rows that are routed layers: no row of −1 only, and no row of the same expert K times."""
    rows = [row for row in range(len(valid)) if not padded.dense_layers or valid[row].any()]
    if padded.dense_layers and padded.ids.shape[2] > 1:
        rows = [row for row in rows if np.any(padded.ids[row])]
    return rows


def _check_top_k(top_k: int, options: ImportOptions, file: Path, field: str) -> None:
    if top_k > options.experts or options.top_k not in (None, top_k):
        raise InputError(
            "the tokens have another number of experts",
            file=file,
            field=field,
            found=f"top-{top_k}",
            allowed=f"top-{options.top_k or options.experts}",
            fix="correct --top-k or --experts",
        )


def _fill(
    result: Routing, padded: Padded, valid: np.ndarray, rows: list[int], tokens: np.ndarray
) -> Routing:
    """Copy ids and gates, with entries that are experts moved to the front of each token."""
    top_k = result.routing.shape[2]
    gates = None if padded.gates is None else np.zeros(result.routing.shape, np.float16)
    for target, row in enumerate(rows):
        ids = np.asarray(padded.ids[row])[tokens]
        weights = None if padded.gates is None else np.asarray(padded.gates[row])[tokens]
        if (valid[row][tokens] < padded.ids.shape[2]).any():
            order = np.argsort(ids < 0, axis=1, kind="stable")
            ids = np.take_along_axis(ids, order, axis=1)
            weights = None if weights is None else np.take_along_axis(weights, order, axis=1)
        used = ids[:, :top_k] >= 0
        result.routing[target] = np.where(used, ids[:, :top_k], 0)
        if gates is not None and weights is not None:
            gates[target] = np.where(used, _checked_gates(weights[:, :top_k], used, padded), 0)
    valid_k = valid[rows][:, tokens]
    return replace(result, gates=gates, valid_k=None if (valid_k == top_k).all() else valid_k)


def _checked_gates(weights: np.ndarray, used: np.ndarray, padded: Padded) -> np.ndarray:
    largest = float(np.finfo(np.float16).max)
    with np.errstate(invalid="ignore"):
        wrong = used & ~((weights >= 0) & (weights <= largest))
    if wrong.any():
        token, entry = (int(i) for i in np.argwhere(wrong)[0])
        raise InputError(
            "a router weight is negative or not a finite number",
            file=padded.file,
            field=f"{padded.field}, gates of token {token}",
            found=float(weights[token, entry]),
            allowed=f"0 … {largest:g}",
            fix="record the router's probabilities",
        )
    return weights


def _warnings(result: Routing, unnamed: bool) -> tuple[str, ...]:
    warnings = []
    if unnamed:
        warnings.append(
            "the format does not name its layers: they are numbered from 0; name them with "
            "--moe-layers if the model has dense layers"
        )
    repeated = sum(_repeated(layer, result, row) for row, layer in enumerate(result.routing))
    if repeated:
        warnings.append(f"{repeated} token rows name the same expert twice")
    if result.gates is not None and float(result.gates.max()) > 1:
        warnings.append("router weights exceed 1: this router scales them")
    return tuple(warnings)


def _repeated(layer: np.ndarray, result: Routing, row: int) -> int:
    """Token rows of one layer in which an expert stands twice."""
    ids = layer.astype(np.int32)
    if result.valid_k is not None:
        entry = np.arange(ids.shape[1])
        ids = np.where(entry < result.valid_k[row][:, None], ids, -1 - entry)
    ids = np.sort(ids, axis=1)
    return int((ids[:, 1:] == ids[:, :-1]).any(axis=1).sum())
