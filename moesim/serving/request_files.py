"""Recorded requests: Azure's CSV, Mooncake's JSON lines, and a plain CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import InputError
from moesim.safe_io import open_text, read_json_lines
from moesim.serving.requests import Requests

__all__ = ["MOONCAKE_BLOCK_TOKENS", "read_requests"]

MOONCAKE_BLOCK_TOKENS = 512
"""Tokens behind one of ``hash_ids`` (Mooncake, arXiv 2407.00079, open trace)."""

_COLUMNS = {
    "azure": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    "plain": ("arrival_s", "input_tokens", "output_tokens"),
}
_MOST_TOKENS = 2**24

_Row = tuple[int, float, int, int, int]
"""Line, seconds, input tokens, output tokens, cached tokens."""


def read_requests(path: str | Path, *, most: int | None = None, speed: float = 1.0) -> Requests:
    """Requests of a file, from time 0 on.

    Formats, told apart by the first line: Azure's LLM inference trace (``TIMESTAMP, ContextTokens,
    GeneratedTokens``), a plain CSV (``arrival_s, input_tokens, output_tokens`` and, if wanted,
    ``cached_tokens``), and Mooncake's JSON lines (``timestamp`` in ms, ``input_length``,
    ``output_length``, ``hash_ids``). Mooncake's blocks count as cached when an earlier request
    began with the same ones: what a cache that forgets nothing would hold.

    Args:
        path: The file.
        most: Requests that are read at most.
        speed: Arrivals come so many times faster.

    Raises:
        InputError: Naming file, line and field of what cannot be used.
    """
    path = Path(path)
    rows: list[_Row] = []
    for row in _mooncake(path) if _is_json(path) else _csv(path):
        if most is not None and len(rows) == most:
            break
        rows.append(row)
    if not rows:
        raise InputError("holds no requests", file=path, fix="pass a file with at least one")
    rows.sort(key=lambda row: row[1])
    times = np.array([row[1] for row in rows])
    prompts, outputs, cached = (
        np.array([row[column] for row in rows], np.int64) for column in (2, 3, 4)
    )
    return Requests(prompts, outputs, cached, (times - times[0]) / speed)


def _is_json(path: Path) -> bool:
    with open_text(path) as stream:
        return stream.readline().lstrip().startswith("{")


def _csv(path: Path) -> Iterator[_Row]:
    with open_text(path) as stream:
        reader = csv.DictReader(stream, skipinitialspace=True)
        names = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = names
        kind = next((k for k, needed in _COLUMNS.items() if set(needed) <= set(names)), None)
        if kind is None:
            raise InputError(
                "no columns that we know",
                file=path,
                field="line 1",
                found=", ".join(names),
                allowed=" or ".join(", ".join(needed) for needed in _COLUMNS.values()),
            )
        when, context, generated = _COLUMNS[kind]
        for line, row in enumerate(reader, 2):
            time = _timestamp if kind == "azure" else _seconds
            prompt = _tokens(row[context], path, line, context)
            cached = 0
            if kind == "plain" and row.get("cached_tokens"):
                cached = _tokens(row["cached_tokens"], path, line, "cached_tokens", least=0)
            # Azure's traces hold a few requests that generate nothing; they end with the prefill.
            output = _tokens(row[generated], path, line, generated, least=int(kind == "plain"))
            at = time(row[when], path, line, when)
            yield line, at, prompt, max(output, 1), min(cached, prompt - 1)


def _mooncake(path: Path) -> Iterator[_Row]:
    seen: set[tuple[int, int]] = set()
    for line, row in read_json_lines(path):
        if not isinstance(row, dict):
            raise InputError("an object is needed", file=path, field=f"line {line}", found=row)
        time = _seconds(row.get("timestamp"), path, line, "timestamp") / 1e3
        prompt = _tokens(row.get("input_length"), path, line, "input_length")
        output = _tokens(row.get("output_length"), path, line, "output_length")
        blocks = row.get("hash_ids") or []
        if not isinstance(blocks, list) or not all(isinstance(block, int) for block in blocks):
            raise InputError(
                "a list of integers is needed",
                file=path,
                field=f"line {line}: hash_ids",
                found=blocks,
            )
        # An id stands for a block and all before it.
        hits = 0
        while hits < len(blocks) and (hits, blocks[hits]) in seen:
            hits += 1
        seen.update(enumerate(blocks))
        yield line, time, prompt, output, min(hits * MOONCAKE_BLOCK_TOKENS, prompt - 1)


def _tokens(value: Any, path: Path, line: int, field: str, least: int = 1) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if not least <= number <= _MOST_TOKENS or isinstance(value, float | bool):
        raise InputError(
            "not a number of tokens",
            file=path,
            field=f"line {line}: {field}",
            found="nothing" if value is None else value,
            allowed=f"{least} … {_MOST_TOKENS}",
        )
    return number


def _seconds(value: Any, path: Path, line: int, field: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = -1.0
    if not 0 <= number < 1e15:
        raise InputError(
            "not a time",
            file=path,
            field=f"line {line}: {field}",
            found="nothing" if value is None else value,
            allowed="a number of at least 0",
        )
    return number


def _timestamp(value: Any, path: Path, line: int, field: str) -> float:
    try:
        # Seven digits behind the point in Azure's files.
        stamp = datetime.fromisoformat(str(value).strip())
    except ValueError:
        raise InputError(
            "not a date and time",
            file=path,
            field=f"line {line}: {field}",
            found=value,
            allowed="like 2023-11-16 18:17:03.979",
        ) from None
    return (stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)).timestamp()
