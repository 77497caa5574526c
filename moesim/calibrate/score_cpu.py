"""How well a fit predicts shapes that it has not seen, beside the textbook roofline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from moesim.calibrate.cpu_layers import expert_frame
from moesim.calibrate.fit_cpu import CPU_EXPERTS, FEWEST_POINTS
from moesim.calibrate.frame import Frame
from moesim.calibrate.measurements import Measurements
from moesim.calibrate.metrics import Score, score
from moesim.errors import InputError

__all__ = ["HeldOut", "held_out", "repeat_noise"]

FOLDS = 3


@dataclass(frozen=True)
class HeldOut:
    """Errors on held-out shapes; every shape is held out once.

    Attributes:
        shapes: Distinct (hidden, inter).
        ours: The fitted physics.
        roofline: The textbook roofline, fitted on the same points by the same loss.
        ours_with_noisy: As ``ours``, with the points that were set aside as noisy.
        by_regime: ``ours`` by number type, rows per expert and residency.
    """

    shapes: int
    ours: Score
    roofline: Score
    ours_with_noisy: Score
    by_regime: dict[str, Score]

    @property
    def ratio(self) -> float | None:
        """Median error over the roofline's."""
        if self.ours.median_ape is None or not self.roofline.median_ape:
            return None
        return self.ours.median_ape / self.roofline.median_ape

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "shapes": self.shapes,
            "folds": FOLDS,
            **self.ours.to_dict(),
            "roofline": self.roofline.to_dict(),
            "ratio_to_roofline": self.ratio,
            "with_noisy": self.ours_with_noisy.to_dict(),
            "by_regime": {name: part.to_dict() for name, part in self.by_regime.items()},
        }


def held_out(measurements: Measurements, seed: int) -> HeldOut:
    """Fit on two thirds of the shapes, predict the rest, three times.

    Args:
        measurements: A run.
        seed: Seed of the order in which shapes are dealt into folds.

    Raises:
        InputError: If there are too few usable points.
    """
    usable = expert_frame(measurements)
    every = expert_frame(measurements, noisy=True)
    if len(usable) < 2 * FEWEST_POINTS:
        raise InputError(
            "too few usable points to hold some out",
            field="points",
            found=len(usable),
            allowed=f"at least {2 * FEWEST_POINTS}",
            fix="measure again with more --minutes",
        )
    predicted_s, low_s, high_s, roofline_s = (np.full(len(usable), np.nan) for _ in range(4))
    with_noisy_s = np.full(len(every), np.nan)
    for test, test_with_noisy in _folds(usable, every, seed):
        fits = CPU_EXPERTS.fit(usable, ~test)
        predicted_s[test] = CPU_EXPERTS.predict(usable, fits)[test]
        ends = CPU_EXPERTS.interval(usable, fits)
        low_s[test], high_s[test] = ends[0][test], ends[1][test]
        roofline_s[test] = CPU_EXPERTS.roofline(usable, ~test)[test]
        with_noisy_s[test_with_noisy] = CPU_EXPERTS.predict(every, fits)[test_with_noisy]
    measured_s = usable["latency_s"]
    return HeldOut(
        int(CPU_EXPERTS.shape_key(usable).max()) + 1,
        score(predicted_s, measured_s, low_s, high_s),
        score(roofline_s, measured_s),
        score(with_noisy_s, every["latency_s"]),
        {
            name: score(predicted_s[rows], measured_s[rows], low_s[rows], high_s[rows])
            for name, rows in CPU_EXPERTS.regimes(usable).items()
        },
    )


def repeat_noise(measurements: Measurements) -> dict[str, float | int]:
    """Spread of the samples of a point, over all points, and how many are set aside."""
    spread = [point.iqr_s / point.time_s for point in measurements.points]
    return {
        "points": len(spread),
        "set_aside": sum(1 for point in measurements.points if point.noisy is not None),
        "iqr_over_median_median": float(np.median(spread)),
        "iqr_over_median_p90": float(np.quantile(spread, 0.9)),
    }


def _folds(usable: Frame, every: Frame, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows to test in either frame, fold by fold."""
    shapes = np.unique(np.stack([every["hidden"], every["inter"]], 1), axis=0)
    fold_of_shape = np.random.default_rng(seed).permutation(len(shapes)) % FOLDS
    fold = {tuple(shape): int(f) for shape, f in zip(shapes.tolist(), fold_of_shape, strict=True)}

    def folds(frame: Frame) -> np.ndarray:
        pairs = zip(frame["hidden"].tolist(), frame["inter"].tolist(), strict=True)
        return np.array([fold[pair] for pair in pairs])

    of_usable, of_every = folds(usable), folds(every)
    for number in range(FOLDS):
        yield of_usable == number, of_every == number
