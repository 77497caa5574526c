"""Each operator's measured table as a tidy frame: fixed names, SI units.

The files name columns in several ways and give times in milliseconds or microseconds. A frame has
``system, engine, version, device, kernel``, then the operator's own columns, then ``latency_s``,
``power_w`` and ``power_limit_w`` (NaN where nobody measured them). What a file has beyond that is
ignored; an optional column that it lacks is filled.

Meanings that the names do not tell (collector of aiconfigurator 0.12):

- ``tokens`` of a MoE row is global over the expert-parallel group; one rank is timed.
- ``message_bytes`` of a collective: the file counts elements, of 2 bytes for half and bfloat16
  (at one ``message_size`` all-gather takes 1.93 times as long with half as with int8).
- ``latency`` of ``moe_a2a`` is in microseconds although other files mean milliseconds by it
  (it equals ``transmit_us + notify_us`` in every row).
- ``past_tokens`` is what the KV cache holds before the step, as the file's ``step``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moesim.calibrate.frame import Frame, concatenate
from moesim.calibrate.tables import Catalogue, TableFile, read_parquet
from moesim.errors import InputError, UsageError

__all__ = ["COMMON", "OPERATORS", "Operator", "operator_of_file", "read_operator"]

COMMON = ("system", "engine", "version", "device", "kernel")
MEASURED = ("latency_s", "power_w", "power_limit_w")
MS, US = 1e-3, 1e-6
ELEMENT_BYTES = {"half": 2, "float16": 2, "bfloat16": 2, "int8": 1, "fp8": 1, "float": 4}


@dataclass(frozen=True)
class Timing:
    """One measured time of a row: the sum of some columns, times a unit."""

    columns: tuple[str, ...] = ("latency",)
    unit_s: float = MS
    extra: Mapping[str, str] = field(default_factory=dict)  # tidy name -> source column


@dataclass(frozen=True)
class Operator:
    """How the files of one operator are read.

    Attributes:
        name: Its name here.
        files: Names of its files, without ``_perf.parquet``.
        columns: Tidy name of each key column, and its name in the files.
        shape: The columns that make a model's shape, held out together by leave-shape-out.
        series: The column along which latency changes smoothly while the others stay.
        optional: Columns that some files lack, and what to fill in.
        timings: Times in a row, by the label that goes into ``phase``; one unlabelled (``""``)
            time makes no such column.
        may_be_zero: The time is a difference of two measurements, so that zero is a value.
    """

    name: str
    files: tuple[str, ...]
    columns: Mapping[str, str]
    shape: tuple[str, ...]
    series: str
    optional: Mapping[str, str | int] = field(default_factory=dict)
    timings: Mapping[str, Timing] = field(default_factory=lambda: {"": Timing()})
    may_be_zero: bool = False

    @property
    def key(self) -> tuple[str, ...]:
        """Columns that identify a measurement within one table, the kernel aside."""
        names = list(self.columns)
        for phase, timing in self.timings.items():
            names += [name for name in (*timing.extra, *(("phase",) if phase else ()))]
        return tuple(dict.fromkeys(names))


RENAMED = {
    "num_tokens": "tokens",
    "num_token": "tokens",
    "hidden_size": "hidden",
    "inter_size": "inter",
    "intermediate_size": "inter",
    "topk": "top_k",
    "num_topk": "top_k",
    "num_experts": "experts",
    "moe_tp_size": "moe_tp",
    "moe_ep_size": "moe_ep",
    "ep_size": "moe_ep",
    "tp_size": "tp",
    "node_num": "nodes",
    "num_gpus": "devices",
    "message_size": "elements",
    "batch_size": "batch",
    "isl": "query_tokens",
    "seq_len": "query_tokens",
    "step": "past_tokens",
    "num_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "window_size": "window_tokens",
    "kv_cache_dtype": "kv_dtype",
    "dp_num_tokens": "dp_tokens",
    "rank0_num_tokens": "rank0_tokens",
    "global_num_tokens": "global_tokens",
    "num_slots": "slots",
    "simulation_mode": "simulation",
    "gemm_type": "gemm_dtype",
    "model_name": "model",
    "comm_backend": "backend",
} | {
    name: "dtype"
    for name in (
        *("moe_dtype", "attn_dtype", "mla_dtype", "bmm_dtype", "nccl_dtype"),
        *("allreduce_dtype", "quant_dtype", "quant_type", "comm_dtype"),
    )
}


def _columns(sources: str, **renamed: str) -> dict[str, str]:
    """Tidy name -> source column of a blank-separated list of source columns."""
    return {RENAMED.get(source, source): source for source in sources.split()} | renamed


_MOE = "moe_dtype num_tokens hidden_size inter_size topk num_experts moe_tp_size moe_ep_size"
_MOE_SHAPE = ("hidden", "inter", "top_k", "experts")
_MLA = "mla_dtype kv_cache_dtype num_heads batch_size isl tp_size step"
_MODULE = f"model architecture gemm_type {_MLA}"
_RECURRENT = "phase batch_size seq_len d_model d_conv"
_DELTA = f"{_RECURRENT} num_k_heads head_k_dim num_v_heads head_v_dim"
_HEADS = ("heads", "kv_heads", "head_dim")
_DISPATCH = {"dispatch": "dispatch", "combine": "combine"}

_LIST = (
    Operator("moe", ("moe",), _columns(f"{_MOE} distribution"), _MOE_SHAPE, "tokens"),
    Operator(
        "wideep_moe",
        ("wideep_moe",),
        _columns(
            f"{_MOE} distribution dp_num_tokens rank0_num_tokens num_slots simulation_mode",
        ),
        _MOE_SHAPE,
        "tokens",
        {"simulation": "", "slots": 0},
    ),
    Operator(
        "deepep_moe",
        ("wideep_context_moe", "wideep_generation_moe"),
        _columns(f"{_MOE} distribution", stage="op_name"),
        _MOE_SHAPE,
        "tokens",
    ),
    Operator(
        "megamoe",
        ("dsv4_megamoe_module",),
        _columns(f"{_MOE} distribution phase kernel_dtype global_num_tokens source_policy"),
        _MOE_SHAPE,
        "tokens",
        {"source_policy": ""},
    ),
    Operator("gemm", ("gemm",), _columns("m n k", dtype="gemm_dtype"), ("n", "k"), "m"),
    *(
        Operator(
            f"{phase}_attention",
            (f"{phase}_attention",),
            _columns(
                "attn_dtype kv_cache_dtype batch_size isl step num_heads num_key_value_heads "
                "head_dim window_size"
            ),
            _HEADS,
            "query_tokens" if phase == "context" else "past_tokens",
            {"window_tokens": 0},
        )
        for phase in ("context", "generation")
    ),
    Operator(
        "encoder_attention",
        ("encoder_attention",),
        _columns("attn_dtype batch_size isl num_heads head_dim"),
        ("heads", "head_dim"),
        "query_tokens",
    ),
    *(
        Operator(
            f"{wide}{phase}_mla",
            (f"{wide}{phase}_mla",),
            _columns(f"{_MLA} gemm_type"),
            ("heads",),
            "query_tokens" if phase == "context" else "past_tokens",
            {"gemm_dtype": ""},
        )
        for phase in ("context", "generation")
        for wide in ("", "wideep_")
    ),
    *(
        Operator(
            f"{phase}_{kind}_module",
            files,
            _columns(f"{_MODULE}{ratio}", variant="op_name"),
            ("model", "heads"),
            "query_tokens" if phase == "context" else "past_tokens",
        )
        for phase in ("context", "generation")
        for kind, files, ratio in (
            ("mla", (f"mla_{phase}_module",), ""),
            ("dsa", (f"dsa_{phase}_module",), ""),
            ("msa", (f"msa_{phase}_module",), ""),
            (
                "dsv4",
                (f"dsv4_csa_{phase}_module", f"dsv4_hca_{phase}_module"),
                " compress_ratio",
            ),
        )
    ),
    Operator(
        "mla_bmm",
        ("mla_bmm",),
        _columns("bmm_dtype num_tokens num_heads", stage="op_name"),
        ("heads",),
        "tokens",
    ),
    Operator(
        "collective",
        ("nccl", "oneccl"),
        _columns("nccl_dtype num_gpus message_size", collective="op_name"),
        ("collective", "devices"),
        "elements",
    ),
    Operator(
        "custom_allreduce",
        ("custom_allreduce",),
        _columns("allreduce_dtype num_gpus message_size backend"),
        ("devices",),
        "elements",
        {"backend": ""},
    ),
    Operator(
        "deepep_normal",
        ("wideep_deepep_normal",),
        _columns("node_num hidden_size num_token num_topk num_experts"),
        ("hidden", "top_k", "experts", "nodes"),
        "tokens",
        timings={
            way: Timing(
                (f"{way}_transmit_us", f"{way}_notify_us"),
                US,
                {"sms": f"{way}_sms"},
            )
            for way in _DISPATCH
        },
    ),
    Operator(
        "deepep_low_latency",
        ("wideep_deepep_ll",),
        _columns("node_num hidden_size num_token num_topk num_experts"),
        ("hidden", "top_k", "experts", "nodes"),
        "tokens",
        timings={way: Timing((f"{way}_avg_t_us",), US) for way in _DISPATCH},
    ),
    Operator(
        "moe_all_to_all",
        ("moe_a2a",),
        _columns(
            "comm_backend phase comm_dtype ep_size node_num hidden_size topk num_experts "
            "num_tokens sms"
        ),
        ("hidden", "top_k", "experts", "nodes"),
        "tokens",
        timings={"": Timing(("latency",), US)},
    ),
    Operator(
        "trtllm_alltoall",
        ("trtllm_alltoall",),
        _columns(
            "moe_dtype num_tokens hidden_size topk num_experts moe_ep_size distribution",
            stage="op_name",
        ),
        ("hidden", "top_k", "experts"),
        "tokens",
    ),
    Operator(
        "compute_scale",
        ("computescale",),
        _columns("quant_dtype m k"),
        ("k",),
        "m",
        may_be_zero=True,
    ),
    Operator("scale_matrix", ("scale_matrix",), _columns("quant_dtype m k"), ("k",), "m"),
    Operator("gdn", ("gdn",), _columns(f"{_DELTA} model_name"), ("model",), "query_tokens"),
    Operator("kda", ("kda",), _columns(f"{_DELTA} model_name"), ("model",), "query_tokens"),
    Operator(
        "mamba2",
        ("mamba2",),
        _columns(f"{_RECURRENT} d_state nheads head_dim n_groups chunk_size model_name"),
        ("model",),
        "query_tokens",
    ),
    Operator(
        "hyper_connection",
        ("mhc_module",),
        _columns("num_tokens num_sites hc_mult hidden_size sinkhorn_iters", stage="op_name"),
        ("hidden",),
        "tokens",
    ),
    *(
        Operator(
            f"{phase}_mlp",
            (f"wideep_{phase}_mlp",),
            _columns("quant_type num_token hidden_size intermediate_size"),
            ("hidden", "inter"),
            "tokens",
            timings={"": Timing(("avg_ms",), MS)},
        )
        for phase in ("context", "generation")
    ),
    # Measured here by calibrate measure: in no file of the package.
    Operator("cpu_experts", (), {}, ("hidden", "inter"), "tokens"),
)

OPERATORS: Mapping[str, Operator] = {operator.name: operator for operator in _LIST}
"""Every operator that is read, by name."""


def operator_of_file(file: str) -> Operator | None:
    """The operator that a file (name without ``_perf.parquet``) belongs to, if any."""
    return next((operator for operator in _LIST if file in operator.files), None)


def read_operator(
    catalogue: Catalogue,
    operator: str,
    *,
    systems: Iterable[str] | None = None,
    engines: Iterable[str] | None = None,
    versions: str | Iterable[str] = "newest",
    reuse: bool = False,
) -> Frame:
    """Read an operator's tables below each other.

    Args:
        catalogue: What ``open_catalogue`` found.
        operator: A name out of ``OPERATORS``.
        systems: As in ``Catalogue.select``, like the next two.
        engines: Of these engines only.
        versions: ``"newest"``, ``"all"`` or version numbers.
        reuse: Complete a table from the version its ``reuse.yaml`` names, where it lacks a key.
            The ``version`` column keeps the version that was measured. Off, each measurement
            comes once.

    Raises:
        UsageError: If there is no such operator, or no table of it among those chosen.
    """
    if operator not in OPERATORS:
        raise UsageError(f"unknown operator {operator}; allowed: {', '.join(OPERATORS)}")
    spec = OPERATORS[operator]
    chosen = catalogue.select(spec.files, systems, engines, versions)
    frames = []
    for table in chosen:
        parts = [] if table.path is None else [_read(table, spec)]
        donor = catalogue.donor(table) if reuse else None
        if donor is not None:
            parts.append(_missing_rows(_read(donor, spec), parts, spec, table))
        frames += parts
    if not frames:
        raise UsageError(
            f"no measured table of {operator} for these systems, engines and versions\n"
            "fix: see moesim calibrate tables"
        )
    return concatenate(frames)


def _missing_rows(donor: Frame, own: Sequence[Frame], spec: Operator, table: TableFile) -> Frame:
    """The donor's rows whose keys the table itself lacks."""
    kept = donor
    if own:
        both = concatenate([own[0], donor])
        ids = both.groups((*spec.key, "kernel"))
        count = len(own[0])
        kept = donor.take(~np.isin(ids[count:], ids[:count]))
    note = (
        f"{table.name}: {len(kept)} rows taken from version {table.reuses} ({table.reuse_reason})"
    )
    return Frame(kept.operator, kept.columns, kept.labels, (*kept.notes, note))


