"""The final table of a sweep: JSON with every point in the grid's order, and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moesim.safe_io import write_atomic
from moesim.sweep.grid import Grid
from moesim.sweep.store import Store

__all__ = ["collect", "without_lists", "write_csv"]


def collect(grid: Grid, keys: Sequence[str], store: Store) -> list[dict[str, Any]]:
    """Options, key and result or error of every point that the store holds, in grid order."""
    found = []
    for key, options in zip(keys, grid.points(), strict=True):
        text = store.get(key)
        if text is not None:
            found.append({"key": key, "options": options, **json.loads(text)})
    return found


def without_lists(data: dict[str, Any]) -> dict[str, Any]:
    """A result without its lists (kernels of a step, curves), which make most of its size."""
    return {
        key: without_lists(value) if isinstance(value, dict) else value
        for key, value in data.items()
        if not isinstance(value, list)
    }


def write_csv(path: Path, points: Sequence[dict[str, Any]]) -> Path:
    """A row per point: its options, ``ok``, every number and text of its result, its error."""
    rows = [_row(point) for point in points]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return write_atomic(path, text.getvalue())


def _row(point: dict[str, Any]) -> dict[str, Any]:
    row = {name: _cell(value) for name, value in point["options"].items()}
    row["ok"] = point["ok"]
    for name, value in _flat(point.get("result", {}), ""):
        row.setdefault(name, _cell(value))
    if not point["ok"]:
        row["error"] = point["error"]["message"]
    return row


def _cell(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else json.dumps(value)


def _flat(data: dict[str, Any], prefix: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in data.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{key}.")
        elif not isinstance(value, list) and key not in {"schema", "ok"}:
            found.append((prefix + key, value))
    return found
