"""Coefficients of an expert kernel that was not measured, from those that were.

Efficiencies are shares of each device's specification, so they carry over. The nearest fits decide
(the same kernel in another version or on another system before other kernels of its family, those
before other kernels), and farther ones are blended in with a weight that falls with the distance.
Coefficients are averaged as logarithms. Between versions of an engine the times also move by the
mean drift of the versions that were measured on one system.

Weights and the cut-off were chosen on versions and on generations other than Blackwell, each held
out in turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Literal, NamedTuple, Protocol

import numpy as np

from moesim.hardware import Device
from moesim.operators.moe import TILES, MoeCoefficients, MoeDevice, MoeShapes, moe_time_s
from moesim.operators.moe_kernels import ACTIVATION_BYTES, ARITHMETIC, family, weight_bytes

__all__ = [
    "KINDS",
    "PROFILES",
    "MoeKernel",
    "Transfer",
    "TransferKind",
    "VersionDrift",
    "architecture",
    "transferred",
    "version_drift",
]

TransferKind = Literal[
    "none", "version", "device", "generation", "sibling", "sibling and generation"
]
KINDS: tuple[TransferKind, ...] = (
    "none",
    "version",
    "device",
    "generation",
    "sibling",
    "sibling and generation",
)
"""How far the nearest fit is: the kernel itself; in another version; on another system of the same
architecture; on another architecture; another kernel, on the same architecture or not."""

PROFILES = {"b60": "arc_b60"}
"""Device profile of a measured system, where the names differ."""

ARCHITECTURES = {
    "ampere": ("a100_sxm", "rtx_a6000"),
    "ada": ("l40s", "rtx4090"),
    "hopper": ("h100_sxm", "h200_sxm", "h800_sxm"),
    "blackwell": ("b200_sxm", "b300_sxm", "gb200", "gb300"),
    "blackwell-workstation": ("rtx_pro_6000_server",),
    "xe2": ("b60", "arc_b60"),
}
"""Measured systems and device profiles by architecture."""

HBM_BYTES_PER_S = 1.4e12
"""Devices of one generation with more memory bandwidth are the data-centre ones: an A100 has 1.56
TB/s or more, an L40S 0.86, an RTX 4090 1.0; an RTX PRO 6000, 1.8, is told by its type below."""
WORKSTATION_BYTES_PER_S = 2.5e12
"""Same for devices with FP4: an RTX PRO 6000 has 1.8 TB/s, a B200 8."""

BLEND = 0.15
"""Weight of a fit one level farther than the nearest."""
FAR = 0.3
"""Weight of a fit on a system one step farther: same system, same architecture, any."""
SIBLINGS = 2
"""Farthest level of a kernel of the same family and type."""
CUT = 0.5
"""Median log ratio on ``_reference`` beyond which a farther kernel is another thing altogether,
such as one that was run untuned."""


MARLIN_WIDENING = {
    "w4a16_mxfp4": {"weight_bandwidth_share": 0.91, "k_step_s": 2.2, "row_cost": 1.12}
}
"""Coefficients of Marlin kernels relative to those for int4: floating-point weights take longer to
widen to bfloat16. Geometric means over vLLM's kernels on L40S (0.90, 2.7, 1.10) and RTX PRO 6000
(0.92, 1.8, 1.15), the systems where both types were measured on usual models."""


class MoeKernel(NamedTuple):
    """Which kernel: as measured tables name it."""

    system: str
    engine: str
    version: str
    kernel: str
    dtype: str


class Fitted(Protocol):
    """A kernel with coefficients, as :class:`~moesim.operators.moe_fits.MoeFit`."""

    @property
    def key(self) -> MoeKernel:
        """Which kernel."""
        ...

    @property
    def coefficients(self) -> MoeCoefficients:
        """Of it."""
        ...


VersionOrder = Mapping[tuple[str, str], int]
"""Place of each (engine, version) among its engine's versions."""


@dataclass(frozen=True)
class VersionDrift:
    """How times move between versions of an engine.

    Attributes:
        log_ratio: Log of a newer version's time over an older one's, on the mean.
        order: Which version is newer.
    """

    log_ratio: float
    order: VersionOrder


@dataclass(frozen=True)
class Transfer:
    """Coefficients that come from other kernels.

    Attributes:
        coefficients: Of the kernel asked for.
        donors: The nearest kernels.
        kind: How near those are.
    """

    coefficients: MoeCoefficients
    donors: tuple[MoeKernel, ...]
    kind: TransferKind


