"""How far measured kernels are from their rooflines, by operator and size.

What a device without fitted kernels is priced by is its roofline; this file says what that is
worth: quantiles of measured over roofline time on all measured systems, each system with the same
number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from moesim.calibrate.fit_file import with_version
from moesim.calibrate.fit_moe import MoeOperator
from moesim.calibrate.frame import Frame
from moesim.calibrate.hygiene import clean
from moesim.calibrate.intervals import LEVEL
from moesim.calibrate.operators import read_operator
from moesim.calibrate.registry import calibrated_operator
from moesim.calibrate.tables import open_catalogue
from moesim.errors import InputError
from moesim.forward.work import AttentionWork
from moesim.hardware import Device, load_device
from moesim.operators.collectives import COLLECTIVES, wire_bytes
from moesim.operators.deepep import vector_bytes
from moesim.operators.gemm import FORMATS, gemm_bytes, gemm_flops
from moesim.operators.moe_transfer import PROFILES
from moesim.operators.roofline_errors import SIZES_S, RooflineErrors

__all__ = ["attention_work", "fit_roofline_errors"]

ROWS_PER_SYSTEM = 4000
"""Of one operator; quantiles of more rows change by less than their spread between systems."""

LEAST_ROWS = 30
"""Of a size, for quantiles of its own."""

Ratios = Iterator[tuple[np.ndarray, np.ndarray]]
"""Roofline seconds and measured seconds of some rows."""


def fit_roofline_errors(
    source: str, systems: list[str] | None, *, date: str, command: str
) -> RooflineErrors:
    """Quantiles of measured over roofline time.

    Args:
        source: Package or folder of measured tables.
        systems: Only these, if given.
        date: As given by the caller.
        command: That repeats it.
    """
    parts: dict[str, Callable[[str, list[str] | None], Ratios]] = {
        "experts": _experts,
        "gemm": _gemm,
        "attention": _attention,
        "collective": _collective,
        "dispatch": _dispatch,
        "small": _small,
    }
    rows, shortest, intervals = {}, {}, {}
    for operator, read in parts.items():
        found = list(read(source, systems))
        roof, measured = (np.concatenate(column) for column in zip(*found, strict=True))
        good = (roof > 0) & np.isfinite(measured)
        roof, measured = roof[good], measured[good]
        rows[operator] = len(roof)
        size = np.searchsorted(SIZES_S, roof, side="left")
        shortest[operator] = _ends(measured[size == size.min()])
        intervals[operator] = _quantiles(roof, measured)
    return RooflineErrors(
        source=with_version(source),
        date=date,
        command=command,
        rows=rows,
        shortest_s=shortest,
        intervals=intervals,
    )


def _quantiles(roof: np.ndarray, measured: np.ndarray) -> tuple[tuple[float, float], ...]:
    """Of every size of the roofline but the shortest; one with few rows takes the next larger."""
    size = np.searchsorted(SIZES_S, roof, side="left")
    found: list[tuple[float, float]] = []
    for number in range(len(SIZES_S), 0, -1):
        own = size == number
        if own.sum() < LEAST_ROWS and found:
            found.insert(0, found[0])
            continue
        chosen = own if own.sum() >= LEAST_ROWS else size >= min(number, size.max())
        found.insert(0, _ends(measured[chosen] / roof[chosen]))
    return tuple(found)


def _ends(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return low, high


def _by_system(frame: Frame, seed: int = 0) -> Iterator[tuple[Device, Frame]]:
    for code, system in enumerate(frame.labels["system"]):
        rows = np.flatnonzero(frame["system"] == code)
        if len(rows) > ROWS_PER_SYSTEM:
            rows = np.random.default_rng(seed).choice(rows, ROWS_PER_SYSTEM, replace=False)
        if len(rows):
            yield load_device(PROFILES.get(system, system)), frame.take(rows)


def _experts(source: str, systems: list[str] | None) -> Ratios:
    table = MoeOperator().load(source, systems)
    s, d = table.shapes, table.device
    weights = (s.input_matrices + 1) * s.hidden * s.width
    moved = s.active * weights * s.weight_bytes
    moved = moved + s.copies * ((s.hidden + 2 * s.width) * s.activation_bytes + 2 * s.hidden)
    roof = np.maximum(moved / d.memory_bytes_per_s, 2 * s.copies * weights / d.peak_flop_per_s)
    for code in range(len(table.frame.labels["system"])):
        rows = np.flatnonzero(table.frame["system"] == code)
        rows = np.random.default_rng(0).permutation(rows)[:ROWS_PER_SYSTEM]
        yield roof[rows], table.frame["latency_s"][rows]


def _gemm(source: str, systems: list[str] | None) -> Ratios:
    for device, frame in _by_system(calibrated_operator("gemm").load(source, systems).frame):
        for dtype in frame.labels["dtype"]:
            rows = frame.is_label("dtype", dtype)
            number = FORMATS.get(dtype)
            if number is None or number.arithmetic not in device.peak or not rows.any():
                continue
            m, n, k = (frame[name][rows] for name in "mnk")
            roof = np.maximum(
                gemm_bytes(m, n, k, number) / device.memory_bytes_per_s,
                gemm_flops(m, n, k) / device.peak_flop_per_s(number.arithmetic),
            )
            yield roof, frame["latency_s"][rows]


def _attention(source: str, systems: list[str] | None) -> Ratios:
    for phase in ("context_attention", "generation_attention"):
        table = calibrated_operator(phase).load(source, systems)
        for device, frame in _by_system(table.frame):
            yield _attention_roof(device, frame), frame["latency_s"]


def attention_work(frame: Frame) -> list[AttentionWork]:
    """The work of every row of an attention frame, ``[rows]``."""
    numbers = [
        frame[name].tolist()
        for name in (
            *("batch", "query_tokens", "past_tokens", "heads", "kv_heads", "head_dim"),
            "window_tokens",
        )
    ]
    formats = zip(frame.text("dtype"), frame.text("kv_dtype"), strict=True)
    return [
        AttentionWork(
            phase="prefill" if query > 1 else "decode",
            sequences=batch,
            query_tokens=query,
            past_tokens=past,
            heads=heads,
            kv_heads=kv_heads,
            key_dim=dim,
            value_dim=dim,
            cache_elements=2 * dim,
            dtype=dtype,
            kv_dtype=kv_dtype,
            window_tokens=max(window, 0),
        )
        for (batch, query, past, heads, kv_heads, dim, window), (dtype, kv_dtype) in zip(
            zip(*numbers, strict=True), formats, strict=True
        )
    ]


def _attention_roof(device: Device, frame: Frame) -> np.ndarray:
    return np.array(
        [
            max(
                work.bytes / device.memory_bytes_per_s,
                work.flops / device.peak_flop_per_s(work.arithmetic),
            )
            for work in attention_work(frame)
        ]
    )


def _collective(source: str, systems: list[str] | None) -> Ratios:
    for name in ("collective", "custom_allreduce"):
        table = calibrated_operator(name).load(source, systems)
        for device, frame in _by_system(table.frame):
            link = device.scale_up or device.host_link
            if link is None:
                continue
            kinds = (
                frame.text("collective")
                if "collective" in frame.labels
                else np.full(len(frame), "all_reduce", object)
            )
            latency = link.latency.si if link.latency is not None else 0.0
            ranks = frame["devices"]
            domain = device.scale_up.domain_devices if device.scale_up else 8
            for kind in COLLECTIVES:
                rows = (kinds == kind) & (ranks <= domain)
                sent = wire_bytes(kind, frame["message_bytes"][rows], ranks[rows])
                yield sent / link.bandwidth.si + latency, frame["latency_s"][rows]


def _dispatch(source: str, systems: list[str] | None) -> Ratios:
    for name in ("deepep_low_latency", "deepep_normal"):
        table = calibrated_operator(name).load(source, systems)
        for device, frame in _by_system(table.frame):
            if device.scale_up is None or device.nic is None:
                raise InputError("measured all-to-alls need links", found=device.name)
            phases = frame.text("phase")
            nodes, per_node = frame["nodes"], device.scale_up.domain_devices
            size = np.where(
                phases == "dispatch",
                vector_bytes("dispatch", frame["hidden"]),
                vector_bytes("combine", frame["hidden"]),
            )
            ranks = nodes * per_node
            copies = frame["tokens"] * frame["top_k"] * size
            near = copies * (per_node - 1) / ranks / device.scale_up.bandwidth.si
            far = copies * (1 - per_node / ranks) / device.nic.bandwidth.si
            latency = np.where(nodes > 1, device.nic.latency.si, device.scale_up.latency.si)
            yield np.maximum(near, far) + latency, frame["latency_s"]


def _small(source: str, systems: list[str] | None) -> Ratios:
    """Conversion to FP8, the element-by-element kernel that was measured: 2 bytes in, 1 out."""
    frame, _ = clean(read_operator(open_catalogue(source), "scale_matrix", systems=systems))
    for device, rows in _by_system(frame):
        moved = rows["m"] * rows["k"] * 3.0
        yield moved / device.memory_bytes_per_s, rows["latency_s"]
