"""Fitting the fused expert layer's coefficients to measured rows.

One document per system, engine, version, kernel and type. Where a fit has no rows of its own (a
system, version or shape was held out), the coefficients come from the nearest kernels that have:
efficiencies are shares of each device's specification, so they carry over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from moesim.calibrate.frame import Frame
from moesim.calibrate.hygiene import HygieneReport, clean
from moesim.calibrate.metrics import LARGE, SMALL
from moesim.calibrate.moe_load import moe_loads
from moesim.calibrate.moe_residual import CorrectedMoe, learn_residual
from moesim.calibrate.operators import read_operator
from moesim.calibrate.tables import open_catalogue
from moesim.errors import InputError
from moesim.extras import require
from moesim.hardware import Device, load_device
from moesim.operators.moe import TILES, MoeCoefficients, MoeDevice, MoeShapes, moe_time_s
from moesim.operators.moe_fits import MoeFit
from moesim.operators.moe_kernels import (
    ACTIVATION_BYTES,
    ARITHMETIC,
    cache_bytes,
    family,
    tile_choice,
    weight_bytes,
)

__all__ = ["GROUP", "MoeOperator", "MoeTable", "fit_coefficients", "moe_table"]

GROUP = ("system", "engine", "version", "kernel", "dtype")
"""What has coefficients of its own."""

ENGINES = ("sglang", "trtllm", "vllm")
FIT_ROWS = 2000
"""Rows drawn for one fit; 20 coefficients need no more, and twice as many change errors by less
than 0.1 points."""
RESIDUAL_ROWS = 8000
"""Rows drawn for one residual."""
MIN_ROWS = 30
"""A fit with fewer rows of its own takes the nearest kernels' coefficients instead."""
EVALUATIONS = 10
"""Steps of the fit; more follow the rows drawn too closely and predict others no better."""
SOFT = 0.15
"""Log error beyond which a row's pull on the fit no longer grows."""
SHRINKAGE = 0.02
"""Weight of one prior standard deviation against the mean loss of the rows."""

PROFILES = {"b60": "arc_b60"}
"""Device profile of a measured system, where the names differ."""

ARCHITECTURE = {"a100_sxm": "ampere", "l40s": "ada", "h100_sxm": "hopper", "h200_sxm": "hopper"}
ARCHITECTURE |= dict.fromkeys(("b200_sxm", "b300_sxm", "gb200", "gb300"), "blackwell")
ARCHITECTURE |= {"rtx_pro_6000_server": "blackwell-workstation", "b60": "xe2"}

PRIOR = {
    "launch_s": (25e-6, 0.7),
    "active_expert_s": (0.1e-6, 1.5),
    "local_expert_s": (0.01e-6, 1.5),
    "copy_s": (0.5e-9, 1.5),
    "group_copy_s": (0.5e-9, 1.5),
    "weight_bandwidth_share": (0.8, 0.4),
    "activation_bandwidth_share": (0.5, 0.7),
    "group_bandwidth_share": (2.0, 1.0),
    "tile_rows": (40.0, 0.7),
    "row_cost": (1.3, 0.4),
    "overlap_exponent": (2.0, 0.5),
    "k_step_s": (3e-9, 1.0),
    "wave_weight": (1.0, 1.0),
    "k_prologue": (200.0, 1.0),
    "k_prologue_memory": (100.0, 1.0),
    "small_bandwidth": (1.0, 0.3),
    "large_bandwidth": (0.8, 0.3),
    "small_cost": (1.0, 0.5),
    "large_cost": (1.5, 0.5),
    "cache_penalty": (0.2, 1.0),
}
"""Centre and standard deviation (of the logarithm) that each coefficient is drawn towards."""
REACH = 5.0
"""Standard deviations from the centre at which a coefficient is bounded."""


@dataclass(frozen=True)
class MoeTable:
    """Measured rows, and what the physics needs of each.

    Attributes:
        frame: The rows after hygiene.
        report: What hygiene dropped.
        shapes: Of every row.
        device: Of every row, arrays ``[rows]``.
        group: Which of ``GROUP`` each row is of, ``[rows] int64``.
    """

    frame: Frame
    report: HygieneReport | None
    shapes: MoeShapes
    device: MoeDevice
    group: np.ndarray

    def name(self, group: int) -> tuple[str, ...]:
        """System, engine, version, kernel and type of a group."""
        row = int(np.argmax(self.group == group))
        return tuple(self.frame.labels[column][self.frame[column][row]] for column in GROUP)