def _read(table: TableFile, spec: Operator) -> Frame:
    """One file as a tidy frame."""
    assert table.path is not None  # noqa: S101 - for the type checker; callers have checked
    sources = {**spec.columns, "device": "device", "kernel": "kernel_source"}
    timed = [name for timing in spec.timings.values() for name in timing.columns]
    timed += [name for timing in spec.timings.values() for name in timing.extra.values()]
    wanted = [*sources.values(), *timed, "power", "power_limit"]
    found = read_parquet(table.path, wanted)
    rows = len(next(iter(found.values()))[0]) if found else 0
    columns: dict[str, np.ndarray] = {}
    labels: dict[str, tuple[str, ...]] = {}
    for name in ("system", "engine", "version"):
        columns[name] = np.zeros(rows, np.int32)
        labels[name] = (getattr(table, name),)
    optional: Mapping[str, str | int] = {"device": "", "kernel": "", **spec.optional}
    for name, source in {"device": "device", "kernel": "kernel_source", **spec.columns}.items():
        if source in found:
            values, texts = found[source]
        elif name in optional:
            values, texts = _filled(optional[name], rows)
        else:
            raise InputError("a column is missing", file=table.path, field=source)
        columns[name] = values
        if texts is not None:
            labels[name] = texts
    for name, source in (("power_w", "power"), ("power_limit_w", "power_limit")):
        blank = np.full(rows, np.nan)
        columns[name] = found[source][0].astype(float) if source in found else blank
    if "elements" in columns:
        widths = np.array([ELEMENT_BYTES.get(label, 0) for label in labels["dtype"]])
        if not widths.all():
            unknown = [name for name in labels["dtype"] if name not in ELEMENT_BYTES]
            raise InputError(
                "a type of unknown width",
                file=table.path,
                field=spec.columns["dtype"],
                found=", ".join(unknown),
                allowed=", ".join(ELEMENT_BYTES),
            )
        columns["message_bytes"] = columns["elements"] * widths[columns["dtype"]]
    frames = [
        _timed(spec, table, phase, timing, columns, labels, found)
        for phase, timing in spec.timings.items()
    ]
    return concatenate(frames)


