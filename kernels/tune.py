"""Make the table of configurations: facts from the compiler, coefficients from measurements.

Without measurements of a configuration its coefficients are assumptions, and the table says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np

from moesim.errors import InputError
from moesim.kernels.candidates import SPEED_SOURCES, SPEEDS, candidate_configs
from moesim.kernels.check import Outcome, gemm_cases, representative, run_cases
from moesim.kernels.config import GemmConfig, Part
from moesim.kernels.config_table import ConfigTable, Entry
from moesim.kernels.targets import REACHED_BANDWIDTH, TARGETS, Target
from moesim.kernels.wave_model import Coefficients, GemmShape, Speeds, part_seconds

__all__ = ["Measured", "assumed", "build_table", "fit", "refit"]

MOST_PROGRAMS, MOST_ROW_PROGRAMS = 2, 4
"""Programs per core that are counted on, of the tile and the row kernel (assumed)."""

TARGET_OF_MAJOR = {"8": "sm_80", "9": "sm_90a", "10": "sm_100a"}
FEWEST_POINTS = 6
ROUNDS = 60
LEAST = np.array([0.05, 0.05, 1e-8, 1e-8, 1e-7])
MOST = np.array([1.0, 1.5, 1e-5, 1e-4, 1e-4])
"""Bounds of share, reach, latency_s, tile_s and launch_s; what lies in L2 may beat a copy."""


@dataclass(frozen=True)
class Measured:
    """One measured time of one configuration for all experts.

    Attributes:
        target: Name of the target.
        dtype: ``bf16`` or ``fp8``.
        config: What ran; ``programs_per_core`` does not count for its identity.
        histogram: [E] rows of each expert.
        shape: Of the GEMM.
        speeds: Of the device that ran it.
        time_s: Seconds, tile table included.
    """

    target: str
    dtype: str
    config: GemmConfig
    histogram: np.ndarray
    shape: GemmShape
    speeds: Speeds
    time_s: float


def build_table(
    targets: Sequence[str],
    measured: Sequence[Measured] = (),
    *,
    workers: int = 1,
    say: Callable[[str], None] = lambda _: None,
) -> ConfigTable:
    """Compile all candidates of some targets, drop those that break a rule, fit the rest.

    Args:
        targets: Names of targets.
        measured: Times to fit to.
        workers: Processes that compile.
        say: Told which candidates are dropped, and why.
    """
    entries: dict[str, tuple[Entry, ...]] = {}
    for name in targets:
        own: list[Entry] = []
        for dtype in SPEEDS[name]:
            configs = list(candidate_configs(name, dtype))
            compiled = dict.fromkeys(representative(config) for config in configs)
            cases = [case for config in compiled for case in gemm_cases(name, dtype, config)]
            outcomes: dict[GemmConfig, list[Outcome]] = {config: [] for config in compiled}
            for case, outcome in zip(cases, run_cases(cases, workers), strict=True):
                assert case.config is not None  # noqa: S101 (cases of GEMMs have one)
                outcomes[case.config].append(outcome)
            for config in configs:
                found = outcomes[representative(config)]
                broken = [text for outcome in found for text in outcome.violations]
                if broken:
                    say(f"{name} {dtype} {config.name}: {'; '.join(broken)}")
                    continue
                own.append(_entry(TARGETS[name], dtype, config, found))
        entries[name] = tuple(own)
    speeds = {
        name: {
            dtype: replace(value, bytes_per_s=value.bytes_per_s * REACHED_BANDWIDTH)
            for dtype, value in SPEEDS[name].items()
        }
        for name in targets
    }
    table = ConfigTable(entries, speeds, {name: SPEED_SOURCES[name] for name in targets})
    return refit(table, measured) if measured else table


def assumed(config: GemmConfig) -> Coefficients:
    """Coefficients of a configuration that nobody has measured.

    The share grows with the tile, as operands are used more often per load: 0.71 for 128 × 256,
    0.53 for 64 × 128. A load takes 0.8 µs, about the latency of a GPU's memory under load; a tile
    1 µs around its loop; a launch 2 µs, as in a CUDA graph.
    """
    area = config.block_m * config.block_n
    share = round(0.8 * area / (area + 64 * 64), 3)
    return Coefficients(share, reach=1.0, latency_s=0.8e-6, tile_s=1e-6, launch_s=2e-6)


def refit(table: ConfigTable, measured: Iterable[Measured]) -> ConfigTable:
    """The table with coefficients fitted wherever a configuration has enough measurements.

    Raises:
        InputError: If no configuration has.
    """
    groups: dict[tuple[str, str, str], list[Measured]] = {}
    for one in measured:
        groups.setdefault((one.target, one.dtype, one.config.name), []).append(one)
    entries: dict[str, tuple[Entry, ...]] = {}
    fitted = 0
    for name, own in table.entries.items():
        new = []
        for entry in own:
            points = groups.get((name, entry.dtype, entry.config.name), [])
            if len(points) >= FEWEST_POINTS:
                coefficients = fit(entry.config, points, entry.coefficients)
                entry = replace(entry, coefficients=coefficients, evidence="measured")
                fitted += 1
            new.append(entry)
        entries[name] = tuple(new)
    if not fitted:
        raise InputError(
            "nothing to fit",
            field="cases",
            found=f"{sum(map(len, groups.values()))} times of {len(groups)} configurations",
            allowed=f"at least {FEWEST_POINTS} times of one configuration of the table",
            fix="measure with: moesim kernels bench --device cuda",
        )
    return replace(table, entries=entries)


def fit(config: GemmConfig, points: Sequence[Measured], start: Coefficients) -> Coefficients:
    """The coefficients by damped Gauss-Newton on the logarithms of times and coefficients.

    Large errors count linearly (Huber's weights at 10 %), so that one bad measurement does not
    bend the rest.
    """
    target = np.log([point.time_s for point in points])

    def residuals(log: np.ndarray) -> np.ndarray:
        values = Coefficients(*np.exp(log).tolist())
        part = Part(config)
        times = [part_seconds(part, values, p.histogram, p.shape, p.speeds) for p in points]
        return np.log(times) - target

    def cost(error: np.ndarray) -> float:
        size = np.abs(error)
        return float(np.where(size < 0.1, size**2, 0.2 * size - 0.01).sum())

    low, high = np.log(LEAST), np.log(MOST)
    at = np.clip(np.log(np.maximum(astuple(start), 1e-12)), low, high)
    error, damping = residuals(at), 1e-2
    for _ in range(ROUNDS):
        jacobian = np.stack([(residuals(at + step) - error) / 1e-4 for step in 1e-4 * np.eye(5)], 1)
        weight = np.minimum(1.0, 0.1 / np.maximum(np.abs(error), 1e-12))
        normal = jacobian.T @ (weight[:, None] * jacobian)
        slope = jacobian.T @ (weight * error)
        move = np.linalg.solve(normal + damping * np.eye(5), slope)
        trial = np.clip(at - move, low, high)
        trial_error = residuals(trial)
        if cost(trial_error) < cost(error):
            at, error, damping = trial, trial_error, damping / 3
        else:
            damping *= 4
            if damping > 1e8:
                break
    return Coefficients(*(float(f"{value:.4g}") for value in np.exp(at)))


def _entry(target: Target, dtype: str, config: GemmConfig, outcomes: Sequence[Outcome]) -> Entry:
    facts = [outcome.facts for outcome in outcomes if outcome.facts is not None]
    registers = max(fact.registers for fact in facts)
    shared = max(fact.shared_bytes for fact in facts)
    threads = config.num_warps * target.warp_size
    programs = min(
        target.core_shared_bytes // max(1, shared + target.reserved_bytes),
        target.registers // (max(1, registers) * threads),
        MOST_PROGRAMS if config.kernel == "tile" else MOST_ROW_PROGRAMS,
    )
    config = replace(config, programs_per_core=max(1, programs))
    return Entry(config, dtype, assumed(config), "assumed", registers, shared)


def measured_of(
    document: Mapping[str, Any], table: ConfigTable, file: object = None
) -> list[Measured]:
    """Times of single configurations in a benchmark's file (``moesim.kernels/1``).

    Args:
        document: The file's contents: entries with ``kernel`` moesim and a ``config`` count.
        table: Whose configurations are meant.
        file: Its name, for messages.

    Raises:
        InputError: If it is no benchmark of a GPU, or lacks what an entry needs.
    """
    environment = document.get("environment")
    capability = environment.get("compute_capability") if isinstance(environment, dict) else None
    target = TARGET_OF_MAJOR.get(str(capability).partition(".")[0])
    if document.get("schema") != "moesim.kernels/1" or target is None:
        raise InputError(
            "is no benchmark of a GPU that the table knows",
            file=str(file),
            field="environment.compute_capability",
            found=str(capability),
            allowed="8.0, 9.0 or 10.0",
            fix="measure with: moesim kernels bench --device cuda",
        )
    cores = environment.get("cores") if isinstance(environment, dict) else None
    if not isinstance(cores, int) or cores < 1:
        raise InputError(
            "does not say how many cores ran it",
            file=str(file),
            field="environment.cores",
            found=cores,
            allowed="a whole number from 1 up",
        )
    copied = document.get("ceilings", {}).get("copy_bytes_per_s")
    found: list[Measured] = []
    for place, entry in enumerate(document.get("cases", [])):
        try:
            if entry.get("kernel") != "moesim" or not entry.get("config"):
                continue
            config = _config_of(table, target, entry["dtype"], entry["config"])
            if config is None or entry["op"] != "grouped-gemm":
                continue
            shape, fp8 = entry["shape"], entry["dtype"] == "fp8"
            dtype = "fp8" if fp8 else "bf16"
            found.append(
                Measured(
                    target=target,
                    dtype=dtype,
                    config=config,
                    histogram=np.asarray(document["loads"][entry["case"]], dtype=np.int64),
                    shape=GemmShape(int(shape["n"]), int(shape["k"]), 1 + 4 / 128 if fp8 else 2.0),
                    speeds=table.speeds[target][dtype].on(cores, copied),
                    time_s=float(entry["time_s"]),
                )
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"is incomplete: {error}", file=str(file), field=f"cases[{place}]"
            ) from error
    return found


def _config_of(table: ConfigTable, target: str, dtype: str, name: str) -> GemmConfig | None:
    wanted = "fp8" if dtype == "fp8" else "bf16"
    own = table.entries.get(target, ())
    found = [e.config for e in own if e.dtype == wanted and e.config.name == name]
    return found[0] if found else None