def architecture(device: Device | str) -> str | None:
    """Family of a device; by its specification if an NVIDIA GPU is not known by name.

    Args:
        device: A profile, or the name of a measured system.
    """
    name = device if isinstance(device, str) else device.name
    for known, names in ARCHITECTURES.items():
        if name in names:
            return known
    if isinstance(device, str) or device.kind != "gpu" or device.vendor.upper() != "NVIDIA":
        return None
    bandwidth = device.memory_bytes_per_s
    if "fp4" in device.peak:
        return "blackwell" if bandwidth > WORKSTATION_BYTES_PER_S else "blackwell-workstation"
    if "fp8" in device.peak:
        return "hopper" if bandwidth > HBM_BYTES_PER_S else "ada"
    return "ampere"


def transferred(
    target: MoeKernel,
    fits: Sequence[Fitted],
    device: MoeDevice,
    *,
    family_of: str | None = None,
    drift: VersionDrift | None = None,
) -> Transfer:
    """Coefficients of a kernel from the fits of others.

    Args:
        target: The kernel wanted.
        fits: Of other kernels, at least one.
        device: What the physics needs of the target's device.
        family_of: Its architecture, if its name does not tell.
        drift: How times move between versions; without it, they stay.
    """
    home = family_of or architecture(target.system)
    places = [_distance(target, home, fit.key) for fit in fits]
    level, near = min(places)
    layers = _reference(weight_bytes(target.kernel, target.dtype), _activation(target.dtype))
    grouped: dict[tuple[int, int], list[np.ndarray]] = {}
    for fit, place in zip(fits, places, strict=True):
        vector = np.log(fit.coefficients.vector()) + _widening(target, fit.key)
        grouped.setdefault(place, []).append(vector)
    nearest = np.mean(grouped.pop((level, near)), axis=0)
    expected_s = _log_time_s(layers, device, nearest)
    parts, weights = [nearest], [1.0]
    for place, vectors in grouped.items():
        weight = _weight((level, near), place)
        kept = [
            vector
            for vector in (vectors if weight else [])
            if np.median(np.abs(_log_time_s(layers, device, vector) - expected_s)) <= CUT
        ]
        if kept:
            parts.append(np.mean(kept, axis=0))
            weights.append(weight)
    blended = np.average(parts, axis=0, weights=weights)
    donors = tuple(
        fit.key for fit, place in zip(fits, places, strict=True) if place == (level, near)
    )
    if drift is not None:
        blended = _slowed(blended, drift.log_ratio * _direction(target, donors, drift.order))
    kinds: tuple[TransferKind, ...] = ("version", "device", "generation")
    kind = kinds[near] if level == 0 else "sibling" if near < 2 else "sibling and generation"
    return Transfer(MoeCoefficients.of_vector(np.exp(blended)), donors, kind)


def version_drift(
    fits: Sequence[Fitted], devices: Mapping[str, MoeDevice], order: VersionOrder
) -> VersionDrift:
    """How times move from a version to a newer one, over kernels fitted in both.

    The median over the kernels of an engine, and the mean of that over engines.

    Args:
        fits: Kernels of any systems, engines and versions.
        devices: What the physics needs of each system.
        order: Place of each (engine, version) among its engine's versions.
    """
    by_engine: dict[str, list[float]] = {}
    alike: dict[tuple[str, ...], list[Fitted]] = {}
    for fit in fits:
        key = fit.key
        alike.setdefault((key.system, key.engine, family(key.kernel), key.dtype), []).append(fit)
    for (system, engine, _, dtype), members in alike.items():
        for one, other in combinations(members, 2):
            sign = np.sign(
                order[engine, other.key.version] - order[engine, one.key.version], dtype=float
            )
            if not sign:
                continue
            layers = _reference(weight_bytes(one.key.kernel, dtype), _activation(dtype))
            first_s, second_s = (
                _log_time_s(layers, devices[system], np.log(fit.coefficients.vector()))
                for fit in (one, other)
            )
            by_engine.setdefault(engine, []).append(float(sign * np.median(second_s - first_s)))
    medians = [float(np.median(ratios)) for ratios in by_engine.values()]
    return VersionDrift(float(np.mean(medians)) if medians else 0.0, order)


