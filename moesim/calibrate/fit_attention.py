"""Fits the attention models to measured rows, kernel by kernel.

A kernel here is one compiled variant: engines compile by head dimension, cache format, window and
(for decode) by how many query heads share a key-value head. The sizes of its blocks are not in the
tables: a few are tried on a small draw of the rows and the best are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from moesim.calibrate.frame import Frame
from moesim.calibrate.measured_rows import (
    KERNEL,
    MeasuredRows,
    kernel_groups,
    kernel_name,
    load_rows,
    predicted_by_nearest,
    regimes,
)
from moesim.calibrate.robust_fit import Coefficient, Fitted, evenly_drawn, fit_log
from moesim.calibrate.tables import PACKAGE
from moesim.operators.attention import (
    ARITHMETIC,
    DECODE_VARIANTS,
    ELEMENT_BYTES,
    PREFILL_VARIANTS,
    AttentionCalls,
    AttentionKernel,
    AttentionShape,
    DecodeBlocks,
    DecodeCoefficients,
    PrefillBlocks,
    PrefillCoefficients,
    attention_seconds,
    decode_geometry,
    decode_seconds,
    decode_variants,
    prefill_geometry,
    prefill_seconds,
)
from moesim.operators.moe_transfer import architecture
from moesim.operators.processor import Processor
from moesim.operators.systems import processor_of

__all__ = [
    "ATTENTION",
    "CONTEXT_ATTENTION",
    "GENERATION_ATTENTION",
    "AttentionOperator",
    "MeasuredCalls",
    "fit_decode",
    "fit_prefill",
]

LABELS = (*KERNEL, "kv_dtype", "head_dim", "variant")
"""What tells compiled kernels apart."""
LEAST_ROWS = 40
FIRST_ROWS, FIRST_STEPS, KEPT = 120, 4, 2
"""Rows and steps that every choice of blocks gets, and how many choices go on."""
TRIAL_ROWS, TRIAL_STEPS = 300, 10
FINAL_ROWS, FINAL_STEPS = 800, 30

Coefficients = TypeVar("Coefficients", PrefillCoefficients, DecodeCoefficients)
Choice = TypeVar("Choice")


@dataclass(frozen=True)
class MeasuredCalls(AttentionCalls):
    """Calls of one kernel with what was measured.

    Attributes:
        seconds: ``[rows]``.
    """

    seconds: np.ndarray


def prefill_space(seconds: np.ndarray) -> tuple[Coefficient, ...]:
    """Coefficients of a prefill kernel, with the bounds that physics sets."""
    fastest_s = float(seconds.min())
    return (
        Coefficient("launch_s", 0.8 * fastest_s, 1e-6, max(2 * fastest_s, 4e-6)),
        Coefficient("block_s", 1e-6, 1e-9, 3e-5),
        Coefficient("compute_efficiency", 0.6, 0.01, 1.05),
        # What was just written may still be in the L2 cache: faster than memory.
        Coefficient("memory_efficiency", 0.6, 0.05, 4.0),
        Coefficient("cache_efficiency", 0.6, 0.01, 20.0),
        Coefficient("token_s", 1e-10, 1e-12, 1e-7),
        Coefficient("longest_share", 0.9, 0.05, 3.0),
        Coefficient("balance_exponent", 2.0, 1.0, 8.0),
        Coefficient("slowdown", 0.1, 1e-3, 1.0),
    )


def decode_space(seconds: np.ndarray) -> tuple[Coefficient, ...]:
    """Coefficients of a decode kernel, with the bounds that physics sets."""
    fastest_s = float(seconds.min())
    return (
        Coefficient("launch_s", 0.7 * fastest_s, 5e-7, max(2 * fastest_s, 4e-6)),
        Coefficient("block_s", 1e-6, 1e-9, 3e-5),
        Coefficient("core_bytes_per_s", 60e9, 1e9, 400e9),
        Coefficient("memory_efficiency", 0.8, 0.1, 1.05),
        Coefficient("merge_s", 2e-6, 1e-8, 2e-5),
        Coefficient("head_s", 1e-9, 1e-12, 1e-6),
        Coefficient("overlap_exponent", 3.0, 1.0, 8.0),
        Coefficient("blocks_per_core", 1.0, 0.5, 8.0),
    )


def best_choice(
    fit: Callable[[MeasuredCalls, Choice, int, Mapping[str, float] | None], Fitted],
    calls: MeasuredCalls,
    options: Iterable[Choice],
) -> tuple[Choice, Fitted]:
    """Try the options on few rows, the best of them on more, and fit the last on many."""
    everything = np.arange(len(calls.seconds))
    final = calls.take(evenly_drawn(everything, FINAL_ROWS, seed=1))
    options = list(options)
    if len(options) == 1:
        return options[0], fit(final, options[0], FINAL_STEPS + TRIAL_STEPS, None)
    first = calls.take(evenly_drawn(everything, FIRST_ROWS))
    tried = [(fit(first, blocks, FIRST_STEPS, None), blocks) for blocks in options]
    best = sorted(tried, key=lambda one: one[0].loss)[:KEPT]
    trial = calls.take(evenly_drawn(everything, TRIAL_ROWS))
    tried = [(fit(trial, blocks, TRIAL_STEPS, found.values), blocks) for found, blocks in best]
    found, blocks = min(tried, key=lambda one: one[0].loss)
    return blocks, fit(final, blocks, FINAL_STEPS, found.values)


def started_at(
    space: Sequence[Coefficient], start: Mapping[str, float] | None
) -> list[Coefficient]:
    return [replace(c, start=(start or {}).get(c.name, c.start)) for c in space]


def fit_prefill(
    calls: MeasuredCalls,
    shape: AttentionShape,
    processor: Processor,
    blocks: PrefillBlocks | None = None,
) -> tuple[PrefillCoefficients, Fitted]:
    """Choose the blocks of a prefill kernel, if they are not known, and fit its coefficients."""

    def fit(
        part: MeasuredCalls, cut: PrefillBlocks, steps: int, start: Mapping[str, float] | None
    ) -> Fitted:
        geometry = prefill_geometry(part, shape, cut)

        def seconds(values: Mapping[str, Any]) -> np.ndarray:
            c = PrefillCoefficients.model_construct(**values)
            return prefill_seconds(geometry, c, processor)

        space = started_at(prefill_space(part.seconds), start)
        return fit_log(seconds, part.seconds, space, evaluations=steps)

    options = [
        PrefillBlocks(rows, columns, shares)
        for rows, columns in ((64, 64), (128, 64), (128, 128), (192, 128), (256, 128))
        for shares in (False, True)
    ]
    chosen, found = best_choice(fit, calls, options if blocks is None else [blocks])
    return PrefillCoefficients(**chosen._asdict(), **found.values), found


def fit_decode(
    calls: MeasuredCalls,
    shape: AttentionShape,
    processor: Processor,
    blocks: DecodeBlocks | None = None,
) -> tuple[DecodeCoefficients, Fitted]:
    """Choose the blocks of a decode kernel, if they are not known, and fit its coefficients."""

    def fit(
        part: MeasuredCalls, cut: DecodeBlocks, steps: int, start: Mapping[str, float] | None
    ) -> Fitted:
        geometry = decode_geometry(part, shape, cut)

        def seconds(values: Mapping[str, Any]) -> np.ndarray:
            c = DecodeCoefficients.model_construct(**values)
            return decode_seconds(geometry, c, processor)

        space = started_at(decode_space(part.seconds), start)
        return fit_log(seconds, part.seconds, space, evaluations=steps)

    options = [
        DecodeBlocks(columns, per_block, splits)
        for columns, per_block, splits in product((64, 128, 256), (1, 64), (False, True))
    ]
    chosen, found = best_choice(fit, calls, options if blocks is None else [blocks])
    return DecodeCoefficients(**chosen._asdict(), **found.values), found


@dataclass(frozen=True)
class AttentionOperator(Generic[Coefficients]):
    """Prefill or decode attention as an operator of the calibration."""

    name: str
    fit_rows: Callable[..., tuple[Coefficients, Fitted]]

    def load(
        self,
        source: str | Path = PACKAGE,
        systems: Iterable[str] | None = None,
        versions: str | Iterable[str] = "newest",
        engines: Iterable[str] | None = None,
    ) -> MeasuredRows:
        """Rows after hygiene, with the column ``variant``."""
        found = load_rows(self.name, source, systems, versions, engines)
        return replace(found, frame=self.with_variant(found.frame))

    def with_variant(self, frame: Frame) -> Frame:
        """Add the column that tells compiled variants apart."""
        window = frame["window_tokens"]
        if self.name == "context_attention":
            names: tuple[str, ...] = PREFILL_VARIANTS
            codes = (window > 0).astype(np.int32)
        else:
            names = DECODE_VARIANTS
            codes = decode_variants(frame["heads"], frame["kv_heads"], window)
        columns = dict(frame.columns) | {"variant": codes}
        return Frame(frame.operator, columns, dict(frame.labels) | {"variant": names}, frame.notes)

    def shape_key(self, table: MeasuredRows) -> np.ndarray:
        """Codes of (heads, kv_heads, head_dim, window), ``[rows] int64``."""
        return table.frame.groups(("heads", "kv_heads", "head_dim", "window_tokens"))

    def regimes(self, table: MeasuredRows) -> dict[str, np.ndarray]:
        """Codes along which errors differ, the finest division first."""
        return regimes(table.frame, ("kernel", "dtype", "kv_dtype", "variant"))

    def fit(self, table: MeasuredRows, rows: np.ndarray) -> dict[str, AttentionKernel]:
        """Fit every kernel on the chosen rows, ``[rows] bool``.

        Systems of one architecture run the same compiled kernel, so its blocks are chosen once.
        """
        kernels: dict[str, AttentionKernel] = {}
        chosen: dict[tuple[Any, ...], PrefillBlocks | DecodeBlocks] = {}
        for label, members in kernel_groups(table.frame, LABELS, rows, LEAST_ROWS):
            dtype, kv_dtype = str(label["dtype"]), str(label["kv_dtype"])
            if dtype not in ARITHMETIC or kv_dtype not in ELEMENT_BYTES:
                continue
            processor = processor_of(str(label["system"]), ARITHMETIC[dtype])
            shape = AttentionShape.plain(int(label["head_dim"]), dtype, kv_dtype)
            calls = measured_calls(table.frame, members)
            system = str(label["system"])
            others: list[Any] = [label[name] for name in LABELS[1:]]
            same: tuple[Any, ...] = (architecture(system) or system, *others)
            c, found = self.fit_rows(calls, shape, processor, chosen.get(same))
            chosen.setdefault(same, c.blocks)
            kernels[kernel_name(label)] = AttentionKernel.model_validate(
                label
                | {"processor": processor, "coefficients": c}
                | {"rows": len(members), "on_bounds": found.at_bound}
            )
        return kernels

    def predict(
        self, table: MeasuredRows, coefficients: Mapping[str, AttentionKernel]
    ) -> np.ndarray:
        """Seconds, ``[rows]``, by each row's kernel or the nearest that was fitted."""
        frame = table.frame

        def seconds(kernel: AttentionKernel, rows: np.ndarray) -> np.ndarray:
            calls = measured_calls(frame, rows)
            return attention_seconds(calls, kernel.head, kernel.coefficients, kernel.processor)

        return predicted_by_nearest(frame, coefficients.values(), LABELS, seconds)


def measured_calls(frame: Frame, rows: np.ndarray) -> MeasuredCalls:
    names = ("batch", "query_tokens", "past_tokens", "heads", "kv_heads", "window_tokens")
    return MeasuredCalls(*(frame[name][rows] for name in (*names, "latency_s")))


CONTEXT_ATTENTION = AttentionOperator("context_attention", fit_prefill)
GENERATION_ATTENTION: AttentionOperator[DecodeCoefficients] = AttentionOperator(
    "generation_attention", fit_decode
)
ATTENTION = (CONTEXT_ATTENTION, GENERATION_ATTENTION)