class MoeOperator:
    """The fused expert layer, as :class:`~moesim.calibrate.operator.CalibratedOperator`."""

    name = "moe"
    has_residual = True

    def __init__(self, *, residual: bool = False) -> None:
        """With ``residual``, trees correct the physics of every group that has own rows."""
        self._residual = residual
        self._known: dict[str, tuple[MoeCoefficients, tuple[str, ...]]] = {}
        self._corrected: dict[str, CorrectedMoe] = {}

    def load(
        self,
        source: str,
        systems: list[str] | None,
        versions: str | list[str] = "newest",
        engines: list[str] | None = None,
    ) -> MoeTable:
        """Rows of the newest (or given) tables after hygiene, with its report."""
        catalogue = open_catalogue(source)
        frame = read_operator(catalogue, "moe", systems=systems, engines=engines, versions=versions)
        kept, report = clean(frame)
        return moe_table(kept, report)

    def shape_key(self, table: MoeTable) -> np.ndarray:
        """Codes that leave-shape-out holds out together."""
        return table.frame.groups(("hidden", "inter", "top_k", "experts"))

    def fit(self, table: MoeTable, rows: np.ndarray) -> Mapping[str, MoeFit | CorrectedMoe]:
        """Coefficients of every group in the table, from the rows of a mask only."""
        groups = int(table.group.max()) + 1 if len(table.group) else 0
        names = [table.name(group) for group in range(groups)]
        own = np.bincount(table.group[rows], minlength=groups)
        fits: dict[str, MoeFit | CorrectedMoe] = {}
        for group, name in enumerate(names):
            donors = [group]
            if own[group] < MIN_ROWS:
                donors = _donors(group, names, own) or donors
            chosen = np.flatnonzero(rows & np.isin(table.group, donors))
            if not len(chosen):
                continue
            coefficients, bounds = self._fit(table, chosen)
            others = () if donors == [group] else tuple("/".join(names[d]) for d in donors)
            found = MoeFit(
                **dict(zip(GROUP, name, strict=True)),
                rows=len(chosen),
                borrowed_from=others,
                on_bounds=bounds,
                coefficients=coefficients,
            )
            corrected = self._residual and not others
            fits["/".join(name)] = self._correct(found, table, chosen) if corrected else found
        return fits

    def predict(
        self, table: MoeTable, coefficients: Mapping[str, MoeFit | CorrectedMoe]
    ) -> np.ndarray:
        """Seconds, ``[rows]``; NaN where a group has no coefficients."""
        seconds = np.full(len(table.group), np.nan)
        for group in range(int(table.group.max()) + 1 if len(table.group) else 0):
            found = coefficients.get("/".join(table.name(group)))
            if found is not None:
                chosen = np.flatnonzero(table.group == group)
                layers = table.shapes.take(chosen), _take(table.device, chosen)
                if isinstance(found, CorrectedMoe):
                    seconds[chosen] = found.time_s(*layers)
                else:
                    seconds[chosen] = moe_time_s(*layers, found.coefficients)
        return seconds

    def regimes(self, table: MoeTable) -> dict[str, np.ndarray]:
        """Codes along which errors differ, finest first: intervals are taken per regime."""
        tokens = np.searchsorted([SMALL, LARGE], table.frame["tokens"], side="left")
        kernel = table.frame.groups(("kernel", "dtype"))
        return {"kernel and tokens": kernel * 3 + tokens, "tokens": tokens}

    def _fit(self, table: MoeTable, rows: np.ndarray) -> tuple[MoeCoefficients, tuple[str, ...]]:
        """One fit; the same rows are not fitted twice."""
        rows = rows[_draw(len(rows), FIT_ROWS)]
        seen = hashlib.sha256(rows.tobytes()).hexdigest()
        if seen not in self._known:
            self._known[seen] = fit_coefficients(
                table.shapes.take(rows),
                _take(table.device, rows),
                table.frame["latency_s"][rows],
            )
        return self._known[seen]

    def _correct(self, fit: MoeFit, table: MoeTable, rows: np.ndarray) -> CorrectedMoe:
        """The fit with its residual; the same rows do not teach twice."""
        rows = rows[_draw(len(rows), RESIDUAL_ROWS)]
        seen = hashlib.sha256(rows.tobytes()).hexdigest()
        if seen not in self._corrected:
            self._corrected[seen] = learn_residual(
                fit,
                table.shapes.take(rows),
                _take(table.device, rows),
                table.frame["latency_s"][rows],
            )
        return self._corrected[seen]