def _distance(target: MoeKernel, home: str | None, other: MoeKernel) -> tuple[int, int]:
    """Level of the kernel and of the system; 0 is the same."""
    same_type = other.dtype == target.dtype
    same_family = family(other.kernel) == family(target.kernel)
    same_engine = other.engine == target.engine
    same_arithmetic = ARITHMETIC[other.dtype] == ARITHMETIC[target.dtype]
    levels = (
        same_engine and other.kernel == target.kernel and same_type,
        same_family and same_type and same_engine,
        same_family and same_type,
        same_family and same_arithmetic,
        same_family,
        same_type,
        same_arithmetic,
        True,
    )
    if other.system == target.system:
        near = 0
    else:
        near = 1 if home is not None and architecture(other.system) == home else 2
    return levels.index(True), near


def _widening(target: MoeKernel, donor: MoeKernel) -> np.ndarray:
    """Log ratios of the coefficients for widening other weights, between two Marlin kernels."""
    names = list(MoeCoefficients.model_fields)
    ratios = np.zeros(len(names))
    if family(target.kernel) == family(donor.kernel) == "marlin":
        for kernel, sign in ((target, 1.0), (donor, -1.0)):
            for name, ratio in MARLIN_WIDENING.get(kernel.dtype, {}).items():
                ratios[names.index(name)] += sign * np.log(ratio)
    return ratios


def _weight(nearest: tuple[int, int], other: tuple[int, int]) -> float:
    """Weight of the fits at a distance against the nearest ones."""
    level, near = nearest
    if level:
        return BLEND ** max(other[0] - level, 0) * FAR ** abs(other[1] - near)
    # The kernel itself on a like system needs no others; in another version, or on another
    # generation, kernels of its family and type say what else holds here.
    if near == 1 or not 0 < other[0] <= SIBLINGS or other[1] > 1:
        return 0.0
    return BLEND * FAR ** other[1]


def _direction(target: MoeKernel, donors: Iterable[MoeKernel], order: VersionOrder) -> float:
    """Share of the donors that are older versions of the target, less that of newer ones."""
    own = order.get((target.engine, target.version))
    signs = [
        float(np.sign(own - order[donor.engine, donor.version]))
        for donor in donors
        if own is not None
        and donor.engine == target.engine
        and family(donor.kernel) == family(target.kernel)
        and (donor.engine, donor.version) in order
    ]
    return float(np.mean(signs)) if signs else 0.0


def _slowed(log_vector: np.ndarray, by: float) -> np.ndarray:
    """Coefficients of a kernel whose every time is longer by a log factor."""
    rates = ("weight_bandwidth_share", "activation_bandwidth_share", "group_bandwidth_share")
    times = ("launch_s", "active_expert_s", "local_expert_s", "copy_s", "group_copy_s", "k_step_s")
    costs = ("tile_rows", "row_cost")
    sign = {**dict.fromkeys(rates, -1.0), **dict.fromkeys((*times, *costs), 1.0)}
    return log_vector + by * np.array(
        [sign.get(name, 0.0) for name in MoeCoefficients.model_fields]
    )


def _log_time_s(layers: MoeShapes, device: MoeDevice, log_vector: np.ndarray) -> np.ndarray:
    names = MoeCoefficients.model_fields
    values = dict(zip(names, np.exp(log_vector), strict=True))
    return np.log(moe_time_s(layers, device, MoeCoefficients.model_construct(**values)))


def _activation(dtype: str) -> float:
    return ACTIVATION_BYTES[ARITHMETIC[dtype]]


@cache
def _reference(bytes_per_weight: float, activation_bytes: float) -> MoeShapes:
    """Layers on which kernels are compared: usual shapes and splits, even loads, any batch."""
    models = ((7168, 2048, 8, 256), (4096, 1536, 8, 128), (6144, 16384, 2, 8), (2880, 2880, 4, 32))
    keys = [
        (tokens, *model, ranks)
        for model in models
        for ranks in (1, 8)
        for tokens in (1, 8, 64, 256, 1024, 4096, 16384)
    ]
    tokens, hidden, width, top_k, experts, ranks = np.array(keys, float).T
    local = experts / ranks
    copies = tokens * top_k / ranks
    active = local * (1 - (1 - top_k / experts) ** tokens)
    each = copies / active
    return MoeShapes(
        hidden=hidden,
        width=width,
        input_matrices=np.full(len(keys), 2.0),
        weight_bytes=np.full(len(keys), bytes_per_weight),
        activation_bytes=np.full(len(keys), activation_bytes),
        local_experts=local,
        group_copies=tokens * top_k,
        active=active,
        copies=copies,
        squared_copies=copies * each,
        tiles=active * np.ceil(each / TILES[:, None]),
        tile_allowed=np.ones((len(TILES), len(keys)), bool),
        variant=np.zeros(len(keys), np.int8),
    )
