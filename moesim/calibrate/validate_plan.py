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
from moesim.calibrate.fit_cpu import FEWEST_POINTS
from moesim.calibrate.measure import pool_size, time_in_rounds
from moesim.calibrate.measurements import Workload, finish
from moesim.calibrate.torch_workloads import (
    CpuWorkloads,
    TritonWorkloads,
    Workloads,
    torch_module,
)
from moesim.calibrate.validate_cost import cpu_s, fit_cpu, fit_gpu
from moesim.calibrate.validate_loads import (
    DeviceLoads,
    RunOrder,
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
from moesim.operators.cpu_experts import (
    CpuExpertProfile,
)
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


@dataclass(frozen=True)
class ValidateOptions:
    """How to validate.

    Attributes:
        device: ``cuda`` or ``cpu``; None for a GPU if torch sees one.
        minutes: Wall time for the runs.
        seed: Of everything drawn.
        profile: Coefficients of a CPU to predict with (``moesim.cpu-experts/1``); None to fit
            some in the same run.
        machine: What runs loads; None for this machine. The tests have one that only pretends.
        now: Clock of the budget, with ``machine``.
    """

    device: str | None = None
    minutes: float = 3.0
    seed: int = 0
    profile: Path | None = None
    machine: Workloads | None = None
    now: Callable[[], float] | None = None


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
    on_gpu = _on_gpu(torch, options)
    placements = [outcome.scores[name].placement for name in names]
    rows = batches.tokens_per_device * batches.top_k
    scale = RunScale(outcome.model.expert_input_size, outcome.model.expert_width, 1, 1, "bf16")
    if not on_gpu:
        expert_rows = rows / max(1.0, min(outcome.experts / outcome.cluster.devices, rows))
        scale = choose_scale(outcome.model, rows, expert_rows, _dtype(torch, profile, options))
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
    order = RunOrder(loads, others)
    plan = [workload(scale, load) for load in order.plan]
    run, machine_notes = _machine(torch, plan, on_gpu, options)
    notes += machine_notes
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
    own_s = order.of_loads(samples_s)
    own = loads.loads[: own_s.shape[1]]
    if profile:
        coefficients = profile.fit(scale.dtype).coefficients
        predicted_s = cpu_s(coefficients, scale, own)
    else:
        times_s = np.median(order.of_others(samples_s), axis=0)
        predicted_s = (fit_gpu if on_gpu else fit_cpu)(scale, others, times_s, own)
    runs = DeviceRuns(loads.load_of, own_s, predicted_s)
    if len(samples_s) < ROUNDS_FOR_INTERVALS:
        notes.append(
            f"only {len(samples_s)} rounds fitted into the time: intervals and the comparison of "
            "pairs mean little"
        )
    found = _scored(outcome, names, runs, loads, options.seed)
    return replace(
        found,
        device="cuda" if on_gpu else "cpu",
        processor=torch.cuda.get_device_name() if on_gpu else environment.processor_name(),
        kernel=TritonWorkloads.kernel if on_gpu else CpuWorkloads.kernel,
        clock="cuda-event" if on_gpu else "thread-cpu",
        scale=scale,
        model="fitted in the same rounds" if profile is None else str(options.profile),
        fitted_points=len(others),
        rounds=len(samples_s),
        slow_rounds=len(slow),
        interrupted=rounds.interrupted,
        notes=tuple(notes),
    )


def _machine(
    torch: Any, plan: Sequence[Workload], on_gpu: bool, options: ValidateOptions
) -> tuple[Workloads, list[str]]:
    """What runs the loads, and what is to be said of it."""
    if options.machine is not None:
        return options.machine, []
    pool_bytes, notes = pool_size(torch, plan, on_gpu)
    if on_gpu:
        return TritonWorkloads(plan, pool_bytes), notes
    return CpuWorkloads(plan, pool_bytes, 1, "thread-cpu"), notes


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
    if options.device not in (None, "cpu", "cuda"):
        raise UsageError(f"unknown device {options.device}\nfix: use --validate-device cpu or cuda")
    if options.profile is not None:
        CpuExpertProfile.load(options.profile)
    torch = torch_module()
    _on_gpu(torch, options)
    return torch


def _on_gpu(torch: Any, options: ValidateOptions) -> bool:
    """Whether a GPU runs the experts."""
    seen = bool(torch.cuda.is_available()) and options.machine is None
    if options.device == "cuda" and not seen:
        raise UsageError("torch sees no GPU here\nfix: use --validate-device cpu")
    if options.profile is not None and options.device == "cuda":
        raise UsageError(
            "--validate-profile is of a CPU and --validate-device a GPU\nfix: leave out one of them"
        )
    return seen and options.device != "cpu" and options.profile is None


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
        device="",
        processor="",
        kernel="",
        clock="",
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