def moe_table(frame: Frame, report: HygieneReport | None = None) -> MoeTable:
    """What the physics needs of the rows of a ``moe`` frame."""
    frame = frame.take(frame.is_label("engine", *ENGINES))
    group = frame.groups(GROUP)
    rows = len(frame)
    loads = moe_loads(frame)
    columns = {name: frame[name].astype(float) for name in ("hidden", "tokens", "top_k")}
    width = frame["inter"] / frame["moe_tp"]
    local = frame["experts"] / frame["moe_ep"]
    shapes: dict[str, Any] = {
        "hidden": columns["hidden"],
        "width": width,
        "input_matrices": np.where(_is_plain(frame), 1.0, 2.0),
        "weight_bytes": np.zeros(rows),
        "activation_bytes": np.zeros(rows),
        "local_experts": local,
        "group_copies": columns["tokens"] * columns["top_k"],
        "active": loads.mean(lambda n: n > 0),
        "copies": loads.mean(lambda n: n),
        "squared_copies": loads.mean(lambda n: n.astype(float) ** 2),
        "tiles": np.stack([loads.mean(partial(_tiles_of, int(tile))) for tile in TILES]),
        "tile_allowed": np.ones((len(TILES), rows), bool),
        "variant": np.zeros(rows, np.int8),
    }
    _route_locally(frame, shapes)
    device = {name: np.zeros(rows) for name in ("memory", "peak", "cores", "cache")}
    for code in range(int(group.max()) + 1 if rows else 0):
        chosen = np.flatnonzero(group == code)
        first = frame.describe(int(chosen[0]))
        system, kernel, dtype = (str(first[name]) for name in ("system", "kernel", "dtype"))
        profile = load_device(PROFILES.get(system, system))
        shapes["weight_bytes"][chosen] = weight_bytes(kernel, dtype)
        arithmetic = ARITHMETIC[dtype]
        shapes["activation_bytes"][chosen] = ACTIVATION_BYTES[arithmetic]
        allowed, variant = tile_choice(
            kernel,
            dtype,
            profile.name,
            columns["tokens"][chosen],
            shapes["group_copies"][chosen],
            local[chosen],
            width[chosen],
        )
        shapes["tile_allowed"][:, chosen] = allowed
        shapes["variant"][chosen] = variant
        device["memory"][chosen] = profile.memory_bytes_per_s
        device["peak"][chosen] = _peak(profile, arithmetic)
        device["cores"][chosen] = profile.cores.value if profile.cores else np.nan
        device["cache"][chosen] = cache_bytes(profile.name)
    return MoeTable(frame, report, MoeShapes(**shapes), MoeDevice(*device.values()), group)


def fit_coefficients(
    shapes: MoeShapes, device: MoeDevice, measured_s: np.ndarray
) -> tuple[MoeCoefficients, tuple[str, ...]]:
    """Robust least squares on log latency, with a weak pull towards ``PRIOR``.

    Returns:
        The coefficients, and the names of those that ended on a bound.
    """
    optimize = require("scipy.optimize", "measured", "fitting coefficients")
    centre = np.log([value for value, _ in PRIOR.values()])
    spread = np.array([deviation for _, deviation in PRIOR.values()])
    log_s = np.log(measured_s)

    def residuals(point: np.ndarray) -> np.ndarray:
        coefficients = MoeCoefficients.model_construct(
            **dict(zip(PRIOR, np.exp(point), strict=True))
        )
        error = np.log(moe_time_s(shapes, device, coefficients)) - log_s
        soft = SOFT * np.sqrt(2 * (np.sqrt(1 + (error / SOFT) ** 2) - 1)) * np.sign(error)
        return np.concatenate([soft / np.sqrt(len(error)), SHRINKAGE * (point - centre) / spread])

    low, high = centre - REACH * spread, centre + REACH * spread
    found = optimize.least_squares(
        residuals, centre, max_nfev=EVALUATIONS, x_scale=spread, bounds=(low, high)
    )
    on_bound = (found.x - low < 0.01 * spread) | (high - found.x < 0.01 * spread)
    names = tuple(name for name, on in zip(PRIOR, on_bound, strict=True) if on)
    return MoeCoefficients.of_vector(np.exp(found.x)), names


