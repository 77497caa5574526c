"""Fits latent attention to measured rows: kernels, whole modules, and the per-head products.

Whether a prefill kernel runs expanded or absorbed is not in the tables: both are tried.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from moesim.calibrate.fit_attention import (
    ARITHMETIC,
    ELEMENT_BYTES,
    Sequences,
    attention_seconds,
    best_choice,
    decode_arguments,
    decode_space,
    prefill_arguments,
    prefill_space,
    started_at,
)
from moesim.calibrate.fit_gemm import GemmOperator, Shapes
from moesim.calibrate.frame import Frame
from moesim.calibrate.measured_rows import (
    KERNEL,
    MeasuredRows,
    kernel_groups,
    load_rows,
    matching_rows,
    processor_of,
    regimes,
)
from moesim.calibrate.robust_fit import Coefficient, Fitted, fit_log
from moesim.calibrate.tables import PACKAGE
from moesim.operators.attention import (
    AttentionShape,
    DecodeCoefficients,
    PrefillCoefficients,
    decode_geometry,
    decode_seconds,
    prefill_geometry,
    prefill_seconds,
)
from moesim.operators.gemm import FORMATS
from moesim.operators.mla import (
    DEEPSEEK_V3,
    ModuleCoefficients,
    absorbed_head,
    expanded_head,
    module_seconds,
    projections,
)
from moesim.operators.processor import Processor
from moesim.schema import Document

__all__ = ["MLA", "BmmOperator", "MlaKernel", "MlaOperator"]

LEAST_ROWS = 40
MODULE = ("host_s", "projection_efficiency", "projection_memory_efficiency", "token_s")
Choice = tuple[int, int, bool, bool]
"""Sizes of the blocks, as in the attention models, and whether the form is absorbed."""


class MlaKernel(Document):
    """One kernel or module of an engine version on a system, with its fit."""

    system: str
    engine: str
    version: str
    kernel: str
    dtype: str
    kv_dtype: str
    gemm_dtype: str = ""
    """Of a module's weights; empty for a kernel."""
    absorbed: bool
    processor: Processor
    gemm_processor: Processor | None = None
    attention: PrefillCoefficients | DecodeCoefficients
    module: ModuleCoefficients | None = None
    rows: int = 0
    at_bound: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Calls:
    """The label of a group as the model needs it."""

    dtype: str
    kv_dtype: str
    gemm_dtype: str
    processor: Processor
    gemm_processor: Processor | None

    def shape(self, absorbed: bool, decode: bool) -> AttentionShape:
        """Sizes of a head. Expanded keys and values come in the format of the queries."""
        query = ELEMENT_BYTES[self.dtype]
        if absorbed:
            return absorbed_head(query, ELEMENT_BYTES[self.kv_dtype])
        return expanded_head(query, ELEMENT_BYTES[self.kv_dtype] if decode else query)


def module_space(seconds: np.ndarray) -> tuple[Coefficient, ...]:
    """Coefficients of a module besides its attention, with the bounds that physics sets."""
    fastest_s = float(seconds.min())
    return (
        Coefficient("host_s", 0.5 * fastest_s, 1e-7, 2 * fastest_s),
        Coefficient("projection_efficiency", 0.6, 0.05, 1.05),
        Coefficient("projection_memory_efficiency", 0.7, 0.1, 1.05),
        Coefficient("token_s", 1e-9, 1e-12, 1e-6),
    )


def fit_rows(sequences: Sequences, calls: _Calls, decode: bool) -> tuple[Choice, Fitted]:
    """Choose form and blocks, and fit all coefficients together."""

    def fit(
        part: Sequences, choice: Choice, steps: int, start: Mapping[str, float] | None
    ) -> Fitted:
        *blocks, absorbed = choice
        shape = calls.shape(absorbed, decode)
        part_ = with_heads(part, absorbed)
        space = list(decode_space(part.seconds) if decode else prefill_space(part.seconds))
        # A kernel may convert the whole cache first: far more bytes than it holds.
        space = [
            Coefficient(c.name, c.start, 0.01, c.upper) if c.name == "memory_efficiency" else c
            for c in space
        ]
        prefill = None if decode else prefill_geometry(*prefill_arguments(part_), shape, blocks)
        single = decode_geometry(*decode_arguments(part_), shape, blocks) if decode else None
        around = None
        if calls.gemm_dtype:
            tokens = part.batch * part.query_tokens
            around = projections(tokens, part.heads, calls.gemm_dtype, absorbed)
            space += module_space(part.seconds)

        def seconds(values: Mapping[str, float]) -> np.ndarray:
            own = {name: value for name, value in values.items() if name not in MODULE}
            if single is not None:
                d = DecodeCoefficients.model_construct(**own)
                total_s = decode_seconds(single, d, calls.processor)
            else:
                p = PrefillCoefficients.model_construct(**own)
                total_s = prefill_seconds(prefill, p, calls.processor)
            if around is None or calls.gemm_processor is None:
                return total_s
            m = ModuleCoefficients.model_construct(**{name: values[name] for name in MODULE})
            return module_seconds(total_s, around, m, calls.gemm_processor)

        return fit_log(seconds, part.seconds, started_at(space, start), evaluations=steps)

    options: Iterable[Choice]
    if decode:
        options = product((64, 256), (16, 64, 128), (False, True), (True,))
    else:
        options = product((64, 128), (64, 128), (False, True), (False, True))
        options = [o for o in options if o[2] == o[3]]  # heads share a latent, or have their own
    return best_choice(fit, sequences, options)


