"""Communication operators: reading their measured tables, fitting, predicting.

Each operator follows the protocol of calibrated operators: ``load``, ``shape_key``, ``fit``,
``predict`` and ``regimes``. A table's rows fall into groups (system, engine, version, kernel,
type, direction …) of which each has coefficients of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from moesim.calibrate.fit_collectives import fit_collective
from moesim.calibrate.fit_deepep import fit_low_latency, fit_normal
from moesim.calibrate.frame import Frame, dense_groups
from moesim.calibrate.hygiene import HygieneReport, clean
from moesim.calibrate.operators import OPERATORS, read_operator
from moesim.calibrate.robust_fit import Coefficient, fit_log
from moesim.calibrate.tables import open_catalogue
from moesim.hardware import load_device
from moesim.operators.collectives import Collective, CollectiveCoefficients, collective_s
from moesim.operators.deepep import (
    LowLatencyCoefficients,
    NormalCoefficients,
    Phase,
    low_latency_s,
    normal_s,
)
from moesim.operators.nvlink_alltoall import (
    NvlinkAllToAllCoefficients,
    Stage,
    balanced_ranks,
    nvlink_alltoall_s,
)
from moesim.schema import Document

__all__ = ["COMM", "COMM_OPERATORS", "CommOperator", "CommTable"]

RANKS_PER_NODE = {"gb200": 4, "gb300": 4}
"""GPUs of a node where they are not 8 (aiconfigurator-core 0.12, systems/gb200.yaml)."""
DEFAULT_SMS = 20
"""SMs of a normal kernel where a table does not name them (DeepEP, Buffer.num_sms)."""
DEFAULT_DEVICE_SMS = 132
MESSAGE_BYTES = (64 * 2**10, 8 * 2**20)
"""Bounds of the regimes of messages: latency-bound, in between, bandwidth-bound."""
TOKENS = (16, 512)
"""The same for tokens of a rank."""


@dataclass(frozen=True)
class CommTable:
    """Rows after hygiene, and what it dropped."""

    frame: Frame
    report: HygieneReport


FitGroup = Callable[[Frame], Document | None]
PredictGroup = Callable[[Any, Frame], np.ndarray]


@dataclass(frozen=True)
class CommOperator:
    """One operator of the measured tables.

    Attributes:
        name: Of the measured operator, as in ``OPERATORS``.
        group: Columns that tell coefficients apart.
        family: Columns that regimes of error are told apart by, beside the size.
        fit_group: Coefficients of the rows of one group, ``None`` if they are too few.
        predict_group: Seconds of rows of that group.
    """

    name: str
    group: tuple[str, ...]
    family: tuple[str, ...]
    fit_group: FitGroup
    predict_group: PredictGroup

    def load(
        self,
        source: str | Path = "aiconfigurator",
        systems: Iterable[str] | None = None,
        versions: str | Iterable[str] = "newest",
        engines: Iterable[str] | None = None,
    ) -> CommTable:
        """Read and clean the tables; see ``read_operator``."""
        catalogue = open_catalogue(source)
        frame = read_operator(
            catalogue, self.name, systems=systems, engines=engines, versions=versions
        )
        kept, report = clean(frame)
        return CommTable(_with_spread(kept) if "devices" in kept.columns else kept, report)

    def shape_key(self, table: CommTable) -> np.ndarray:
        """Codes of what leave-shape-out holds out together, ``[rows] int64``."""
        return table.frame.groups(OPERATORS[self.name].shape)

    def series_key(self, table: CommTable) -> np.ndarray:
        """Codes of message sizes or tokens, ``[rows] int64``, ascending."""
        return table.frame.groups((OPERATORS[self.name].series,))

    def fit(self, table: CommTable, rows: np.ndarray | None = None) -> dict[str, Document]:
        """Coefficients by group, fitted on the rows of a mask (all if none is given)."""
        frame = table.frame
        used = np.ones(len(frame), bool) if rows is None else rows
        fitted = {}
        for label, members in self._groups(frame):
            chosen = members & used
            document = self.fit_group(frame.take(chosen)) if chosen.any() else None
            if document is not None:
                fitted[label] = document
        return fitted

    def predict(self, table: CommTable, coefficients: Mapping[str, Document]) -> np.ndarray:
        """Seconds of every row, NaN where there are no coefficients."""
        frame = table.frame
        seconds = np.full(len(frame), np.nan)
        for label, members in self._groups(frame):
            if label in coefficients:
                seconds[members] = self.predict_group(coefficients[label], frame.take(members))
        return seconds

    def regimes(self, table: CommTable) -> dict[str, np.ndarray]:
        """Codes ``[rows] int64`` along which errors differ: family and size, then size alone."""
        frame = table.frame
        if "message_bytes" in frame.columns:
            size = np.searchsorted(MESSAGE_BYTES, frame["message_bytes"])
        else:
            size = np.searchsorted(TOKENS, frame["tokens"])
        whole = {"size": dense_groups([size], len(frame))}
        if not self.family:
            return whole
        columns = [frame[name] for name in self.family]
        finest = ",".join((*self.family, "size"))
        return {finest: dense_groups([*columns, size], len(frame))} | whole

    def _groups(self, frame: Frame) -> Iterable[tuple[str, np.ndarray]]:
        codes = frame.groups(self.group)
        for code in range(int(codes.max()) + 1 if len(frame) else 0):
            members = codes == code
            shown = frame.describe(int(np.argmax(members)))
            yield "/".join(str(shown[name]) for name in self.group), members


def _with_spread(frame: Frame) -> Frame:
    """The frame with a column ``spread``: whether the ranks sit in one node or in several.

    Custom all-reduce kernels work within a node; across nodes of an NVL72 the engines use others.
    """
    per_node = [RANKS_PER_NODE.get(system, 8) for system in frame.labels["system"]]
    across = frame["devices"] > np.array(per_node)[frame["system"]]
    columns = {**frame.columns, "spread": across.astype(np.int32)}
    labels = {**frame.labels, "spread": ("node", "nodes")}
    return Frame(frame.operator, columns, labels, frame.notes)


def _collective_of(frame: Frame) -> Collective:
    return cast("Collective", frame.describe(0).get("collective", "all_reduce"))


def _fit_collective(frame: Frame) -> CollectiveCoefficients | None:
    return fit_collective(
        _collective_of(frame), frame["message_bytes"], frame["devices"], frame["latency_s"]
    )


def _predict_collective(document: CollectiveCoefficients, frame: Frame) -> np.ndarray:
    return collective_s(document, frame["message_bytes"], frame["devices"])


def _deepep_columns(frame: Frame, *more: str) -> dict[str, Any]:
    names = ("tokens", "hidden", "top_k", "experts", "nodes", *more)
    columns = {name: frame[name].astype(float) for name in names}
    if "moe_ep" in frame.columns:
        columns["ranks"] = frame["moe_ep"].astype(float)
    else:
        per_node = [RANKS_PER_NODE.get(system, 8) for system in frame.labels["system"]]
        columns["ranks"] = columns["nodes"] * np.array(per_node, float)[frame["system"]]
    if "sms" in columns:
        columns["sms"] = np.where(columns["sms"] > 0, columns["sms"], DEFAULT_SMS)
    return columns


def _phase(frame: Frame) -> Phase:
    return cast("Phase", frame.describe(0)["phase"])


def _fit_low_latency(frame: Frame) -> LowLatencyCoefficients:
    cores = load_device(str(frame.describe(0)["system"])).cores
    sms = DEFAULT_DEVICE_SMS if cores is None else int(cores.value)
    return fit_low_latency(_phase(frame), _deepep_columns(frame), frame["latency_s"], sms)


def _predict_low_latency(document: LowLatencyCoefficients, frame: Frame) -> np.ndarray:
    return low_latency_s(document, **_deepep_columns(frame))


def _fit_normal(frame: Frame) -> NormalCoefficients:
    return fit_normal(_phase(frame), _deepep_columns(frame, "sms"), frame["latency_s"])


def _predict_normal(document: NormalCoefficients, frame: Frame) -> np.ndarray:
    return normal_s(document, **_deepep_columns(frame, "sms"))


LOW_LATENCY_BACKENDS = ("deepep_ll", "trtllm_deepep_ll", "deepep_v2_generation")


def _is_low_latency(frame: Frame) -> bool:
    return frame.describe(0)["backend"] in LOW_LATENCY_BACKENDS


def _fit_either(frame: Frame) -> Document:
    return _fit_low_latency(frame) if _is_low_latency(frame) else _fit_normal(frame)


def _predict_either(
    document: LowLatencyCoefficients | NormalCoefficients, frame: Frame
) -> np.ndarray:
    if isinstance(document, LowLatencyCoefficients):
        return _predict_low_latency(document, frame)
    return _predict_normal(document, frame)


NVLINK = (
    Coefficient("launch_s", 1e-5, 1e-6, 1e-3),
    Coefficient("doubling_s", 5e-7, 1e-9, 1e-4),
    Coefficient("token_s", 1e-8, 1e-11, 1e-6),
    Coefficient("copy_s", 2e-8, 1e-11, 1e-6),
    Coefficient("peer_copy_s", 3e-8, 1e-11, 1e-5),
    Coefficient("flow_overlap", 3.0, 1.0, 12.0),
    Coefficient("latency_overlap", 1.2, 0.8, 8.0),
)


def _fit_nvlink(frame: Frame) -> NvlinkAllToAllCoefficients:
    stage = cast("Stage", str(frame.describe(0)["stage"]).removeprefix("alltoall_"))
    ranks = frame["moe_ep"]
    reached = balanced_ranks(frame["top_k"], ranks)

    def seconds(values: Mapping[str, Any]) -> np.ndarray:
        document = NvlinkAllToAllCoefficients.model_construct(stage=stage, **values)
        return nvlink_alltoall_s(document, frame["tokens"], reached, ranks)

    fitted = fit_log(seconds, frame["latency_s"], NVLINK)
    return NvlinkAllToAllCoefficients(stage=stage, **fitted.values, on_bounds=fitted.at_bound)


def _predict_nvlink(document: NvlinkAllToAllCoefficients, frame: Frame) -> np.ndarray:
    reached = balanced_ranks(frame["top_k"], frame["moe_ep"])
    return nvlink_alltoall_s(document, frame["tokens"], reached, frame["moe_ep"])


_TABLE = ("system", "engine", "version")
_NORMAL, _LOW_LATENCY = (_fit_normal, _predict_normal), (_fit_low_latency, _predict_low_latency)
_COLLECTIVE = (_fit_collective, _predict_collective)

COMM = (
    CommOperator(
        "collective", (*_TABLE, "kernel", "dtype", "spread", "collective"), (), *_COLLECTIVE
    ),
    CommOperator("custom_allreduce", (*_TABLE, "kernel", "dtype", "spread"), (), *_COLLECTIVE),
    CommOperator("deepep_normal", (*_TABLE, "phase"), ("phase", "nodes"), *_NORMAL),
    CommOperator("deepep_low_latency", (*_TABLE, "phase"), ("phase", "nodes"), *_LOW_LATENCY),
    CommOperator(
        "moe_all_to_all",
        (*_TABLE, "backend", "dtype", "phase"),
        ("backend", "phase"),
        _fit_either,
        _predict_either,
    ),
    CommOperator(
        "trtllm_alltoall",
        (*_TABLE, "kernel", "dtype", "stage"),
        (),
        _fit_nvlink,
        _predict_nvlink,
    ),
)
COMM_OPERATORS: Mapping[str, CommOperator] = {operator.name: operator for operator in COMM}
"""Every communication operator, by name."""
