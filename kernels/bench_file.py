"""The file that a benchmark leaves and continues: one JSON object, schema ``moesim.kernels/1``.

It is written whole after every case, so an interrupted run loses at most one case and a rerun goes
on where the file ends. Only the standard library and numpy are needed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import InputError, UsageError
from moesim.kernels.bench_cases import Case

__all__ = [
    "SCHEMA",
    "add_samples",
    "case_entries",
    "plan_hash",
    "read_bench",
    "recorded_command",
    "same_run",
    "write_bench",
]

SCHEMA = "moesim.kernels/1"
KIND = "bench"
DIGITS = 5
"""Significant digits of a time: far below any clock's noise, and the file stays small."""

Document = dict[str, Any]


def plan_hash(cases: Sequence[Case]) -> str:
    """Of all cases in their order, so that a file is only continued by the plan it began with."""
    text = json.dumps([asdict(case) for case in cases])
    return hashlib.sha256(text.encode()).hexdigest()


def recorded_command(words: Iterable[str]) -> str:
    """A command line for the record: absolute paths by their last part, as files are passed on."""
    return shlex.join(Path(word).name if Path(word).is_absolute() else word for word in words)


def read_bench(path: str | Path) -> Document:
    """A benchmark's file, checked for what everything else relies on.

    Raises:
        InputError: If it cannot be read or is no such file.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", file=path) from None
    except ValueError as error:
        raise InputError(
            "is not JSON", file=path, found=str(error), fix="measure again to another file"
        ) from None
    if not isinstance(data, dict) or (data.get("schema"), data.get("kind")) != (SCHEMA, KIND):
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise InputError(
            "is no benchmark of kernels",
            file=path,
            field="schema",
            found=str(found),
            allowed=f"{SCHEMA} of the kind {KIND}, as moesim kernels bench writes it",
        )
    for field, kind in (("cases", list), ("loads", dict), ("environment", dict), ("device", str)):
        if not isinstance(data.get(field), kind):
            raise InputError(
                "is incomplete", file=path, field=field, found=type(data.get(field)).__name__
            )
    for place, entry in enumerate(data["cases"]):
        _check_entry(entry, data["loads"], path, f"cases[{place}]")
    return data


def _check_entry(entry: object, loads: dict[str, Any], path: str | Path, field: str) -> None:
    if not isinstance(entry, dict) or not isinstance(entry.get("shape"), dict):
        raise InputError("is no case", file=path, field=field)
    samples = entry.get("samples_s")
    numbers = [entry.get("time_s"), *(samples if isinstance(samples, list) else [None])]
    if not all(isinstance(value, int | float) and 0 < value < 1e6 for value in numbers):
        raise InputError(
            "times must be positive numbers of seconds", file=path, field=f"{field}.samples_s"
        )
    for key in ("name", "case", "kernel", "op", "regime", "dtype"):
        if not isinstance(entry.get(key), str):
            raise InputError("is incomplete", file=path, field=f"{field}.{key}")
    rows = loads.get(entry["case"], [])
    whole = isinstance(rows, list) and all(isinstance(r, int) and r >= 0 for r in rows)
    if not whole or (not rows and entry["op"] not in ("copy", "dense")):
        raise InputError(
            "rows of each expert are needed",
            file=path,
            field=f"loads.{entry['case']}",
            fix="measure again, or restore the file",
        )


def write_bench(path: Path, document: Document) -> None:
    """Write it whole: into a file beside it, which then takes its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    lines = []
    for key, value in document.items():
        if key in ("cases", "loads", "checks", "failed") and value:
            lines.append(f"{json.dumps(key)}: {_one_per_line(value)}")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value)}")
    beside.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    beside.replace(path)


def _one_per_line(value: list[Any] | dict[str, Any]) -> str:
    if isinstance(value, dict):
        inside = ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
        return "{\n" + inside + "\n}"
    return "[\n" + ",\n".join(f" {json.dumps(entry)}" for entry in value) + "\n]"


def case_entries(document: Document, case: str) -> list[dict[str, Any]]:
    """What was timed of a case: one entry per kernel and configuration."""
    return [entry for entry in document["cases"] if entry["case"] == case]


def add_samples(
    document: Document, case: Case, samples_s: dict[tuple[str, str], tuple[str, list[float]]]
) -> None:
    """Put a pass over a case into the document.

    Args:
        document: Changed in place.
        case: What was timed.
        samples_s: By kernel and configuration the clock and the samples.
    """
    known = {(e["kernel"], e["config"]): e for e in case_entries(document, case.name)}
    for (kernel, config), (clock, samples) in samples_s.items():
        entry = known.get((kernel, config))
        if entry is None:
            entry = _new_entry(case, kernel, config, clock)
            document["cases"].append(entry)
        entry["samples_s"] += [_rounded(value) for value in samples]
        entry["passes"] += 1
        low, middle, high = np.quantile(entry["samples_s"], (0.25, 0.5, 0.75))
        entry["time_s"], entry["iqr_s"] = _rounded(middle), _rounded(high - low)
        entry["tflops"] = _rounded(case.flops / middle / 1e12)
        entry["bytes_per_s"] = _rounded(case.moved_bytes / middle)
    if case.rows:
        document["loads"][case.name] = list(case.rows)
    _compare(case_entries(document, case.name))


def _new_entry(case: Case, kernel: str, config: str, clock: str) -> dict[str, Any]:
    return {
        "name": "/".join(part for part in (case.name, kernel, config) if part),
        "case": case.name,
        "kernel": kernel,
        "config": config,
        "op": case.op,
        "regime": case.regime,
        "dtype": case.dtype,
        "load": case.load,
        "shape": {
            "model": case.model,
            "experts": len(case.rows),
            "active": case.active,
            "rows": sum(case.rows),
            "n": case.n,
            "k": case.k,
            "inter": case.inter,
            "width_divisor": case.width_divisor,
            "rows_divisor": case.rows_divisor,
        },
        "clock": clock,
        "passes": 0,
        "samples_s": [],
    }


def _compare(entries: list[dict[str, Any]]) -> None:
    """``ratio_vs``: the other kernel's time over this one's; above 1 this one is faster."""
    free = [entry for entry in entries if not entry["config"]]
    for entry in free:
        entry["ratio_vs"] = {
            other["kernel"]: _rounded(other["time_s"] / entry["time_s"])
            for other in free
            if other is not entry
        }
    for entry in entries:
        entry.setdefault("ratio_vs", {})


def same_run(document: Document, wanted: Document, path: Path) -> None:
    """Refuse to continue a file of another machine, plan or program.

    Raises:
        UsageError: Naming what differs.
    """
    for field in ("device", "system", "seed", "plan_sha256"):
        if document.get(field) != wanted[field]:
            _refuse(path, field, document.get(field), wanted[field])
    for name in ("torch", "triton"):
        held = document["environment"].get("versions", {}).get(name)
        if held != wanted["environment"]["versions"].get(name):
            _refuse(path, name, held, wanted["environment"]["versions"].get(name))


def _refuse(path: Path, what: str, held: object, wanted: object) -> None:
    raise UsageError(
        f"{path} holds a benchmark with another {what}: {held}, here {wanted}\n"
        "fix: pass another --out, or --fresh to begin it anew"
    )


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
