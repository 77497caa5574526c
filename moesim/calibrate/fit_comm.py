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
from moesim.calibrate.measured_rows import kernel_groups, kernel_name, predicted_by_nearest
from moesim.calibrate.operators import OPERATORS, read_operator
from moesim.calibrate.robust_fit import Coefficient, fit_log
from moesim.calibrate.tables import open_catalogue
from moesim.operators.collectives import Collective, CollectiveCoefficients, collective_s
from moesim.operators.comm_fits import (
    DEFAULT_SMS,
    CollectiveFit,
    DeepEpFit,
    NvlinkAllToAllFit,
    link_rate,
    ranks_per_node,
)
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
from moesim.operators.systems import device_of

__all__ = ["COMM", "COMM_OPERATORS", "CommOperator", "CommTable"]

DEFAULT_DEVICE_SMS = 132
MESSAGE_BYTES = (64 * 2**10, 8 * 2**20)
"""Bounds of the regimes of messages: latency-bound, in between, bandwidth-bound."""
TOKENS = (16, 512)
"""The same for tokens of a rank."""
MODES = {"deepep_normal": "normal", "deepep_low_latency": "low_latency", "moe_all_to_all": "both"}
"""DeepEP's two kinds of kernels, by operator."""
LOW_LATENCY_BACKENDS = ("deepep_ll", "trtllm_deepep_ll", "deepep_v2_generation")


@dataclass(frozen=True)
class CommTable:
    """Rows after hygiene, and what it dropped."""

    frame: Frame
    report: HygieneReport


FitGroup = Callable[[Frame], Any]
PredictGroup = Callable[[Any, Frame], np.ndarray]


@dataclass(frozen=True)
class CommOperator:
    """One operator of the measured tables.

    Attributes:
        name: Of the measured operator, as in ``OPERATORS``.
        kind: Document of its fits.
        group: Columns that tell coefficients apart.
        family: Columns that regimes of error are told apart by, beside the size.
        fit_group: Coefficients of the rows of one group, ``None`` if they are too few.
        predict_group: Seconds of rows of that group.
    """

    name: str
    kind: type[CollectiveFit | DeepEpFit | NvlinkAllToAllFit]
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
        return CommTable(_labelled(kept), report)

    def shape_key(self, table: CommTable) -> np.ndarray:
        """Codes of what leave-shape-out holds out together, ``[rows] int64``."""
        return table.frame.groups(OPERATORS[self.name].shape)

    def held_out_key(self, table: CommTable) -> np.ndarray:
        """Codes of what intervals are to hold for, ``[rows] int64``: shapes, or sizes of one."""
        shapes = self.shape_key(table)
        sizes = self.kind is CollectiveFit or not shapes.any()
        return self.series_key(table) if sizes else shapes

    def series_key(self, table: CommTable) -> np.ndarray:
        """Codes of message sizes or tokens, ``[rows] int64``, ascending."""
        return table.frame.groups((OPERATORS[self.name].series,))

    def fit(self, table: CommTable, rows: np.ndarray | None = None) -> dict[str, Any]:
        """Fits by group, from the rows of a mask (all if none is given)."""
        frame = table.frame
        used = np.ones(len(frame), bool) if rows is None else rows
        fitted = {}
        for label, members in kernel_groups(frame, self.group, used, 1):
            found = self.fit_group(frame.take(members))
            if found is not None:
                fitted[kernel_name(label)] = self.kind.model_validate(
                    {name: str(value) for name, value in label.items()}
                    | {"coefficients": found, "on_bounds": found.on_bounds, "rows": len(members)}
                    | {"link_bytes_per_s": link_rate(device_of(str(label["system"])))}
                )
        return fitted

    def predict(self, table: CommTable, coefficients: Mapping[str, Any]) -> np.ndarray:
        """Seconds of every row by its group's fit, or by the nearest where it has none."""
        frame = table.frame

        def seconds(fit: Any, rows: np.ndarray) -> np.ndarray:
            return self.predict_group(fit.coefficients, frame.take(rows))

        return predicted_by_nearest(frame, coefficients.values(), self.group, seconds)

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


