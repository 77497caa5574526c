"""Fits latent attention to measured rows: kernels, whole modules, and the per-head products.

Whether a prefill kernel runs expanded or absorbed is not in the tables: both are tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from moesim.calibrate.fit_attention import (
    MeasuredCalls,
    best_choice,
    decode_space,
    prefill_space,
    started_at,
)
from moesim.calibrate.fit_gemm import GemmOperator, Shapes
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
from moesim.calibrate.robust_fit import Coefficient, Fitted, fit_log
from moesim.calibrate.tables import PACKAGE
from moesim.operators.attention import (
    ARITHMETIC,
    ELEMENT_BYTES,
    AttentionCalls,
    AttentionShape,
    DecodeBlocks,
    DecodeCoefficients,
    PrefillBlocks,
    PrefillCoefficients,
    decode_geometry,
    decode_seconds,
    prefill_geometry,
    prefill_seconds,
)
from moesim.operators.gemm import FORMATS
from moesim.operators.mla import (
    DEEPSEEK_V3,
    MlaKernel,
    ModuleCoefficients,
    mla_head,
    mla_seconds,
    module_seconds,
    projections,
    with_kv_heads,
)
from moesim.operators.processor import Processor
from moesim.operators.systems import processor_of

__all__ = ["MLA", "BmmOperator", "MlaOperator", "fit_rows"]

LEAST_ROWS = 40
MODULE = ("host_s", "projection_efficiency", "projection_memory_efficiency", "norm_s")
Choice = tuple[PrefillBlocks | DecodeBlocks, bool]
"""Blocks, and whether the form is absorbed."""


def module_space(seconds: np.ndarray) -> tuple[Coefficient, ...]:
    """Coefficients of a module besides its attention, with the bounds that physics sets."""
    fastest_s = float(seconds.min())
    return (
        Coefficient("host_s", 0.5 * fastest_s, 1e-7, 2 * fastest_s),
        Coefficient("projection_efficiency", 0.6, 0.05, 1.05),
        Coefficient("projection_memory_efficiency", 0.7, 0.1, 1.05),
        Coefficient("norm_s", 1e-9, 1e-12, 1e-6),
    )


def fit_rows(
    calls: MeasuredCalls, label: Mapping[str, str], decode: bool
) -> tuple[MlaKernel, Fitted]:
    """Choose form and blocks, and fit all coefficients together.

    Args:
        calls: Measured calls of one kernel or module.
        label: Its ``system``, ``dtype`` … and, of a module, ``gemm_dtype``.
        decode: One query per sequence.
    """
    processor = processor_of(label["system"], ARITHMETIC[label["dtype"]])
    gemm_dtype = label.get("gemm_dtype", "")
    gemm = None
    if gemm_dtype:
        gemm = processor_of(label["system"], FORMATS[gemm_dtype].arithmetic)

    def fit(
        part: MeasuredCalls, choice: Choice, steps: int, start: Mapping[str, float] | None
    ) -> Fitted:
        blocks, absorbed = choice
        head = mla_head(label["dtype"], label["kv_dtype"], absorbed)
        attention = _attention(with_kv_heads(part, absorbed), head, blocks, processor)
        space = decode_space(part.seconds) if decode else prefill_space(part.seconds)
        # A kernel may convert the whole cache first: far more bytes than it holds.
        space = tuple(replace(c, lower=0.01) if c.name == "memory_efficiency" else c for c in space)
        if gemm is None:
            return fit_log(attention, part.seconds, started_at(space, start), evaluations=steps)
        tokens = part.batch * part.query_tokens
        around = projections(tokens, part.heads, gemm_dtype, absorbed)

        def seconds(values: Mapping[str, Any]) -> np.ndarray:
            own, rest = _parted(values)
            m = ModuleCoefficients.model_construct(**rest)
            return module_seconds(attention(own), around, m, gemm)

        space += module_space(part.seconds)
        return fit_log(seconds, part.seconds, started_at(space, start), evaluations=steps)

    (blocks, absorbed), found = best_choice(fit, calls, options(decode))
    own, rest = _parted(found.values)
    kind = DecodeCoefficients if decode else PrefillCoefficients
    kernel = MlaKernel.model_validate(
        dict(label)
        | {"absorbed": absorbed, "processor": processor, "gemm_processor": gemm}
        | {"attention": kind(**blocks._asdict(), **own)}
        | {"module": ModuleCoefficients(**rest) if gemm else None}
        | {"rows": len(calls.seconds), "on_bounds": found.at_bound}
    )
    return kernel, found


def options(decode: bool) -> list[Choice]:
    """Blocks and forms to try; decode is absorbed."""
    if decode:
        sizes = product((64, 256), (16, 64, 128), (False, True))
        return [(DecodeBlocks(*size), True) for size in sizes]
    # Heads share the latent, or have keys of their own.
    return [
        (PrefillBlocks(rows, columns, absorbed), absorbed)
        for rows, columns, absorbed in product((64, 128), (64, 128), (False, True))
    ]


def _attention(
    calls: AttentionCalls,
    head: AttentionShape,
    blocks: PrefillBlocks | DecodeBlocks,
    processor: Processor,
) -> Callable[[Mapping[str, Any]], np.ndarray]:
    """Seconds of the attention kernel as a function of its coefficients."""
    if isinstance(blocks, DecodeBlocks):
        single = decode_geometry(calls, head, blocks)
        return lambda values: decode_seconds(
            single, DecodeCoefficients.model_construct(**values), processor
        )
    many = prefill_geometry(calls, head, blocks)
    return lambda values: prefill_seconds(
        many, PrefillCoefficients.model_construct(**values), processor
    )


def _parted(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Coefficients of the attention kernel and of what is around it."""
    own = {name: value for name, value in values.items() if name not in MODULE}
    return own, {name: value for name, value in values.items() if name in MODULE}


