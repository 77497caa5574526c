"""Fitting watts of measured kernels to how busy arithmetic and memory were.

Few measured tables come with watts (in aiconfigurator-core 0.12.0 expert layers and attention of
one engine version on the B200). A row's FLOPs and bytes over its time give the shares of peak and
bandwidth; three coefficients and the power limit explain the watts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from moesim.calibrate.fit_file import with_version
from moesim.calibrate.fit_moe import MoeOperator
from moesim.calibrate.fit_roofline import attention_work
from moesim.calibrate.frame import Frame
from moesim.calibrate.intervals import LEVEL
from moesim.calibrate.registry import calibrated_operator
from moesim.calibrate.tables import open_catalogue
from moesim.errors import InputError
from moesim.extras import require
from moesim.operators.moe_transfer import PROFILES
from moesim.operators.power import FittedPower, PowerFit

__all__ = ["Watts", "fit_power", "fit_shares", "predicted_watts"]

ROWS = 6000
"""Drawn of each operator, so that no operator outweighs the others."""
FOLDS = 4
SOFT = 0.1
"""Log error beyond which a row's pull on the fit no longer grows."""
START = (0.3, 1.0, 0.5)
WITH_WATTS = ("moe", "context_attention", "generation_attention")


@dataclass(frozen=True)
class Watts:
    """Measured kernels; arrays ``[rows]``.

    Attributes:
        compute_busy: Share of the peak that the mathematics' FLOPs used.
        memory_busy: Share of the bandwidth that the least bytes used.
        power_w: Measured.
        limit_w: Power limit then.
        shape: Code of the model shape, held out together.
    """

    compute_busy: np.ndarray
    memory_busy: np.ndarray
    power_w: np.ndarray
    limit_w: np.ndarray
    shape: np.ndarray

    def take(self, rows: np.ndarray) -> Watts:
        """Some rows."""
        return Watts(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def predicted_watts(watts: Watts, shares: np.ndarray) -> np.ndarray:
    """``[rows]`` by idle, compute and memory share of the limit."""
    idle, compute, memory = shares
    drawn = idle + compute * watts.compute_busy + memory * watts.memory_busy
    return watts.limit_w * np.minimum(1.0, drawn)


def fit_shares(watts: Watts) -> np.ndarray:
    """Idle, compute and memory share by robust least squares of the log error."""
    require("scipy", "measured", "fitting")
    from scipy.optimize import least_squares

    def error(shares: np.ndarray) -> np.ndarray:
        return np.log(predicted_watts(watts, shares) / watts.power_w)

    found = least_squares(error, START, bounds=(1e-6, np.inf), loss="soft_l1", f_scale=SOFT)
    return np.asarray(found.x)


def fit_power(source: str, systems: list[str] | None, *, date: str, command: str) -> FittedPower:
    """Fit every system that has watts.

    Raises:
        InputError: If no table has any.
    """
    fits = []
    for system, engine, version in sorted(_with_watts(source, systems)):
        parts = list(_read(source, system, engine, version))
        if not parts:
            continue
        watts = Watts(
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in Watts.__dataclass_fields__
            )
        )
        idle, compute, memory = fit_shares(watts).tolist()
        ratio = watts.power_w / _held_out(watts)
        low, high = np.quantile(ratio, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
        fits.append(
            PowerFit(
                system=PROFILES.get(system, system),
                engine=engine,
                version=version,
                rows=len(watts.power_w),
                limit_w=float(np.median(watts.limit_w)),
                idle_share=idle,
                compute_share=compute,
                memory_share=memory,
                median_error=float(np.median(np.abs(1 / ratio - 1))),
                interval=(low, high),
            )
        )
    if not fits:
        raise InputError("no measured table has watts", found=source)
    return FittedPower(source=with_version(source), date=date, command=command, fits=tuple(fits))


def _held_out(watts: Watts) -> np.ndarray:
    """Watts of every row by a fit that had not seen its shape."""
    predicted = np.empty(len(watts.power_w))
    for fold in range(FOLDS):
        held = watts.shape % FOLDS == fold
        predicted[held] = predicted_watts(watts.take(held), fit_shares(watts.take(~held)))
    return predicted


def _with_watts(source: str, systems: list[str] | None) -> set[tuple[str, str, str]]:
    """System, engine and version of tables that have a column of watts."""
    require("pyarrow", "measured", "reading measured tables")
    import pyarrow.parquet

    return {
        (table.system, table.engine, table.version)
        for table in open_catalogue(source).tables
        if table.path is not None
        and table.operator in ("moe", "context_attention", "generation_attention")
        and (systems is None or table.system in systems)
        and "power" in pyarrow.parquet.ParquetFile(table.path).schema_arrow.names
    }


def _read(source: str, system: str, engine: str, version: str) -> Iterator[Watts]:
    for name in WITH_WATTS:
        operator = MoeOperator() if name == "moe" else calibrated_operator(name)
        try:
            table = operator.load(source, [system], [version], [engine])
        except InputError:
            continue
        frame = table.frame
        rows = np.flatnonzero(frame["power_w"] > 0)
        rows = np.random.default_rng(0).permutation(rows)[:ROWS]
        if len(rows):
            busy = _experts(table, rows) if name == "moe" else _attention(frame.take(rows))
            yield Watts(
                *busy,
                frame["power_w"][rows],
                frame["power_limit_w"][rows],
                operator.shape_key(table)[rows],
            )


def _experts(table: object, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares of peak and bandwidth of expert layers."""
    s, d = table.shapes.take(rows), table.device  # type: ignore[attr-defined]
    latency_s = table.frame["latency_s"][rows]  # type: ignore[attr-defined]
    weights = (s.input_matrices + 1) * s.hidden * s.width
    moved = s.active * weights * s.weight_bytes
    moved = moved + s.copies * ((s.hidden + 2 * s.width) * s.activation_bytes + 2 * s.hidden)
    computed = 2 * s.copies * weights / d.peak_flop_per_s[rows]
    return computed / latency_s, moved / d.memory_bytes_per_s[rows] / latency_s


def _attention(frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Shares of peak and bandwidth of attention calls, all of one system."""
    from moesim.hardware import load_device

    system = frame.labels["system"][int(frame["system"][0])]
    device = load_device(PROFILES.get(system, system))
    works = attention_work(frame)
    peaks = np.array([device.peak_flop_per_s(work.arithmetic) for work in works])
    computed = np.array([work.flops for work in works]) / peaks
    moved = np.array([work.bytes for work in works]) / device.memory_bytes_per_s
    return computed / frame["latency_s"], moved / frame["latency_s"]
