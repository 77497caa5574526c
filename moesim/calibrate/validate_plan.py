"""Validate placements by running the experts of every device, and predicting what they took.

For contiguous, EPLB's and the chosen placement, on batches that no planner saw: each device's
experts run with the tokens that they would get, and a layer takes as long as its slowest device.
The prediction comes from a cost model fitted in the same rounds on other loads, or from a profile.
On a busy machine the noise is large, so all loads take turns within every round, a time is the
median over rounds of the least of a few runs, and one thread's own processor time is what counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moesim import environment
from moesim.calibrate.cpu_layers import Layers
from moesim.calibrate.fit_cpu import FEWEST_POINTS, fit_layers
from moesim.calibrate.measure import pool_size, time_in_rounds
from moesim.calibrate.measurements import Workload, finish
from moesim.calibrate.torch_workloads import CpuWorkloads, Workloads, torch_module
from moesim.calibrate.validate_loads import (
    DeviceLoads,
    choose_scale,
    device_loads,
    fit_loads,
    workload,
)
from moesim.calibrate.validate_score import (
    DeviceRuns,
    bootstrap_slowest,
    compare_pairs,
    gains,
    half_width,
    rank_correlation,
)
from moesim.errors import InfeasibleError, InputError, UsageError
from moesim.extras import require
from moesim.kernels.bench_inputs import fast_dtype
from moesim.operators.cpu_experts import CpuExpertCoefficients, CpuExpertProfile, cpu_experts_s
from moesim.planners.outcome import PlanOutcome
from moesim.planners.validation import PlacementValidation, RunScale

__all__ = ["COMPARED", "ValidateOptions", "check_options", "validate_plan"]

COMPARED = ("eplb",)
"""Planners that are validated beside the baseline and the chosen one."""

PLANNED_ROUNDS = 12
"""More than a measurement for a fit makes: placements differ by less than a sample's noise."""

ROUNDS_FOR_INTERVALS = 5
"""Fewer rounds give no interval worth the name; a note says so."""

Progress = Callable[[float, str], None]
Predict = Callable[[Sequence[tuple[int, ...]]], np.ndarray]
"""[U] seconds of loads."""


@dataclass(frozen=True)
class ValidateOptions:
    """How to validate.

    Attributes:
        device: ``cpu``; None for a GPU if there is one.
        minutes: Wall time for the runs.
        seed: Of everything drawn.
        profile: Coefficients to predict with (``moesim.cpu-experts/1``); None to fit them here.
        machine: What runs loads; None for this machine. The tests have one that only pretends.
        now: Clock of the budget, with ``machine``.
    """

    device: str | None = None
    minutes: float = 3.0
    seed: int = 0
    profile: Path | None = None
    machine: Workloads | None = None
    now: Callable[[], float] | None = None


@dataclass(frozen=True)
class _Order:
    """What is run in which order: however little time there is, it holds something of both.

    The loads of the first layer of a batch, then the others that the cost model is fitted on, then
    the loads of the rest. A layer's loads are numbered before those of later layers.
    """

    loads: DeviceLoads
    others: tuple[tuple[int, ...], ...]

    @property
    def lead(self) -> int:
        """Loads of the first layer."""
        return int(self.loads.load_of[:, 0].max()) + 1

    @property
    def plan(self) -> tuple[tuple[int, ...], ...]:
        return (*self.loads.loads[: self.lead], *self.others, *self.loads.loads[self.lead :])

    def fitted_on(self, timed: int) -> tuple[tuple[int, ...], ...]:
        """Others among the first ``timed`` of the plan."""
        return self.others[: max(0, timed - self.lead)]

    def measured(self, timed: int) -> DeviceLoads:
        """The layers of batches all of whose loads are among the first ``timed`` of the plan."""
        own = min(timed, self.lead) + max(0, timed - self.lead - len(self.others))
        missing = np.flatnonzero((self.loads.load_of >= own).any(axis=(0, 2)))
        return self.loads.first(int(missing[0]) if len(missing) else len(self.loads.batch))

    def of_others(self, samples_s: np.ndarray) -> np.ndarray:
        """[R, others] samples."""
        return samples_s[:, self.lead : self.lead + len(self.others)]

    def of_loads(self, samples_s: np.ndarray) -> np.ndarray:
        """[R, loads] samples."""
        behind = self.lead + len(self.others)
        return np.concatenate([samples_s[:, : self.lead], samples_s[:, behind:]], axis=1)


