"""Communication operators: reading their measured tables, fitting, predicting.

Each operator follows the protocol of calibrated operators: ``load``, ``shape_key``, ``fit``,
``predict`` and ``regimes``. A table's rows fall into groups (system, engine, version, kernel,
type, direction …) of which each has coefficients of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moesim.calibrate.fit_collectives import fit_collective
from moesim.calibrate.fit_deepep import fit_low_latency, fit_normal
from moesim.calibrate.frame import Frame
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
    balanced_ranks,
    nvlink_alltoall_s,
)
from moesim.schema import Document

__all__ = ["COMM_OPERATORS", "CommOperator", "CommTable"]

RANKS_PER_NODE = {"gb200": 4, "gb300": 4}
"""GPUs of a node where they are not 8 (aiconfigurator-core 0.12, systems/gb200.yaml)."""
DEFAULT_SMS = 20
"""SMs of a normal kernel where a table does not name them (DeepEP, Buffer.num_sms)."""
DEFAULT_DEVICE_SMS = 132
SMALL_BYTES, LARGE_BYTES = 64 * 2**10, 8 * 2**20
"""Regimes of messages: latency-bound, in between, bandwidth-bound."""


@dataclass(frozen=True)
class CommTable:
    """Rows after hygiene, and what it dropped."""

    frame: Frame
    report: HygieneReport


FitGroup = Callable[[Frame], Document | None]
PredictGroup = Callable[[Document, Frame], np.ndarray]


@dataclass(frozen=True)
class CommOperator:
    """One operator of the measured tables.

    Attributes:
        name: Of the measured operator, as in ``OPERATORS``.
        group: Columns that tell coefficients apart.
        fit_group: Coefficients of the rows of one group, ``None`` if they are too few.
        predict_group: Seconds of rows of that group.
    """

    name: str
    group: tuple[str, ...]
    fit_group: FitGroup
    predict_group: PredictGroup

    def load(
        self,
        source: str | Path = "aiconfigurator",
        systems: Iterable[str] | None = None,
        versions: str | Iterable[str] = "newest",
    ) -> CommTable:
        """Read and clean the tables; see ``read_operator``."""
        frame = read_operator(
            open_catalogue(source), self.name, systems=systems, versions=versions
        )
        return CommTable(*clean(frame))

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
        """Rows of each regime of size, ``[rows] bool`` by label."""
        frame = table.frame
        if "message_bytes" in frame.columns:
            size = frame["message_bytes"]
            bounds, words = (SMALL_BYTES, LARGE_BYTES), ("<=64KiB", "<=8MiB", ">8MiB")
        else:
            size, bounds, words = frame["tokens"], (16, 512), ("tokens<=16", "<=512", ">512")
        place = np.searchsorted(bounds, size)
        found = {word: place == index for index, word in enumerate(words)}
        return {word: mask for word, mask in found.items() if mask.any()}

    def _groups(self, frame: Frame) -> Iterable[tuple[str, np.ndarray]]:
        codes = frame.groups(self.group)
        for code in range(int(codes.max()) + 1 if len(frame) else 0):
            members = codes == code
            shown = frame.describe(int(np.argmax(members)))
            yield "/".join(str(shown[name]) for name in self.group), members


def _collective_of(frame: Frame) -> Collective:
    found = frame.describe(0).get("collective", "all_reduce")
    return found  # type: ignore[return-value]


def _fit_collective(frame: Frame) -> CollectiveCoefficients | None:
    return fit_collective(
        _collective_of(frame), frame["message_bytes"], frame["devices"], frame["latency_s"]
    )


def _predict_collective(document: Document, frame: Frame) -> np.ndarray:
    assert isinstance(document, CollectiveCoefficients)  # noqa: S101 - for the type checker
    return collective_s(document, frame["message_bytes"], frame["devices"])


def _deepep_columns(frame: Frame, *more: str) -> dict[str, np.ndarray]:
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
    return str(frame.describe(0)["phase"])  # type: ignore[return-value]


def _fit_low_latency(frame: Frame) -> LowLatencyCoefficients:
    cores = load_device(str(frame.describe(0)["system"])).cores
    sms = DEFAULT_DEVICE_SMS if cores is None else int(cores.value)
    return fit_low_latency(_phase(frame), _deepep_columns(frame), frame["latency_s"], sms)


def _predict_low_latency(document: Document, frame: Frame) -> np.ndarray:
    assert isinstance(document, LowLatencyCoefficients)  # noqa: S101 - for the type checker
    return low_latency_s(document, **_deepep_columns(frame))


def _fit_normal(frame: Frame) -> NormalCoefficients:
    return fit_normal(_phase(frame), _deepep_columns(frame, "sms"), frame["latency_s"])


def _predict_normal(document: Document, frame: Frame) -> np.ndarray:
    assert isinstance(document, NormalCoefficients)  # noqa: S101 - for the type checker
    return normal_s(document, **_deepep_columns(frame, "sms"))


LOW_LATENCY_BACKENDS = ("deepep_ll", "trtllm_deepep_ll", "deepep_v2_generation")


def _is_low_latency(frame: Frame) -> bool:
    return frame.describe(0)["backend"] in LOW_LATENCY_BACKENDS


def _fit_either(frame: Frame) -> Document:
    return _fit_low_latency(frame) if _is_low_latency(frame) else _fit_normal(frame)


def _predict_either(document: Document, frame: Frame) -> np.ndarray:
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
    stage = str(frame.describe(0)["stage"]).removeprefix("alltoall_")
    ranks = frame["moe_ep"]
    reached = balanced_ranks(frame["top_k"], ranks)

    def seconds(values: Mapping[str, float]) -> np.ndarray:
        document = NvlinkAllToAllCoefficients.model_construct(stage=stage, **values)  # type: ignore[arg-type]
        return nvlink_alltoall_s(document, frame["tokens"], reached, ranks)

    fitted = fit_log(seconds, frame["latency_s"], NVLINK)
    return NvlinkAllToAllCoefficients(stage=stage, **fitted.values, on_bounds=fitted.at_bound)  # type: ignore[arg-type]


def _predict_nvlink(document: Document, frame: Frame) -> np.ndarray:
    assert isinstance(document, NvlinkAllToAllCoefficients)  # noqa: S101 - for the type checker
    reached = balanced_ranks(frame["top_k"], frame["moe_ep"])
    return nvlink_alltoall_s(document, frame["tokens"], reached, frame["moe_ep"])


_TABLE = ("system", "engine", "version")
COMM_OPERATORS: Mapping[str, CommOperator] = {
    operator.name: operator
    for operator in (
        CommOperator(
            "collective",
            (*_TABLE, "kernel", "dtype", "collective"),
            _fit_collective,
            _predict_collective,
        ),
        CommOperator(
            "custom_allreduce", (*_TABLE, "kernel", "dtype"), _fit_collective, _predict_collective
        ),
        CommOperator("deepep_normal", (*_TABLE, "phase"), _fit_normal, _predict_normal),
        CommOperator(
            "deepep_low_latency", (*_TABLE, "phase"), _fit_low_latency, _predict_low_latency
        ),
        CommOperator(
            "moe_all_to_all", (*_TABLE, "backend", "dtype", "phase"), _fit_either, _predict_either
        ),
        CommOperator(
            "trtllm_alltoall", (*_TABLE, "kernel", "dtype", "stage"), _fit_nvlink, _predict_nvlink
        ),
    )
}
"""Every communication operator, by name."""
