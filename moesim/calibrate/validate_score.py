"""From samples of single devices to what they say of placements: slowest devices, pairs, noise.

Axes: R rounds, U distinct device loads that were timed, P placements, N layers of batches, G
devices. The noise is measured by the repeats themselves: rounds are drawn again with replacement
(bootstrap), the same draw for all placements, because their devices took turns within a round.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from moesim.extras import require
from moesim.planners.validation import ValidatedPlanner

__all__ = ["DeviceRuns", "Pairs", "bootstrap_slowest", "compare_pairs", "gains", "rank_correlation"]

DRAWS = 400
CONFIDENCE = 0.95


@dataclass(frozen=True)
class DeviceRuns:
    """Which timed load every device had.

    Attributes:
        load_of: [P, N, G] index into U; −1 for a device without tokens.
        samples_s: [R, U] seconds.
        predicted_s: [U] seconds by the cost model.
    """

    load_of: np.ndarray
    samples_s: np.ndarray
    predicted_s: np.ndarray

    @property
    def times_s(self) -> np.ndarray:
        """[U] the median over the rounds."""
        return np.median(self.samples_s, axis=0)

    def slowest_s(self, times_s: np.ndarray) -> np.ndarray:
        """[..., P, N] seconds of the slowest device from [..., U] seconds of each load."""
        return np.where(self.load_of >= 0, times_s[..., self.load_of], 0.0).max(axis=-1)


@dataclass(frozen=True)
class Pairs:
    """Placements compared two by two on every layer of a batch.

    Attributes:
        compared: Pairs that differ in some device's load.
        beyond_noise: Those whose measured difference is beyond the noise.
        agreeing: Of these, those predicted the right way round.
    """

    compared: int
    beyond_noise: int
    agreeing: int


def bootstrap_slowest(runs: DeviceRuns, seed: int = 0) -> np.ndarray:
    """[DRAWS, P, N] slowest devices' seconds, each draw from rounds drawn again."""
    rng = np.random.default_rng(seed)
    rounds = len(runs.samples_s)
    chosen = rng.integers(rounds, size=(DRAWS, rounds))
    return np.stack([runs.slowest_s(np.median(runs.samples_s[row], axis=0)) for row in chosen])


def half_width(draws: np.ndarray) -> np.ndarray:
    """Half of the interval that holds ``CONFIDENCE`` of the draws along the first axis."""
    low, high = np.quantile(draws, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2), axis=0)
    return (high - low) / 2


def compare_pairs(runs: DeviceRuns, draws: np.ndarray) -> Pairs:
    """Compare all placements with each other.

    A pair counts as beyond the noise if the interval of its difference leaves out zero.

    Args:
        runs: What was timed.
        draws: Of :func:`bootstrap_slowest`.
    """
    measured_s = runs.slowest_s(runs.times_s)
    predicted_s = runs.slowest_s(runs.predicted_s)
    compared = beyond = agreeing = 0
    for one, other in combinations(range(len(measured_s)), 2):
        same = (np.sort(runs.load_of[one], -1) == np.sort(runs.load_of[other], -1)).all(-1)
        low, high = np.quantile(
            draws[:, one] - draws[:, other],
            ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2),
            axis=0,
        )
        clear = ~same & ((low > 0) | (high < 0))
        right = np.sign(measured_s[one] - measured_s[other]) == np.sign(
            predicted_s[one] - predicted_s[other]
        )
        compared += int((~same).sum())
        beyond += int(clear.sum())
        agreeing += int((clear & right).sum())
    return Pairs(compared, beyond, agreeing)


def gains(
    names: tuple[str, ...], baseline: str, runs: DeviceRuns, draws: np.ndarray
) -> dict[str, ValidatedPlanner]:
    """Sums over all layers of batches, and speedups against the baseline, by placement."""
    measured_s = runs.slowest_s(runs.times_s).sum(-1)
    predicted_s = runs.slowest_s(runs.predicted_s).sum(-1)
    drawn_s = draws.sum(-1)
    base = names.index(baseline)
    found = {}
    for place, name in enumerate(names):
        low, high = np.quantile(
            drawn_s[:, base] / drawn_s[:, place], ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
        )
        found[name] = ValidatedPlanner(
            measured_s=float(measured_s[place]),
            predicted_s=float(predicted_s[place]),
            measured_speedup=float(measured_s[base] / measured_s[place]),
            predicted_speedup=float(predicted_s[base] / predicted_s[place]),
            speedup_lo=float(low),
            speedup_hi=float(high),
        )
    return found


def rank_correlation(predicted_s: np.ndarray, measured_s: np.ndarray) -> float | None:
    """Spearman's, with ties at their mean rank; None where one of them does not vary."""
    stats = require("scipy.stats", "measured", "plan --validate")
    ranks = [stats.rankdata(np.ravel(values)) for values in (predicted_s, measured_s)]
    if any(np.ptp(rank) == 0 for rank in ranks):
        return None
    return float(np.corrcoef(*ranks)[0, 1])
