"""Dumps of SGLang's expert distribution recorder (``torch.save``).

Source: sgl-project/sglang, python/sglang/srt/eplb/expert_distribution.py. By recorder mode:

- ``stat``, ``stat_approx``: ``{rank, logical_count: [steps, L, E], …}``, summed over ranks already;
  the buffer is circular and steps that never happened are zero;
- ``per_pass``: ``{records: [{forward_pass_id, rank, gatherer_key, global_physical_count: [L, P]},
  …], last_physical_to_logical_map: [L, P]}``, one file per rank;
- ``per_token``: the same with ``topk_ids_of_layer: [L, tokens, 8]`` in every record, physical ids,
  −1 where there is none.

L counts all layers of the model; those without experts are never counted. P are physical slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import InputError
from moesim.traces.importers.contents import PHASES, ImportOptions, Requests, Routing, StepCounts
from moesim.traces.importers.padded import Padded, strip_padding
from moesim.traces.importers.step_counts import strip_idle
from moesim.traces.torch_file import open_torch_files

__all__ = ["import_recorder", "routing_of_dumps"]

_PHASE_OF_MODE = {1: PHASES.index("prefill"), 2: PHASES.index("decode")}
"""SGLang's ForwardMode: EXTEND is 1, DECODE is 2 (srt/model_executor/forward_batch_info.py)."""


@dataclass(frozen=True)
class _Record:
    """One forward pass of one rank.

    Attributes:
        pass_id: ``forward_pass_id``.
        rank: Rank that wrote it.
        logical: [L, P] int64, logical expert of each physical slot.
        values: ``global_physical_count`` [L, P] or ``topk_ids_of_layer`` [L, T, K].
        body: The whole record.
        file: The dump it stands in.
        field: Where it stands there.
    """

    pass_id: int
    rank: int
    logical: np.ndarray
    values: np.ndarray
    body: dict[Any, Any]
    file: Path
    field: str


def import_recorder(files: Sequence[Path], options: ImportOptions) -> Routing | StepCounts:
    """Read the dumps of all ranks of one recording.

    Raises:
        InputError: Naming dump and record of the first value that cannot be used.
        MissingExtraError: If torch is not installed.
    """
    with open_torch_files(files) as dumps:
        return routing_of_dumps(list(zip(files, dumps, strict=True)), options)


def routing_of_dumps(
    dumps: Sequence[tuple[Path, Any]], options: ImportOptions
) -> Routing | StepCounts:
    """As :func:`import_recorder`, from the contents of the dumps."""
    kinds = {_kind(file, dump) for file, dump in dumps} - {"empty"}
    first = dumps[0][0]
    if len(kinds) > 1:
        raise InputError(
            "dumps of different recorder modes",
            file=first.parent,
            found=", ".join(sorted(kinds)),
            allowed="one recording at a time",
            fix="name the files of one recording",
        )
    if kinds == {"stat"}:
        return _stat(dumps, options)
    if not kinds:
        raise InputError(
            "no forward pass was recorded",
            file=first,
            field="records",
            fix="serve requests between start_ and dump_expert_distribution_record",
        )
    key = "topk_ids_of_layer" if kinds == {"per_token"} else "global_physical_count"
    records = [
        record for file, dump in dumps for record in _records(file, dump, key, options.experts)
    ]
    shapes = {record.values.shape[0] for record in records}
    if len(shapes) > 1:
        raise InputError(
            "the records differ in layers", file=first, field="records", found=sorted(shapes)
        )
    records.sort(key=lambda record: (record.pass_id, record.rank))
    return (_per_token if kinds == {"per_token"} else _per_pass)(records, options)


def _kind(file: Path, dump: object) -> str:
    """Recorder mode of a dump: stat, per_pass, per_token, or empty."""
    if isinstance(dump, dict) and "logical_count" in dump:
        return "stat"
    records = dump.get("records") if isinstance(dump, dict) else None
    if isinstance(records, list) and all(isinstance(record, dict) for record in records):
        if not records:
            return "empty"
        by_token = any("topk_ids_of_layer" in record for record in records)
        return "per_token" if by_token else "per_pass"
    raise InputError(
        "not a dump of SGLang's expert distribution recorder",
        file=file,
        found=f"keys {', '.join(map(str, dump))}"
        if isinstance(dump, dict)
        else type(dump).__name__,
        allowed="logical_count, or records with last_physical_to_logical_map",
        fix="record with --expert-distribution-recorder-mode per_token",
    )