def validate_plan(
    outcome: PlanOutcome, options: ValidateOptions, progress: Progress = lambda share, text: None
) -> PlacementValidation:
    """Run every device's experts for the placements of an outcome.

    Raises:
        MoesimError: If :func:`check_options` refuses.
        InfeasibleError: If the time is too short for anything.
        KeyboardInterrupt: If it comes before anything was measured; a later one ends the
            measurement, and the result says so.
    """
    torch = check_options(options)
    profile = None if options.profile is None else CpuExpertProfile.load(options.profile)
    names = _names(outcome)
    batches = outcome.holdout_batches or outcome.planning_batches
    if batches is None:
        raise UsageError("the outcome holds no batches to run")
    notes = []
    if outcome.holdout_batches is None:
        notes.append("nothing was held out: the batches are those that were planned on")
    dtype = _dtype(torch, profile, options)
    placements = [outcome.scores[name].placement for name in names]
    tokens = batches.tokens_per_device * batches.top_k
    active = min(outcome.experts / outcome.cluster.devices, tokens)
    scale = choose_scale(outcome.model, tokens, tokens / active, dtype)
    loads = device_loads(
        batches,
        placements,
        outcome.cluster,
        outcome.comm,
        outcome.phase,
        scale.rows_divisor,
        options.seed,
    )
    others = () if profile else fit_loads(loads, placements[0].slots_per_device, options.seed)
    order = _Order(loads, others)
    plan = [workload(scale, load) for load in order.plan]
    run = options.machine
    if run is None:
        pool_bytes, pool_notes = pool_size(torch, plan)
        run, notes = CpuWorkloads(plan, pool_bytes, 1, "thread-cpu"), notes + pool_notes
    rounds = time_in_rounds(
        plan,
        run,
        budget_s=options.minutes * 60,
        seed=options.seed,
        planned_rounds=PLANNED_ROUNDS,
        insist=True,
        progress=progress,
        **({} if options.now is None else {"now": options.now}),
    )
    samples_s, slow = _samples(rounds.workloads, rounds.samples_s, rounds.interrupted)
    loads = order.measured(samples_s.shape[1])
    others = order.fitted_on(samples_s.shape[1])
    if not len(loads.batch) or (not profile and len(others) < FEWEST_POINTS):
        raise InfeasibleError(
            "not one layer of a batch could be run in the time\n"
            "fix: allow more --validate-minutes, or fewer devices per cluster"
        )
    progress(1.0, "fitting and comparing")
    if profile:
        coefficients = profile.fit(dtype).coefficients
    else:
        coefficients = _fitted(scale, others, np.median(order.of_others(samples_s), axis=0))
    own_s = order.of_loads(samples_s)
    predicted_s = _predicted_s(coefficients, scale, loads.loads[: own_s.shape[1]])
    runs = DeviceRuns(loads.load_of, own_s, predicted_s)
    if len(samples_s) < ROUNDS_FOR_INTERVALS:
        notes.append(
            f"only {len(samples_s)} rounds fitted into the time: intervals and the comparison of "
            "pairs mean little"
        )
    found = _scored(outcome, names, runs, loads, options.seed)
    return replace(
        found,
        processor=environment.processor_name(),
        scale=scale,
        model="fitted in the same rounds" if profile is None else str(options.profile),
        fitted_points=len(others),
        rounds=len(samples_s),
        slow_rounds=len(slow),
        interrupted=rounds.interrupted,
        notes=tuple(notes),
    )


def check_options(options: ValidateOptions) -> Any:
    """Torch, once everything that can be known beforehand fits.

    Raises:
        MissingExtraError: If torch or scipy are not installed.
        UsageError: If an option does not fit.
        InputError: If the profile cannot be read.
    """
    require("scipy", "measured", "plan --validate")
    if not 0 < options.minutes <= 24 * 60:
        raise UsageError(
            f"--validate-minutes is {options.minutes:g}; allowed: above 0, at most a day\n"
            "fix: pass e.g. --validate-minutes 3"
        )
    if options.device not in (None, "cpu"):
        raise UsageError(f"unknown device {options.device}\nfix: use --validate-device cpu")
    if options.profile is not None:
        CpuExpertProfile.load(options.profile)
    return torch_module()


def _names(outcome: PlanOutcome) -> tuple[str, ...]:
    """The baseline, what it is compared with, and the chosen one."""
    wanted = (outcome.baseline, *COMPARED, outcome.chosen)
    return tuple(name for name in dict.fromkeys(wanted) if name in outcome.scores)