def _labelled(frame: Frame) -> Frame:
    """The frame with the labels of its fits that the tables do not spell out.

    ``spread`` says whether the ranks sit in one node or in several: custom all-reduce kernels work
    within a node; across nodes of an NVL72 the engines use others.
    """
    columns, labels = dict(frame.columns), dict(frame.labels)
    if "devices" in columns:
        per_node = np.array([ranks_per_node(system) for system in frame.labels["system"]])
        columns["spread"] = (frame["devices"] > per_node[frame["system"]]).astype(np.int32)
        labels["spread"] = ("node", "nodes")
    if frame.operator == "custom_allreduce":
        columns["collective"] = np.zeros(len(frame), np.int32)
        labels["collective"] = ("all_reduce",)
    if frame.operator in MODES:
        mode = np.full(len(frame), MODES[frame.operator] == "low_latency")
        if frame.operator == "moe_all_to_all":
            mode = frame.is_label("backend", *LOW_LATENCY_BACKENDS)
        columns["mode"] = mode.astype(np.int32)
        labels["mode"] = ("normal", "low_latency")
    if "stage" in labels:
        labels["stage"] = tuple(name.removeprefix("alltoall_") for name in labels["stage"])
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
        per_node = [ranks_per_node(system) for system in frame.labels["system"]]
        columns["ranks"] = columns["nodes"] * np.array(per_node, float)[frame["system"]]
    if "sms" in columns:
        columns["sms"] = np.where(columns["sms"] > 0, columns["sms"], DEFAULT_SMS)
    return columns


def _phase(frame: Frame) -> Phase:
    return cast("Phase", frame.describe(0)["phase"])


def _fit_low_latency(frame: Frame) -> LowLatencyCoefficients:
    cores = device_of(str(frame.describe(0)["system"])).cores
    sms = DEFAULT_DEVICE_SMS if cores is None else int(cores.value)
    return fit_low_latency(_phase(frame), _deepep_columns(frame), frame["latency_s"], sms)


def _predict_low_latency(document: LowLatencyCoefficients, frame: Frame) -> np.ndarray:
    return low_latency_s(document, **_deepep_columns(frame))


def _fit_normal(frame: Frame) -> NormalCoefficients:
    return fit_normal(_phase(frame), _deepep_columns(frame, "sms"), frame["latency_s"])


def _predict_normal(document: NormalCoefficients, frame: Frame) -> np.ndarray:
    return normal_s(document, **_deepep_columns(frame, "sms"))


def _fit_either(frame: Frame) -> LowLatencyCoefficients | NormalCoefficients:
    low_latency = frame.describe(0)["mode"] == "low_latency"
    return _fit_low_latency(frame) if low_latency else _fit_normal(frame)


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
    stage = cast("Stage", frame.describe(0)["stage"])
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
        "collective",
        CollectiveFit,
        (*_TABLE, "kernel", "dtype", "spread", "collective"),
        (),
        *_COLLECTIVE,
    ),
    CommOperator(
        "custom_allreduce",
        CollectiveFit,
        (*_TABLE, "kernel", "dtype", "spread", "collective"),
        (),
        *_COLLECTIVE,
    ),
    CommOperator(
        "deepep_normal",
        DeepEpFit,
        (*_TABLE, "kernel", "mode", "phase"),
        ("phase",),
        *_NORMAL,
    ),
    CommOperator(
        "deepep_low_latency",
        DeepEpFit,
        (*_TABLE, "kernel", "mode", "phase"),
        ("phase",),
        *_LOW_LATENCY,
    ),
    CommOperator(
        "moe_all_to_all",
        DeepEpFit,
        (*_TABLE, "kernel", "mode", "backend", "dtype", "phase"),
        ("backend", "phase"),
        _fit_either,
        _predict_either,
    ),
    CommOperator(
        "trtllm_alltoall",
        NvlinkAllToAllFit,
        (*_TABLE, "kernel", "dtype", "stage"),
        (),
        _fit_nvlink,
        _predict_nvlink,
    ),
)
COMM_OPERATORS: Mapping[str, CommOperator] = {operator.name: operator for operator in COMM}
"""Every communication operator, by name."""