def _donors(group: int, names: list[tuple[str, ...]], own: np.ndarray) -> list[int]:
    """The nearest groups with rows to fit on, for one without.

    A kernel in another version or on another system is nearer than another kernel of its family,
    that nearer than another type, and any kernel of the engine nearer than another engine's.
    Among equals the system itself comes first, then its architecture.
    """
    system, engine, _, kernel, dtype = names[group]

    def distance(other: tuple[str, ...]) -> tuple[int, int]:
        same_family = family(other[3]) == family(kernel)
        same = (
            (other[1], other[3], other[4]) == (engine, kernel, dtype),
            same_family and other[4] == dtype,
            same_family and other[1] == engine and ARITHMETIC[other[4]] == ARITHMETIC[dtype],
            same_family and ARITHMETIC[other[4]] == ARITHMETIC[dtype],
            same_family and other[1] == engine,
            other[1] == engine and other[4] == dtype,
            other[4] == dtype,
            other[1] == engine,
        )
        level = same.index(True) if True in same else len(same)
        near = 0 if other[0] == system else 1
        if near and ARCHITECTURE.get(other[0]) != ARCHITECTURE.get(system):
            near = 2
        return level, near

    having = [other for other in range(len(names)) if own[other] >= MIN_ROWS]
    if not having:
        return []
    best = min(distance(names[other]) for other in having)
    return [other for other in having if distance(names[other]) == best]


def _is_plain(frame: Frame) -> np.ndarray:
    """Rows of experts with one input matrix, ``[rows] bool``.

    The tables do not say so; Nemotron's are plain (squared ReLU), 1856 wide or with 22 of 512
    active, except in SGLang's Triton rows, whose times are those of gated experts.
    """
    nemotron = ((frame["hidden"] == 2688) & (frame["inter"] == 1856)) | (frame["top_k"] == 22)
    return nemotron & ~frame.is_label("kernel", "sglang_fused_moe_triton")


def _route_locally(frame: Frame, shapes: dict[str, Any]) -> None:
    """Correct the loads of SGLang's Triton rows with 22 of 512 experts active.

    Their time hardly falls with the ranks: the runs routed every token to the rank's own experts,
    as many as it has up to top_k.
    """
    rows = np.flatnonzero(frame.is_label("kernel", "sglang_fused_moe_triton"))
    rows = rows[frame["top_k"][rows] == 22]
    local = shapes["local_experts"][rows]
    copies = frame["tokens"][rows] * np.minimum(frame["top_k"][rows], local)
    active = np.minimum(local, copies)
    each = copies / active
    shapes["active"][rows] = active
    shapes["copies"][rows] = copies
    shapes["squared_copies"][rows] = copies * each
    shapes["tiles"][:, rows] = active * np.ceil(each / TILES[:, None])


def _tiles_of(tile: int, tokens: np.ndarray) -> np.ndarray:
    """⌈tokens / tile⌉ of each load."""
    return -(-tokens // tile)


def _peak(profile: Device, arithmetic: str) -> float:
    """Peak of the arithmetic, or of bfloat16 where the device lacks it."""
    try:
        return profile.peak_flop_per_s(arithmetic)
    except InputError:
        return profile.peak_flop_per_s("bf16")


def _take(device: MoeDevice, rows: np.ndarray) -> MoeDevice:
    return MoeDevice(
        device.memory_bytes_per_s[rows],
        device.peak_flop_per_s[rows],
        device.cores[rows],
        device.cache_bytes[rows],
    )


def _draw(rows: int, most: int) -> np.ndarray:
    """Which rows a fit looks at, ascending."""
    if rows <= most:
        return np.arange(rows)
    return np.sort(np.random.default_rng(rows).choice(rows, most, replace=False))
