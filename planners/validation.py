"""A plan set against real runs: what each device's experts took, and what was predicted."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

__all__ = ["PlacementValidation", "RunScale", "ValidatedPlanner"]

MEDIAN_ERROR_GOAL = 0.10
RANK_GOAL = 0.95
PAIRS_GOAL = 0.95


@dataclass(frozen=True)
class RunScale:
    """How the experts that were run differ from the model's.

    Attributes:
        hidden: Width of the residual stream as run.
        inter: Width of the experts as run.
        width_divisor: The model's widths over these.
        rows_divisor: Tokens of every expert over those that were run.
        dtype: Number type as run.
    """

    hidden: int
    inter: int
    width_divisor: int
    rows_divisor: int
    dtype: str


@dataclass(frozen=True)
class ValidatedPlanner:
    """One placement, summed over the layers and batches that were run.

    Attributes:
        measured_s: Σ of the slowest device's seconds.
        predicted_s: The same by the cost model.
        measured_speedup: The baseline's sum over this one.
        predicted_speedup: The same by the cost model.
        speedup_lo: Lower end of the measured speedup's 95 % interval (bootstrap over rounds).
        speedup_hi: Upper end.
    """

    measured_s: float
    predicted_s: float
    measured_speedup: float
    predicted_speedup: float
    speedup_lo: float
    speedup_hi: float

    @property
    def gain_holds(self) -> bool | None:
        """Whether a predicted gain or loss is measured too; None if noise hides it."""
        if self.speedup_lo <= 1 <= self.speedup_hi:
            return None
        return (self.measured_speedup > 1) == (self.predicted_speedup > 1)


@dataclass(frozen=True)
class PlacementValidation:
    """What running the experts of several placements showed.

    A point is one MoE layer of one batch under one placement; its time is that of the slowest
    device, the median over rounds.

    Attributes:
        device: ``cpu`` or ``cuda``.
        processor: Its name.
        kernel: What ran the experts.
        clock: What they were timed with.
        scale: How they differ from the model's.
        model: Of the cost: ``fitted`` in this run, or the file of a profile.
        fitted_points: Other loads, measured in the same rounds, that the cost model rests on.
        batches: Distinct batches among the points.
        layers: Distinct layers among them.
        rounds: Rounds that count.
        slow_rounds: Rounds set aside because most of the machine was slow.
        planned: Layers of batches that there are; those measured are a sample of them.
        planner_names: [P] the placements.
        point_batch: [N] batch of each layer that was run.
        point_layer: [N] its model layer index.
        measured_s: [P, N] seconds of the slowest device.
        predicted_s: [P, N] the same by the cost model.
        device_median_ape: Median error of single devices, slowest or not.
        median_ape: Median |predicted − measured| / measured over the points.
        p90_ape: Their 90th percentile.
        spearman: Rank correlation of predicted and measured over all points; None if all are equal.
        noise: Median half-width of the points' 95 % intervals, as a share.
        pairs: Pairs of placements on a layer of a batch whose slowest devices differ in load.
        pairs_beyond_noise: Those whose measured times differ by more than the noise.
        pairs_agreeing: Of these, those where the better one was predicted to be the better one.
        planners: By name.
        baseline: What speedups are against.
        interrupted: Whether Ctrl-C ended the measurement.
        notes: What is to be known beyond that.
    """

    device: str
    processor: str
    kernel: str
    clock: str
    scale: RunScale
    model: str
    fitted_points: int
    batches: int
    layers: int
    rounds: int
    slow_rounds: int
    planned: int
    planner_names: tuple[str, ...]
    point_batch: np.ndarray
    point_layer: np.ndarray
    measured_s: np.ndarray
    predicted_s: np.ndarray
    device_median_ape: float
    median_ape: float
    p90_ape: float
    spearman: float | None
    noise: float
    pairs: int
    pairs_beyond_noise: int
    pairs_agreeing: int
    planners: dict[str, ValidatedPlanner]
    baseline: str
    interrupted: bool = False
    notes: tuple[str, ...] = field(default=())

    @property
    def layers_run(self) -> int:
        """N."""
        return int(self.measured_s.shape[1])

    @property
    def points(self) -> int:
        """P × N."""
        return int(self.measured_s.size)

    @property
    def agreement(self) -> float | None:
        """Share of the pairs beyond noise where the prediction has the better one right."""
        if not self.pairs_beyond_noise:
            return None
        return self.pairs_agreeing / self.pairs_beyond_noise

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        points = [
            {
                "planner": name,
                "batch": int(self.point_batch[n]),
                "layer": int(self.point_layer[n]),
                "measured_s": float(self.measured_s[p, n]),
                "predicted_s": float(self.predicted_s[p, n]),
            }
            for p, name in enumerate(self.planner_names)
            for n in range(self.measured_s.shape[1])
        ]
        return {
            "device": self.device,
            "processor": self.processor,
            "kernel": self.kernel,
            "clock": self.clock,
            "scale": asdict(self.scale),
            "cost_model": self.model,
            "fitted_points": self.fitted_points,
            "batches": self.batches,
            "layers": self.layers,
            "layers_of_batches": self.measured_s.shape[1],
            "layers_of_batches_in_all": self.planned,
            "rounds": self.rounds,
            "slow_rounds": self.slow_rounds,
            "device_median_ape": self.device_median_ape,
            "median_ape": self.median_ape,
            "p90_ape": self.p90_ape,
            "spearman": self.spearman,
            "noise": self.noise,
            "pairs": {
                "compared": self.pairs,
                "beyond_noise": self.pairs_beyond_noise,
                "agreeing": self.pairs_agreeing,
                "agreement": self.agreement,
            },
            "baseline": self.baseline,
            "planners": {
                name: asdict(found) | {"gain_holds": found.gain_holds}
                for name, found in self.planners.items()
            },
            "goals": self.goals(),
            "points": points,
            "interrupted": self.interrupted,
            "notes": list(self.notes),
        }

    def goals(self) -> dict[str, bool | None]:
        """Which of the goals for a CPU are met; None where nothing can be said."""
        agreement = self.agreement
        return {
            f"median_ape <= {MEDIAN_ERROR_GOAL:g}": self.median_ape <= MEDIAN_ERROR_GOAL,
            f"spearman >= {RANK_GOAL:g}": None
            if self.spearman is None
            else self.spearman >= RANK_GOAL,
            f"agreement >= {PAIRS_GOAL:g}": None if agreement is None else agreement >= PAIRS_GOAL,
        }