def _integers(value: object, rank: int, file: Path, field: str) -> np.ndarray:
    """An integer array of this many dimensions."""
    array = value if isinstance(value, np.ndarray) else None
    if array is None or array.ndim != rank or array.dtype.kind not in "iu":
        found = "nothing" if value is None else type(value).__name__
        raise InputError(
            "an integer tensor is needed",
            file=file,
            field=field,
            found=found if array is None else f"shape {array.shape} of {array.dtype.name}",
            allowed=f"{rank} dimensions",
            fix="dump the recording again",
        )
    return array


def _stat(dumps: Sequence[tuple[Path, Any]], options: ImportOptions) -> StepCounts:
    """Steps of all dumps in the order of their names; ranks that repeat a dump count once."""
    parts: list[np.ndarray] = []
    repeated = 0
    for file, dump in dumps:
        value = dump["logical_count"]
        rank = 2 if isinstance(value, np.ndarray) and value.ndim == 2 else 3
        counts = _integers(value, rank, file, "logical_count")
        counts = counts.reshape(-1, *counts.shape[-2:])
        if any(np.array_equal(counts, part) for part in parts):
            repeated += 1
        elif parts and counts.shape[1:] != parts[0].shape[1:]:
            raise InputError(
                "the dumps differ in layers or experts",
                file=file,
                field="logical_count",
                found=counts.shape[1:],
                allowed=str(parts[0].shape[1:]),
            )
        else:
            parts.append(counts)
    counts = np.concatenate(parts)
    layers = tuple(range(counts.shape[1]))
    result = strip_idle(counts, layers, options, dumps[0][0], dialect="stat", stepwise=True)
    return replace(result, dropped=result.dropped | {"repeated_dumps": repeated})


def _records(file: Path, dump: Any, key: str, experts: int) -> list[_Record]:
    """The checked records of one dump."""
    field = "last_physical_to_logical_map"
    logical = _integers(dump.get(field), 2, file, field)
    if logical.size == 0 or int(logical.min()) < 0 or int(logical.max()) != experts - 1:
        raise InputError(
            "the map of slots is not one of this model",
            file=file,
            field=field,
            found=f"ids {logical.min()} … {logical.max()}" if logical.size else "nothing",
            allowed=f"0 … {experts - 1}",
            fix="pass the model's number of experts with --experts",
        )
    logical = logical.astype(np.int64)
    result = []
    for index, body in enumerate(dump["records"]):
        where = f"records[{index}]"
        pass_id, rank = body.get("forward_pass_id"), body.get("rank", 0)
        if type(pass_id) is not int or type(rank) is not int:
            raise InputError(
                "a record needs its pass and rank",
                file=file,
                field=f"{where}.forward_pass_id",
                found=f"{pass_id}, rank {rank}",
                allowed="integers",
            )
        dimensions = 3 if key == "topk_ids_of_layer" else 2
        values = _integers(body.get(key), dimensions, file, f"{where}.{key}")
        if len(values) != len(logical) or (dimensions == 2 and values.shape != logical.shape):
            raise InputError(
                "record and map of slots differ in shape",
                file=file,
                field=f"{where}.{key}",
                found=values.shape,
                allowed=f"{logical.shape} (layers, slots)",
            )
        result.append(_Record(pass_id, rank, logical, values, body, file, where))
    return result


def _per_pass(records: list[_Record], options: ImportOptions) -> StepCounts:
    """Physical counts summed over ranks and mapped back to logical experts, pass by pass."""
    layers = len(records[0].values)
    steps = {pass_id: step for step, pass_id in enumerate(sorted({r.pass_id for r in records}))}
    counts = np.zeros((len(steps), layers, options.experts), np.int64)
    row = np.arange(layers)[:, None]
    for record in records:
        np.add.at(
            counts[steps[record.pass_id]], (row, record.logical), record.values.astype(np.int64)
        )
    return strip_idle(
        counts,
        tuple(range(layers)),
        options,
        records[0].file,
        dialect="per_pass",
        stepwise=True,
        warnings=("counts only: which experts a token chose together was not recorded",),
    )