@dataclass(frozen=True)
class MlaOperator:
    """One table of latent attention as an operator of the calibration.

    Attributes:
        name: Of the measured operator.
        decode: One query per sequence.
        module: The projections are measured too.
        length_is_cache: The table gives what the cache holds as ``query_tokens`` of a decode step.
    """

    name: str
    decode: bool
    module: bool
    length_is_cache: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """What tells kernels apart."""
        return (*KERNEL, "kv_dtype", *(("gemm_dtype",) if self.module else ()))

    def load(
        self,
        source: str | Path = PACKAGE,
        systems: Iterable[str] | None = None,
        versions: str | Iterable[str] = "newest",
        engines: Iterable[str] | None = None,
    ) -> MeasuredRows:
        """Rows after hygiene."""
        return load_rows(self.name, source, systems, versions, engines)

    def shape_key(self, table: MeasuredRows) -> np.ndarray:
        """Codes of (heads, tensor parallelism), ``[rows] int64``."""
        return table.frame.groups(("heads", "tp"))

    def regimes(self, table: MeasuredRows) -> dict[str, np.ndarray]:
        """Codes along which errors differ, the finest division first."""
        return regimes(table.frame, ("kernel", "dtype"))

    def fit(self, table: MeasuredRows, rows: np.ndarray) -> dict[str, MlaKernel]:
        """Fit every kernel or module on the chosen rows, ``[rows] bool``."""
        kernels: dict[str, MlaKernel] = {}
        for label, members in kernel_groups(table.frame, self.columns, rows, LEAST_ROWS):
            text = {name: str(value) for name, value in label.items()}
            if text["dtype"] not in ARITHMETIC or text["kv_dtype"] not in ELEMENT_BYTES:
                continue
            if self.module and text["gemm_dtype"] not in FORMATS:
                continue
            kernel, _ = fit_rows(self.calls(table.frame, members), text, self.decode)
            kernels[kernel_name(label)] = kernel
        return kernels

    def predict(self, table: MeasuredRows, coefficients: Mapping[str, MlaKernel]) -> np.ndarray:
        """Seconds, ``[rows]``, by each row's kernel or the nearest that was fitted."""
        frame = table.frame

        def seconds(kernel: MlaKernel, rows: np.ndarray) -> np.ndarray:
            return mla_seconds(self.calls(frame, rows), kernel)

        return predicted_by_nearest(frame, coefficients.values(), self.columns, seconds)

    def calls(self, frame: Frame, rows: np.ndarray) -> MeasuredCalls:
        """The calls of some rows."""
        names = ("batch", "query_tokens", "past_tokens", "heads", "latency_s")
        batch, query, past, heads, seconds = (frame[name][rows] for name in names)
        if self.length_is_cache:
            query, past = np.ones_like(query), query - 1
        return MeasuredCalls(batch, query, past, heads, heads, np.zeros_like(heads), seconds)


@dataclass(frozen=True)
class BmmOperator(GemmOperator):
    """The per-head products of the absorbed form: one batched multiplication per launch."""

    name: str = "mla_bmm"

    def shape_key(self, table: MeasuredRows) -> np.ndarray:
        """Codes of (heads, stage), ``[rows] int64``."""
        return table.frame.groups(("heads", "stage"))

    def shapes(self, frame: Frame, rows: np.ndarray, dtype: str) -> Shapes:
        """Queries to the latent (``pre``) and the latent to values (``post``)."""
        s = DEEPSEEK_V3
        before = frame.is_label("stage", "mla_gen_pre")[rows]
        return Shapes(
            m=frame["tokens"][rows],
            n=np.where(before, s.kv_lora, s.value),
            k=np.where(before, s.nope, s.kv_lora),
            seconds=frame["latency_s"][rows],
            dtype=dtype,
            batch=frame["heads"][rows],
        )


MLA = (
    MlaOperator("context_mla", decode=False, module=False),
    MlaOperator("generation_mla", decode=True, module=False),
    MlaOperator("context_mla_module", decode=False, module=True),
    MlaOperator("generation_mla_module", decode=True, module=True),
    MlaOperator("wideep_context_mla", decode=False, module=True),
    MlaOperator("wideep_generation_mla", decode=True, module=True, length_is_cache=True),
    BmmOperator(),
)
