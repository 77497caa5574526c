"""JSON lines as routing loggers write them, one token and layer (or one batch and layer) per line.

Dialects, told apart by their keys:

- ``vllm-logger``: a line ``{"type": "meta", "model_id", "top_k", …}``, then ``{"type": "route",
  "req_id", "token_idx", "layer", "topk_ids", "topk_weights"}``; ``token_idx`` counts within one
  forward pass (weiran0129/vLLM-MoE-Logger, KennethWang1221/vllm-expert-profiler and others).
- ``speculative-moe``: ``{"dataset", "problem_id", "layer", "token_idx", "experts",
  "gating_probs"}``, generated tokens only (Mario928/speculative-moe).
- ``moe-balance``: ``{"layer", "batch_id", "origin_rows", "topk_experts": [[…], …]}``
  (johanna-rock/moe-balance, sim/trace_format.md).
- ``moe-cache-lab``: a ``metadata`` record, then ``{"record_type": "routing_selection", "phase",
  "token_position", "layer", "selected_experts", "selected_probabilities"}``
  (birkansit/moe-cache-lab, TRACE_FORMAT.md, version 1).
- ``canonical``: ``{"request", "token", "layer", "experts"}`` with optional ``gates``, ``phase``
  and ``domain``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import InputError
from moesim.safe_io import read_json_lines
from moesim.traces.importers.contents import PHASES, ImportOptions, Routing
from moesim.traces.importers.padded import strip_padding
from moesim.traces.importers.rows import RowTable, arrange

__all__ = ["import_jsonl"]

WARM_UP_MIN_TOKENS = 64
"""Fewer equal tokens at the start are taken for real text."""

_PHASE_OF_NAME = {name: index for index, name in enumerate(PHASES)} | {
    "prompt": PHASES.index("prefill"),
    "generated": PHASES.index("decode"),
}


@dataclass(frozen=True)
class _Dialect:
    """Names of the keys; an empty name stands for a key that the dialect does not have."""

    name: str
    experts: str
    token: str = ""
    request: str = ""
    gates: str = ""
    phase: str = ""
    domain: str = ""
    default_phase: str = "unknown"
    restarts: bool = False
    whole_batch: bool = False


_DIALECTS = (
    _Dialect(
        "vllm-logger",
        experts="topk_ids",
        token="token_idx",  # noqa: S106 - the key of a token's index
        request="req_id",
        gates="topk_weights",
        restarts=True,
    ),
    _Dialect(
        "speculative-moe",
        experts="experts",
        token="token_idx",  # noqa: S106
        request="problem_id",
        gates="gating_probs",
        domain="dataset",
        default_phase="decode",
    ),
    _Dialect(
        "moe-balance",
        experts="topk_experts",
        request="batch_id",
        gates="topk_weights",
        whole_batch=True,
    ),
    _Dialect(
        "moe-cache-lab",
        experts="selected_experts",
        token="token_position",  # noqa: S106
        gates="selected_probabilities",
        phase="phase",
    ),
    _Dialect(
        "canonical",
        experts="experts",
        token="token",  # noqa: S106
        request="request",
        gates="gates",
        phase="phase",
        domain="domain",
    ),
)


_OPTIONAL = {"req_id", "request"}
"""Without them, all rows belong to one request."""


def import_jsonl(file: Path, options: ImportOptions) -> Routing:
    """Read a routing log.

    Raises:
        InputError: Naming the line of the first row that cannot be used, or the first token and
            layer without a row.
    """
    lines = read_json_lines(file)
    meta, first = _read_meta(file, lines)
    dialect = _detect(file, first)
    _check_meta(file, meta, options)
    table = RowTable(file)
    for number, row in chain([first], lines):
        if not isinstance(row, dict):
            raise InputError(
                "a line is not an object", file=file, field=f"line {number}", found=row
            )
        if _is_meta(row):
            continue
        (_add_batch if dialect.whole_batch else _add_row)(table, dialect, number, row)
    padded = arrange(table.rows(), file, restarts=dialect.restarts)
    routing = strip_padding(padded, options, dialect.name)
    if dialect.restarts and not options.keep_warm_up:
        routing = _drop_warm_up(routing)
    model = meta.get("model_id") or meta.get("model")
    return replace(routing, model=model if isinstance(model, str) else None)


def _is_meta(row: dict[str, Any]) -> bool:
    return row.get("type") == "meta" or row.get("record_type") == "metadata"


def _read_meta(
    file: Path, lines: Iterator[tuple[int, Any]]
) -> tuple[dict[str, Any], tuple[int, dict[str, Any]]]:
    """The meta rows at the start, as one, and the first row behind them."""
    meta: dict[str, Any] = {}
    for number, row in lines:
        if not isinstance(row, dict):
            raise InputError(
                "a line is not an object", file=file, field=f"line {number}", found=row
            )
        if not _is_meta(row):
            return meta, (number, row)
        meta |= row
    raise InputError("no routing rows in the file", file=file, fix="record at least one token")


def _detect(file: Path, first: tuple[int, dict[str, Any]]) -> _Dialect:
    number, row = first
    for dialect in _DIALECTS:
        needed = {"layer", dialect.experts, dialect.token, dialect.request} - {""}
        if needed - _OPTIONAL <= row.keys():
            return dialect
    raise InputError(
        "not a dialect of routing logs that is known",
        file=file,
        field=f"line {number}",
        found="keys " + ", ".join(sorted(row)),
        allowed="layer with one of: "
        + "; ".join(f"{d.token or d.request}, {d.experts} ({d.name})" for d in _DIALECTS),
        fix='write rows such as {"request": 0, "token": 0, "layer": 3, "experts": [5, 9]}',
    )


def _check_meta(file: Path, meta: dict[str, Any], options: ImportOptions) -> None:
    """Refuse a log that states another model shape than the caller."""
    stated = {
        "num_experts": options.experts,
        "top_k": options.top_k,
        "experts_per_token": options.top_k,
    }
    for key, expected in stated.items():
        found = meta.get(key)
        if found is not None and expected is not None and found != expected:
            raise InputError(
                "the log was made with another model",
                file=file,
                field=key,
                found=found,
                allowed=str(expected),
                fix="correct --experts or --top-k",
            )


def _add_row(table: RowTable, dialect: _Dialect, number: int, row: dict[str, Any]) -> None:
    gates = row.get(dialect.gates)
    phase = row.get(dialect.phase) if dialect.phase else None
    domain = row.get(dialect.domain, "unknown") if dialect.domain else "unknown"
    table.add(
        line=number,
        request=row.get(dialect.request, 0) if dialect.request else 0,
        token=row.get(dialect.token),
        layer=row.get("layer"),
        ids=row.get(dialect.experts),
        gates=None if gates == [] else gates,
        phase=_phase(table.file, number, dialect.default_phase if phase is None else phase),
        domain=domain if isinstance(domain, str) else str(domain),
    )


def _add_batch(table: RowTable, dialect: _Dialect, number: int, row: dict[str, Any]) -> None:
    """A line that holds every token of a batch; its tokens are numbered in their order."""
    tokens, gates = row.get(dialect.experts), row.get(dialect.gates)
    origin = row.get("origin_rows")
    for field, column in ((dialect.gates, gates), ("origin_rows", origin)):
        if column is not None and (
            not isinstance(tokens, list)
            or not isinstance(column, list)
            or len(column) != len(tokens)
        ):
            raise InputError(
                "not one entry per token",
                file=table.file,
                field=f"line {number}, {field}",
                found=column,
                fix="correct or remove the line",
            )
    if not isinstance(tokens, list):
        raise InputError(
            "a list of the tokens' experts is needed",
            file=table.file,
            field=f"line {number}, {dialect.experts}",
            found=tokens,
        )
    for index, ids in enumerate(tokens):
        table.add(
            line=number,
            request=row.get(dialect.request),
            token=index,
            layer=row.get("layer"),
            ids=ids,
            gates=None if gates is None else gates[index],
        )


def _phase(file: Path, number: int, name: object) -> int:
    if not isinstance(name, str) or name not in _PHASE_OF_NAME:
        raise InputError(
            "unknown phase",
            file=file,
            field=f"line {number}, phase",
            found=name,
            allowed=", ".join(_PHASE_OF_NAME),
        )
    return _PHASE_OF_NAME[name]


def _drop_warm_up(routing: Routing) -> Routing:
    """Drop the dummy passes before the first request: one token over and over.

    An engine sizes its memory and captures graphs with batches of one dummy token, so the log
    starts with thousands of equal rows (weights included, which real tokens hardly share).
    """
    if routing.gates is None:
        return routing
    same = np.ones(routing.routing.shape[1], bool)
    for layer in range(len(routing.routing)):
        for part in (routing.routing[layer], routing.gates[layer]):
            same &= (part == part[0]).all(axis=1)
    count = len(same) if same.all() else int(np.argmin(same))
    if count < WARM_UP_MIN_TOKENS or count == len(same):
        return routing
    kept = np.arange(count, len(same))
    return replace(
        routing,
        routing=routing.routing[:, kept],
        gates=routing.gates[:, kept],
        valid_k=None if routing.valid_k is None else routing.valid_k[:, kept],
        requests=None if routing.requests is None else routing.requests.take(kept),
        dropped=routing.dropped | {"warm_up_tokens": count},
        warnings=(
            *routing.warnings,
            f"the first {count} tokens are one dummy token and were dropped (--keep-warm-up keeps "
            "them)",
        ),
    )