def with_heads(sequences: Sequences, absorbed: bool) -> Sequences:
    """The key-value heads of the form."""
    kv_heads = np.ones_like(sequences.heads) if absorbed else sequences.heads
    s = sequences
    return Sequences(
        s.batch, s.query_tokens, s.past_tokens, s.heads, kv_heads, s.window_tokens, s.seconds
    )


@dataclass(frozen=True)
class MlaOperator:
    """One table of latent attention as an operator of the calibration.

    Attributes:
        name: Of the measured operator.
        decode: One query per sequence.
        module: The projections are measured too.
    """

    name: str
    decode: bool
    module: bool

    @property
    def columns(self) -> tuple[str, ...]:
        """What tells kernels apart."""
        return (*KERNEL, "kv_dtype", *(("gemm_dtype",) if self.module else ()))

    def load(
        self,
        source: str | Path = PACKAGE,
        systems: Iterable[str] | None = None,
        versions: str | Iterable[str] = "newest",
    ) -> MeasuredRows:
        """Rows after hygiene."""
        return load_rows(self.name, source, systems, versions)

    def shape_key(self, table: MeasuredRows) -> np.ndarray:
        """Codes of (heads, tensor parallelism), ``[rows] int64``."""
        return table.frame.groups(("heads", "tp"))

    def regimes(self, table: MeasuredRows) -> dict[str, np.ndarray]:
        """Rows of each regime."""
        return regimes(table)

    def fit(self, table: MeasuredRows, rows: np.ndarray) -> tuple[MlaKernel, ...]:
        """Fit every kernel or module on the chosen rows, ``[rows] bool``."""
        kernels = []
        for label, members in kernel_groups(table.frame, self.columns, rows, LEAST_ROWS):
            text = {name: str(value) for name, value in label.items()}
            gemm_dtype = text.get("gemm_dtype", "")
            if text["dtype"] not in ARITHMETIC or text["kv_dtype"] not in ELEMENT_BYTES:
                continue
            processor = processor_of(text["system"], ARITHMETIC[text["dtype"]])
            gemm = None
            if gemm_dtype:
                if gemm_dtype not in FORMATS:
                    continue
                gemm = processor_of(text["system"], FORMATS[gemm_dtype].arithmetic)
            calls = _Calls(text["dtype"], text["kv_dtype"], gemm_dtype, processor, gemm)
            choice, found = fit_rows(_sequences(table.frame, members), calls, self.decode)
            kernels.append(_kernel(text, calls, choice, found, len(members), self.decode))
        return tuple(kernels)

    def predict(self, table: MeasuredRows, coefficients: Sequence[MlaKernel]) -> np.ndarray:
        """Seconds, ``[rows]``; NaN where no kernel covers a row."""
        seconds = np.full(len(table.frame), np.nan)
        for kernel in coefficients:
            values = {name: getattr(kernel, name) for name in self.columns}
            members = matching_rows(table.frame, values)
            if len(members):
                part = _sequences(table.frame, members)
                seconds[members] = mla_seconds(part, kernel, self.decode)
        return seconds


def mla_seconds(sequences: Sequences, kernel: MlaKernel, decode: bool) -> np.ndarray:
    """Seconds of a fitted kernel or module, ``[rows]``."""
    k = kernel
    calls = _Calls(k.dtype, k.kv_dtype, k.gemm_dtype, k.processor, k.gemm_processor)
    seconds = attention_seconds(
        with_heads(sequences, k.absorbed),
        calls.shape(k.absorbed, decode),
        k.attention,
        k.processor,
    )
    if k.module is None or k.gemm_processor is None:
        return seconds
    tokens = sequences.batch * sequences.query_tokens
    around = projections(tokens, sequences.heads, k.gemm_dtype, k.absorbed)
    return module_seconds(seconds, around, k.module, k.gemm_processor)


def _kernel(
    label: Mapping[str, str],
    calls: _Calls,
    choice: Choice,
    found: Fitted,
    rows: int,
    decode: bool,
) -> MlaKernel:
    first, second, flag, absorbed = choice
    own = {name: value for name, value in found.values.items() if name not in MODULE}
    attention: PrefillCoefficients | DecodeCoefficients
    if decode:
        attention = DecodeCoefficients(
            key_columns=first, heads_per_block=second, splits=flag, **own
        )
    else:
        attention = PrefillCoefficients(
            query_rows=first, key_columns=second, shares_heads=flag, **own
        )
    module = None
    if calls.gemm_dtype:
        module = ModuleCoefficients(**{name: found.values[name] for name in MODULE})
    return MlaKernel.model_validate(
        dict(label)
        | {"absorbed": absorbed, "processor": calls.processor}
        | {"gemm_processor": calls.gemm_processor, "attention": attention, "module": module}
        | {"rows": rows, "at_bound": found.at_bound}
    )


def _sequences(frame: Frame, rows: np.ndarray) -> Sequences:
    names = ("batch", "query_tokens", "past_tokens", "heads")
    batch, query, past, heads = (frame[name][rows] for name in names)
    return Sequences(
        batch, query, past, heads, heads, np.zeros_like(heads), frame["latency_s"][rows]
    )


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
    MlaOperator("wideep_generation_mla", decode=True, module=True),
    BmmOperator(),
)