def _timed(
    spec: Operator,
    table: TableFile,
    phase: str,
    timing: Timing,
    columns: Mapping[str, np.ndarray],
    labels: Mapping[str, tuple[str, ...]],
    found: Mapping[str, tuple[np.ndarray, tuple[str, ...] | None]],
) -> Frame:
    """The rows of one of the times that a file gives."""
    columns, labels = dict(columns), dict(labels)
    for name in (*timing.columns, *timing.extra.values()):
        if name not in found:
            raise InputError("a column is missing", file=table.path, field=name)
    if phase:
        columns["phase"] = np.zeros(len(columns["system"]), np.int32)
        labels["phase"] = (phase,)
    for name, source in timing.extra.items():
        columns[name] = found[source][0]
    parts: list[Any] = [found[name][0].astype(float) for name in timing.columns]
    columns["latency_s"] = sum(parts[1:], parts[0]) * timing.unit_s
    for name in ("power_w", "power_limit_w"):  # measured columns last
        columns[name] = columns.pop(name)
    return Frame(spec.name, columns, labels)


def _filled(value: str | int, rows: int) -> tuple[np.ndarray, tuple[str, ...] | None]:
    if isinstance(value, str):
        return np.zeros(rows, np.int32), (value,)
    return np.full(rows, value, np.int64), None