def _dtype(torch: Any, profile: CpuExpertProfile | None, options: ValidateOptions) -> str:
    """The type that this CPU multiplies fastest, or one that the profile has."""
    fast = "fp32" if options.machine else fast_dtype(torch)
    if profile is None or any(fit.coefficients.dtype == fast for fit in profile.fits):
        return fast
    for fit in profile.fits:
        if fit.coefficients.dtype in ("fp32", "bf16"):
            return fit.coefficients.dtype
    raise InputError(
        "the profile has no floating-point type",
        file=options.profile,
        field="fits",
        allowed="fp32 or bf16",
        fix="measure one with: moesim calibrate measure",
    )


def _samples(
    workloads: Sequence[Workload], samples_s: Sequence[Sequence[float]], interrupted: bool
) -> tuple[np.ndarray, tuple[int, ...]]:
    """[R, U] samples of the rounds that count, and those that do not.

    Samples are divided by how much slower than usual their round was (the median over all loads):
    loads take turns within a round, so a slow minute says nothing of any of them.
    """
    rounds = min((len(values) for values in samples_s), default=0)
    if not rounds:
        if interrupted:
            raise KeyboardInterrupt
        raise InfeasibleError(
            "not one round fits into the time\nfix: allow more --validate-minutes"
        )
    whole = [values[:rounds] for values in samples_s]
    _, slow = finish(workloads, whole)
    kept = [number for number in range(rounds) if number not in slow]
    samples = np.array(whole).T[kept]
    slowdown = np.median(samples / np.median(samples, axis=0), axis=1, keepdims=True)
    return samples / slowdown, slow


def _fitted(
    scale: RunScale, loads: Sequence[tuple[int, ...]], times_s: np.ndarray
) -> CpuExpertCoefficients:
    return fit_layers(_layers(scale, loads), times_s)[0]


def _layers(scale: RunScale, loads: Sequence[tuple[int, ...]]) -> Layers:
    rows = np.zeros((len(loads), max(len(load) for load in loads)))
    for place, load in enumerate(loads):
        rows[place, : len(load)] = load
    ones = np.ones(len(loads), np.int64)
    cached = np.zeros(len(loads), bool)
    return Layers(rows, ones * scale.hidden, ones * scale.inter, cached, scale.dtype)


def _predicted_s(
    coefficients: CpuExpertCoefficients, scale: RunScale, loads: Sequence[tuple[int, ...]]
) -> np.ndarray:
    layers = _layers(scale, loads)
    return cpu_experts_s(coefficients, layers.rows, layers.shape).total_s


def _scored(
    outcome: PlanOutcome,
    names: tuple[str, ...],
    runs: DeviceRuns,
    loads: DeviceLoads,
    seed: int,
) -> PlacementValidation:
    """Everything that the runs say; the machine's side of it is filled in by the caller."""
    measured_s, predicted_s = runs.slowest_s(runs.times_s), runs.slowest_s(runs.predicted_s)
    draws = bootstrap_slowest(runs, seed)
    pairs = compare_pairs(runs, draws)
    ape = np.abs(predicted_s / measured_s - 1)
    used = np.unique(runs.load_of[runs.load_of >= 0])
    device_ape = np.abs(runs.predicted_s[used] / runs.times_s[used] - 1)
    return PlacementValidation(
        device="cpu",
        processor="",
        kernel=CpuWorkloads.kernel,
        clock="thread-cpu",
        scale=RunScale(0, 0, 1, 1, ""),
        model="",
        fitted_points=0,
        batches=len(np.unique(loads.batch)),
        layers=len(np.unique(loads.layer)),
        rounds=0,
        slow_rounds=0,
        planned=outcome.scores[names[0]].placement.layers
        * (outcome.holdout_batches or outcome.planning_batches).count,  # type: ignore[union-attr]
        planner_names=names,
        point_batch=loads.batch,
        point_layer=np.array(outcome.moe_layers)[loads.layer],
        measured_s=measured_s,
        predicted_s=predicted_s,
        device_median_ape=float(np.median(device_ape)),
        median_ape=float(np.median(ape)),
        p90_ape=float(np.quantile(ape, 0.9)),
        spearman=rank_correlation(predicted_s, measured_s),
        noise=float(np.median(half_width(draws) / measured_s)),
        pairs=pairs.compared,
        pairs_beyond_noise=pairs.beyond_noise,
        pairs_agreeing=pairs.agreeing,
        planners=gains(names, outcome.baseline, runs, draws),
        baseline=outcome.baseline,
    )