def _per_token(records: list[_Record], options: ImportOptions) -> Routing:
    """Logical ids of all tokens, by pass and rank."""
    kept = _without_replicas(records)
    widths = {record.values.shape[2] for record in kept}
    if len(widths) > 1:
        raise InputError(
            "the records differ in top-k",
            file=kept[0].file,
            field="topk_ids_of_layer",
            found=sorted(widths),
        )
    layers, tokens = len(kept[0].values), sum(record.values.shape[1] for record in kept)
    small = options.experts <= np.iinfo(np.int16).max
    ids = np.empty((layers, tokens, widths.pop()), np.int16 if small else np.int32)
    start = 0
    for record in kept:
        end = start + record.values.shape[1]
        ids[:, start:end] = _logical_ids(record)
        start = end
    requests = _requests(kept)
    padded = Padded(
        ids,
        tuple(range(layers)),
        kept[0].file,
        "topk_ids_of_layer",
        requests=requests,
        dense_layers=True,
    )
    routing = strip_padding(padded, options, "per_token")
    replicas = sum(r.values.shape[1] for r in records) - tokens
    warnings = routing.warnings
    if requests is not None:
        warnings += (
            "the recorder does not name requests: every decoded token stands as one of its own",
        )
    if replicas:
        warnings += ("ranks that recorded the same tokens as another rank were counted once",)
    return replace(
        routing, dropped=routing.dropped | {"replica_tokens": replicas}, warnings=warnings
    )


def _without_replicas(records: list[_Record]) -> list[_Record]:
    """Drop ranks whose every pass equals that of a lower rank (tensor parallelism, not data)."""
    by_rank: dict[int, list[_Record]] = {}
    for record in records:
        by_rank.setdefault(record.rank, []).append(record)
    kept: list[list[_Record]] = []
    for _, own in sorted(by_rank.items()):
        if not any(_same(own, other) for other in kept):
            kept.append(own)
    chosen = [record for own in kept for record in own]
    return sorted(chosen, key=lambda record: (record.pass_id, record.rank))


def _same(own: list[_Record], other: list[_Record]) -> bool:
    return len(own) == len(other) and all(
        a.pass_id == b.pass_id and np.array_equal(a.values, b.values)
        for a, b in zip(own, other, strict=True)
    )


def _logical_ids(record: _Record) -> np.ndarray:
    """[L, T, K] logical ids of a record; −1 stays."""
    physical, slots = record.values, record.logical.shape[1]
    if physical.size and (int(physical.min()) < -1 or int(physical.max()) >= slots):
        wrong = int(physical.max()) if int(physical.max()) >= slots else int(physical.min())
        raise InputError(
            "a physical expert id is out of range",
            file=record.file,
            field=f"{record.field}.topk_ids_of_layer",
            found=wrong,
            allowed=f"0 … {slots - 1}, or -1 for none",
            fix="record without fusion of shared experts",
        )
    row = np.arange(len(physical))[:, None, None]
    return np.where(physical >= 0, record.logical[row, np.maximum(physical, 0)], -1)


def _requests(records: list[_Record]) -> Requests | None:
    """Phase and position of every token, and a request number as far as it can be told.

    The recorder notes the lengths of prompts in a pass, but not which request a decoded token
    belongs to.
    """
    numbers, positions, phases = [], [], []
    count = 0
    for record in records:
        tokens = record.values.shape[1]
        position = _counting(record.body.get("positions"))
        if position is None or len(position) != tokens:
            return None
        mode = record.body.get("forward_mode")
        spans = _counting(record.body.get("extend_seq_lens"))
        if spans is None or spans.sum() != tokens:
            spans = np.ones(tokens, np.int64)
        numbers.append(count + np.repeat(np.arange(len(spans)), spans))
        count += len(spans)
        positions.append(position)
        phases.append(np.full(tokens, _PHASE_OF_MODE.get(mode, 0) if type(mode) is int else 0))
    request = np.concatenate(numbers).astype(np.int32)
    return Requests(
        request=request,
        position=np.concatenate(positions).astype(np.int32),
        phase=np.concatenate(phases).astype(np.uint8),
        domain=np.zeros(len(request), np.int32),
    )


def _counting(value: object) -> np.ndarray | None:
    """A list or tensor of positions or lengths as [N] int64; None if it is anything else."""
    if isinstance(value, list) and all(type(part) is int for part in value):
        value = np.array(value, np.int64)
    if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype.kind not in "iu":
        return None
    if value.size and (int(value.min()) < 0 or int(value.max()) >= 2**31):
        return None
    return value.astype(np.int64)
