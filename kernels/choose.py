"""Which configuration for which histogram of rows per expert.

A candidate is one configuration for all experts, or two: the row kernel for experts with few rows
and the tile kernel for the rest, sorted out on the device by the live counts. The cost model takes
the time of every candidate, and the least wins.

The histogram may be known on the host. Where it is only on the device, nothing waits for it: the
candidate with the least regret over a few plausible histograms of so many rows is taken, once for
every number of rows, and which expert goes to which kernel is still decided by the live counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from moesim.errors import InputError
from moesim.kernels.config import Part
from moesim.kernels.config_table import ConfigTable, Entry, default_table, type_name
from moesim.kernels.targets import Chip, target_of
from moesim.kernels.tile_table import ANY_ROWS
from moesim.kernels.wave_model import GemmShape, Speeds, part_seconds

__all__ = [
    "Choice",
    "candidates",
    "choose",
    "choose_for_rows",
    "configurations",
    "plausible_histograms",
    "shape_of",
]

THRESHOLDS = (16, 32, 64)
"""Rows up to which an expert may go to the row kernel."""

SKEWS = (0.0, 0.5, 1.0)
"""Zipf exponents of the histograms that a number of rows is judged by; 0 is balanced."""


@dataclass(frozen=True)
class Choice:
    """A configuration with what the model says of it.

    Attributes:
        parts: For experts by their rows.
        predicted_s: Seconds of the GEMM.
        evidence: ``measured`` if the coefficients of all parts are, else ``assumed``.
    """

    parts: tuple[Part, ...]
    predicted_s: float
    evidence: str

    @property
    def name(self) -> str:
        """The configurations, with the rows up to which they are for: ``row-…≤16+tile-…``."""
        return "+".join(
            part.config.name if part.most == ANY_ROWS else f"{part.config.name}≤{part.most}"
            for part in self.parts
        )


def candidates(entries: Sequence[Entry]) -> list[tuple[tuple[Part, Entry], ...]]:
    """All ways to share experts among entries: one for all, or row kernel and tile kernel."""
    alone: list[tuple[tuple[Part, Entry], ...]] = [
        ((Part(entry.config), entry),) for entry in entries
    ]
    rows = [entry for entry in entries if entry.config.kernel == "row"]
    tiles = [entry for entry in entries if entry.config.kernel == "tile"]
    both = [
        (
            (Part(row.config, 1, threshold), row),
            (Part(tile.config, threshold + 1, ANY_ROWS), tile),
        )
        for row in rows
        for tile in tiles
        for threshold in THRESHOLDS
        if row.config.block_m <= threshold <= 2 * row.config.block_m
    ]
    return alone + both


def choose(
    histogram: Sequence[int] | np.ndarray,
    shape: GemmShape,
    dtype: str,
    target: str,
    *,
    chip: Chip | None = None,
    table: ConfigTable | None = None,
) -> list[Choice]:
    """All candidates for a histogram, fastest first.

    Args:
        histogram: [E] rows of each expert.
        shape: Of the GEMM.
        dtype: ``bf16`` or ``fp8``.
        target: Name of the target.
        chip: The device at hand; the one that the table's figures are for if None.
        table: Table of configurations; the package's if None.

    Raises:
        InputError: If the histogram is none.
        UsageError: If the table has nothing for this type and target.
    """
    counts = np.asarray(histogram)
    if counts.ndim != 1 or not counts.size or counts.dtype.kind not in "iu" or counts.min() < 0:
        raise InputError(
            "rows per expert are needed",
            field="histogram",
            found=histogram,
            allowed="one whole number from 0 up per expert",
        )
    table = table or default_table()
    ways = candidates(table.of(target, dtype))
    times = _times(ways, counts.astype(np.int64), shape, _speeds(table, target, dtype, chip))
    order = np.argsort(times, kind="stable")
    return [_choice(ways[place], float(times[place])) for place in order]


@lru_cache(maxsize=4096)
def choose_for_rows(
    rows: int, experts: int, shape: GemmShape, dtype: str, target: str, chip: Chip
) -> Choice:
    """The candidate with the least regret over plausible histograms of so many rows.

    Regret is the time over that of the best candidate for that histogram; the mean counts.
    """
    table = default_table()
    ways = candidates(table.of(target, dtype))
    speeds = _speeds(table, target, dtype, chip)
    times = np.array(
        [_times(ways, own, shape, speeds) for own in plausible_histograms(rows, experts)]
    )
    place = int((times / times.min(axis=1, keepdims=True)).mean(axis=0).argmin())
    return _choice(ways[place], float(times[:, place].mean()))


def configurations(device: torch.device, dtype: torch.dtype) -> dict[str, tuple[Part, ...]]:
    """Every single configuration for a device and a type, by name, to time them all.

    Raises:
        UsageError: If there are none.
    """
    entries = default_table().of(target_of(device).name, type_name(dtype))
    return {entry.config.name: (Part(entry.config),) for entry in entries}


def plausible_histograms(rows: int, experts: int) -> list[np.ndarray]:
    """[E] rows per expert, balanced and skewed, that add up to ``rows``."""
    return [zipf_histogram(rows, experts, skew) for skew in SKEWS]


def zipf_histogram(rows: int, experts: int, skew: float) -> np.ndarray:
    """[E] rows per expert in proportion to rank^−skew, from the largest down; they add up."""
    share = np.arange(1, experts + 1, dtype=np.float64) ** -skew
    exact = rows * share / share.sum()
    own = np.floor(exact).astype(np.int64)
    rest = np.argsort(own - exact, kind="stable")[: rows - int(own.sum())]
    own[rest] += 1
    return own


def shape_of(
    n: int, k: int, dtype: torch.dtype, out_dtype: torch.dtype, gated: bool
) -> tuple[GemmShape, str]:
    """Shape and type name of operands."""
    name = type_name(dtype)
    in_bytes = 1 + 4 / 128 if name == "fp8" else 2.0
    return GemmShape(n, k, in_bytes, float(out_dtype.itemsize), gated), name


def _speeds(table: ConfigTable, target: str, dtype: str, chip: Chip | None) -> Speeds:
    own = table.speeds[target][dtype]
    return own if chip is None else own.on(chip.cores, chip.bytes_per_s)


def _times(
    ways: Sequence[tuple[tuple[Part, Entry], ...]],
    histogram: np.ndarray,
    shape: GemmShape,
    speeds: Speeds,
) -> np.ndarray:
    """[candidates] seconds; a part that several candidates share is computed once."""
    known: dict[Part, float] = {}
    times = np.empty(len(ways))
    for place, way in enumerate(ways):
        total = 0.0
        for part, entry in way:
            if part not in known:
                known[part] = part_seconds(part, entry.coefficients, histogram, shape, speeds)
            total += known[part]
        times[place] = total
    return times


def _choice(way: tuple[tuple[Part, Entry], ...], predicted_s: float) -> Choice:
    measured = all(entry.evidence == "measured" for _, entry in way)
    return Choice(
        tuple(part for part, _ in way), predicted_s, "measured" if measured else "assumed"
    )
