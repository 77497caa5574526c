"""Measured serving runs as they are published, and the set-ups that they are of.

The format is that of NVIDIA AIConfigurator's table of measured runs (one row per run: engine,
system, model, layout, lengths, concurrency, TTFT, TPOT). Layouts come from several harnesses, which
fill the same columns differently; :func:`read_runs` says by which rule each was understood:

``stated``
    Attention TP × DP is expert TP × EP.
``product``
    The harness that starts n devices with TP n and EP n leaves n² in ``tp_size`` (or, with data
    parallel attention, in ``attention_dp_size``) and n in both expert columns.
``square``
    The same with data parallel attention of n groups: n in ``tp_size`` and ``attention_dp_size``,
    n² in ``moe_ep_size``.
``dense``
    A model without experts: ``tp_size`` alone counts.
``total``
    Only the number of devices of a whole deployment is known; its layout is assumed.
``recipe``
    From the benchmark's recipe of the run (:mod:`moesim.calibrate.harness`).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from moesim.errors import InputError
from moesim.fitted_costs import ENGINES, Engine
from moesim.safe_io import read_text

if TYPE_CHECKING:
    from moesim.calibrate.harness import EngineFlags

__all__ = ["MeasuredRun", "Refused", "RunLayout", "Setup", "read_runs"]

Rule = Literal["stated", "product", "square", "dense", "total", "recipe"]
Setup = Literal["stated", "recipe", "recipes", "assumed"]
Mode = Literal["agg", "disagg"]

NEEDED = (
    *("id", "backend", "model_path", "system", "precision", "mode", "isl", "osl", "concurrency"),
    *("gemm_quant_mode", "moe_quant_mode"),
    *("tp_size", "pp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size"),
    *("silicon_ttft_ms", "silicon_tpot_ms"),
)

PACKED_DOMAIN = 8
"""Devices of a worker where only the total of a deployment is known: those of a usual node."""


@dataclass(frozen=True)
class RunLayout:
    """Devices of one worker: attention TP × DP, expert TP × EP, stages."""

    tp: int
    dp: int
    moe_tp: int
    ep: int
    pp: int
    rule: Rule

    @property
    def devices(self) -> int:
        """Of one worker."""
        return self.tp * self.dp * self.pp


@dataclass(frozen=True)
class MeasuredRun:
    """One run.

    Attributes:
        id: Of the row.
        engine: Of the row.
        version: Of the engine, if stated.
        date: If stated.
        model: Registry name, Hugging Face id, or a path.
        system: Name of the device's profile.
        precision: ``fp4``, ``fp8``, ``bf16`` or empty.
        block_scaled: Whether FP8 weights are scaled by blocks.
        mode: One pool of workers, or prefill and decode workers.
        isl: Nominal input tokens.
        osl: Nominal output tokens.
        concurrency: Requests in flight, all workers together.
        layout: Of a worker, or of a decode worker.
        workers: Of that kind; 0 if not stated.
        prefill: Of a prefill worker.
        prefill_workers: 0 if not stated.
        ttft_s: Measured.
        tpot_s: Measured.
        image: Of the engine's container; empty if not stated.
        setup: Whether numbers and layouts of workers are stated, are those of the one recipe that
            fits, of one of several, or are assumed.
        drafting: Whether the engine drafted; None if nothing says it.
        flags: Limits that the engine was started with, where known.
    """

    id: str
    engine: Engine
    version: str
    date: str
    model: str
    system: str
    precision: str
    block_scaled: bool
    mode: Mode
    isl: int
    osl: int
    concurrency: int
    layout: RunLayout
    workers: int
    prefill: RunLayout | None
    prefill_workers: int
    ttft_s: float
    tpot_s: float
    image: str = ""
    setup: Setup = "stated"
    drafting: bool | None = None
    flags: EngineFlags | None = None

    @property
    def configuration(self) -> tuple[object, ...]:
        """All but dates and versions: repeats of a run share it."""
        return (
            *(self.engine, self.model, self.system, self.precision, self.mode, self.isl, self.osl),
            *(self.concurrency, self.layout, self.workers, self.prefill, self.prefill_workers),
        )


@dataclass(frozen=True)
class Refused:
    """A row that cannot be understood, and why."""

    id: str
    reason: str


def read_runs(path: Path) -> tuple[list[MeasuredRun], list[Refused]]:
    """Read a table of measured runs.

    Args:
        path: CSV with a header.

    Returns:
        Runs in the order of the file, and rows refused with the reason.

    Raises:
        InputError: If the file is no such table; a row that is broken rather than unclear counts
            as that.
    """
    text = read_text(path)
    reader = csv.DictReader(StringIO(text))
    missing = [name for name in NEEDED if name not in _header(reader, path)]
    if missing:
        raise InputError(
            "columns are missing",
            file=path,
            field=missing[0],
            found=", ".join((reader.fieldnames or [])[:8]) or "no header",
            allowed=", ".join(NEEDED),
            fix="pass a table of measured serving runs (README, measured serving)",
        )
    runs: list[MeasuredRun] = []
    refused: list[Refused] = []
    for number, values in enumerate(_rows(reader, path), 2):
        row = _Row(path, number, values)
        try:
            runs.append(_run(row))
        except _UnclearError as error:
            refused.append(Refused(row.text("id"), str(error)))
    if not runs and not refused:
        raise InputError("no rows", file=path, fix="pass a table with measured runs")
    return runs, refused


def _header(reader: csv.DictReader[str], path: Path) -> list[str]:
    try:
        return list(reader.fieldnames or [])
    except csv.Error as error:
        raise InputError(f"not a table: {error}", file=path, field="line 1") from error


def _rows(reader: csv.DictReader[str], path: Path) -> Iterator[dict[str, str]]:
    try:
        yield from reader
    except csv.Error as error:
        raise InputError(
            f"not a table: {error}", file=path, field=f"line {reader.line_num}"
        ) from error


class _UnclearError(Exception):
    """Why a row cannot be used."""


@dataclass(frozen=True)
class _Row:
    path: Path
    number: int
    values: Mapping[str, str | None]

    def text(self, name: str) -> str:
        return (self.values.get(name) or "").strip()

    def real(self, name: str, default: float | None = None) -> float:
        text = self.text(name)
        if not text and default is not None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not isfinite(value) or value < 0:
            raise InputError(
                "a number of at least 0 is needed",
                file=self.path,
                field=f"{name} (line {self.number})",
                found=text or "nothing",
            )
        return value

    def count(self, name: str, default: int | None = None) -> int:
        return int(self.real(name, None if default is None else float(default)))


def _run(row: _Row) -> MeasuredRun:
    engine, mode = row.text("backend"), row.text("mode")
    if engine not in ENGINES or mode not in ("agg", "disagg"):
        raise _UnclearError(f"engine {engine!r} in mode {mode!r} is not simulated")
    concurrency = row.count("concurrency", 0) or row.count("batch_size", 0)
    if not concurrency:
        raise _UnclearError("no concurrency is stated")
    times = row.real("silicon_ttft_ms", 0.0) * 1e-3, row.real("silicon_tpot_ms", 0.0) * 1e-3
    if min(times) <= 0:
        raise _UnclearError("no measured time")
    split = mode == "disagg"
    return MeasuredRun(
        id=row.text("id"),
        engine=next(name for name in ENGINES if name == engine),
        version=row.text("backend_version"),
        date=row.text("measured_on"),
        model=row.text("model_path"),
        system=row.text("system"),
        precision=row.text("precision"),
        block_scaled="fp8_block" in (row.text("gemm_quant_mode"), row.text("moe_quant_mode")),
        mode="disagg" if split else "agg",
        isl=row.count("isl"),
        osl=row.count("osl"),
        concurrency=concurrency,
        layout=_layout(row, "decode_" if split else ""),
        workers=row.count("decode_num_workers", 0) if split else 1,
        prefill=_layout(row, "prefill_") if split else None,
        prefill_workers=row.count("prefill_num_workers", 0) if split else 0,
        ttft_s=times[0],
        tpot_s=times[1],
        image=row.text("image").replace("#", "/"),
        setup="assumed" if split and not row.count("decode_num_workers", 0) else "stated",
    )


def _layout(row: _Row, prefix: str) -> RunLayout:
    tp, dp, moe_tp, ep, pp = (
        row.count(f"{prefix}{name}", 1)
        for name in ("tp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size", "pp_size")
    )
    pp, dp = max(1, pp), max(1, dp)
    stated_dp = bool(row.text(f"{prefix}attention_dp_size"))
    for layout in _readings(tp, dp, moe_tp, ep, pp, stated_dp):
        return layout
    raise _UnclearError(
        f"layout TP {tp} × DP {dp} of attention is not TP {moe_tp} × EP {ep} of experts"
    )


def _readings(
    tp: int, dp: int, moe_tp: int, ep: int, pp: int, stated_dp: bool
) -> Iterator[RunLayout]:
    """What a layout's columns may mean, likeliest first."""
    if moe_tp * ep <= 1:
        # No experts, or all of them on one device of a model that is cut by heads.
        yield RunLayout(tp, dp, tp * dp, 1, pp, "dense" if tp * dp > 1 else "stated")
    elif tp == dp and moe_tp == 1 and ep == tp * dp and tp > 1:
        yield RunLayout(1, dp, 1, dp, pp, "square")
    elif tp * dp == moe_tp * ep and moe_tp == ep and stated_dp:
        yield RunLayout(1 if dp > 1 else ep, ep if dp > 1 else 1, 1, ep, pp, "product")
    elif tp * dp == moe_tp * ep and dp == 1 and ep == 1 and tp not in (1, 2, 4, 8, 16):
        yield RunLayout(tp, 1, tp, 1, pp, "total")
    elif tp * dp == moe_tp * ep:
        yield RunLayout(tp, dp, moe_tp, ep, pp, "stated")
