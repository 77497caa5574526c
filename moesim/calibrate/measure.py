"""Measure this machine: time a plan of workloads in interleaved rounds, within a time budget.

A busy machine is the normal case. Against slow phases every round visits all workloads in an order
of its own; against single stalls a sample is the least of a few runs in a row; what other programs
take is left out where one thread's own processor time can be read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np

from moesim import environment
from moesim.calibrate.measure_plan import PlanLimits, plan_workloads
from moesim.calibrate.measurements import Environment, Measurements, Workload, finish
from moesim.calibrate.torch_workloads import (
    Clock,
    CpuWorkloads,
    CudaWorkloads,
    Workloads,
    multiplies_int8,
    torch_module,
)
from moesim.errors import InfeasibleError, UsageError
from moesim.operators.cpu_experts import ExpertShape

__all__ = ["MeasureOptions", "Rounds", "measure", "pool_size", "time_in_rounds"]

REPEATS = 2
SHORT_S, SHORT_REPEATS = 2e-3, 4
"""A sample is the least of so many runs in a row; of more where a run is short."""

PLANNED_ROUNDS = 5
"""Usually so many rounds fit into the time before the plan is cut."""
MOST_ROUNDS = 30
WARM_UP_SHARE = 0.2
"""Share of the time after which the first visit ends and what is left of the plan is dropped."""

BUSY_PRESSURE_PERCENT = 5.0
"""Above this CPU pressure threads wait for each other: a parallel region of 1 ms takes 10 ms."""
BUSY_LOAD = 0.5
"""Runnable tasks per processor above which a machine counts as busy where pressure is unknown."""

LEAST_POOL_BYTES = 2**28
POOL_CACHES = 1.25
"""Size of the pool of weights in last-level caches."""

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class MeasureOptions:
    """What to measure and how.

    Attributes:
        device: ``cpu`` or ``cuda``.
        minutes: Time for all of it.
        seed: Seed of the plan and of the order of every round.
        threads: Threads of the matrix library; None for one on a busy machine, else all.
        clock: Clock; None for the thread's own processor time with one thread, else wall time.
        limits: Bounds of the plan; None for the usual ones.
        pool_bytes: Size of the pool of weights; None for one above the last-level cache.
        system: Name of the machine; None for one made of its processor's.
        command: The command line, for the record.
    """

    device: str = "cpu"
    minutes: float = 3.0
    seed: int = 0
    threads: int | None = None
    clock: Clock | None = None
    limits: PlanLimits | None = None
    pool_bytes: int | None = None
    system: str | None = None
    command: str = ""


@dataclass
class Rounds:
    """What came out of the rounds; filled while they run, so that an interruption keeps it.

    Attributes:
        workloads: [P] what was timed; the start of the plan, as much as fits into the time.
        samples_s: [P] samples of each, one per round.
        rounds: Rounds that visited all workloads.
        interrupted: Whether Ctrl-C ended them.
    """

    workloads: list[Workload]
    samples_s: list[list[float]]
    rounds: int = 0
    interrupted: bool = False


def measure(options: MeasureOptions, progress: Progress = lambda share, text: None) -> Measurements:
    """Measure this machine.

    Raises:
        MissingExtraError: If torch is not installed.
        UsageError: If there is no such device, or an option does not fit it.
        InfeasibleError: If not even one workload fits into the time.
        KeyboardInterrupt: If it comes before anything was measured; later ones end the
            measurement, and the result says so.
    """
    torch = torch_module()
    if options.device not in ("cpu", "cuda"):
        raise UsageError(f"unknown device {options.device}\nfix: use --device cpu or cuda")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "torch sees no GPU here\nfix: use --device cpu, or a build of torch for CUDA"
        )
    if not 0 < options.minutes <= 24 * 60:
        raise UsageError(
            f"--minutes is {options.minutes:g}; allowed: above 0, at most a day\n"
            "fix: pass e.g. --minutes 5"
        )
    begin_s = time.monotonic()
    on_gpu = options.device == "cuda"
    before = (environment.load_average(), environment.cpu_pressure_percent())
    threads, clock, notes = _threads_and_clock(options, *before)
    limits = options.limits or (_gpu_limits() if on_gpu else PlanLimits())
    if not on_gpu and "int8" in limits.dtypes and not multiplies_int8(torch):
        limits = replace(limits, dtypes=tuple(name for name in limits.dtypes if name != "int8"))
        notes.append("int8 is left out: this build of torch has no such matrix product here")
    plan = plan_workloads(limits, options.seed)
    pool_bytes, pool_notes = pool_size(torch, plan, on_gpu, options.pool_bytes)
    progress(0.0, f"preparing {pool_bytes / 1e6:.0f} MB of weights")
    threads_before = torch.get_num_threads()
    run: Workloads
    try:
        if on_gpu:
            run, kernel = CudaWorkloads(plan, pool_bytes), CudaWorkloads.kernel
        else:
            run, kernel = CpuWorkloads(plan, pool_bytes, threads, clock), CpuWorkloads.kernel
        rounds = time_in_rounds(
            plan,
            run,
            budget_s=max(1.0, options.minutes * 60 - (time.monotonic() - begin_s)),
            seed=options.seed,
            progress=progress,
        )
    finally:
        torch.set_num_threads(threads_before)
    points, slow = finish(rounds.workloads, rounds.samples_s)
    if not points:
        if rounds.interrupted:
            raise KeyboardInterrupt
        raise InfeasibleError("no workload fits into the time\nfix: allow more --minutes")
    dropped = len(plan) - len(rounds.workloads)
    if dropped and not rounds.interrupted:
        notes.append(
            f"{dropped} of {len(plan)} planned points did not fit into {options.minutes:g} minutes"
        )
    processor = torch.cuda.get_device_name() if on_gpu else environment.processor_name()
    return Measurements(
        system=options.system or environment.system_name(processor),
        device="cuda" if on_gpu else "cpu",
        engine="torch",
        version=str(torch.__version__),
        kernel=kernel,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command=options.command,
        seed=options.seed,
        planned=len(plan),
        rounds=rounds.rounds,
        slow_rounds=slow,
        interrupted=rounds.interrupted,
        environment=_environment(processor, threads, clock, pool_bytes, before, torch, on_gpu),
        notes=tuple(notes + pool_notes),
        points=points,
    )


def time_in_rounds(
    plan: Sequence[Workload],
    run: Workloads,
    *,
    budget_s: float,
    seed: int = 0,
    planned_rounds: int = PLANNED_ROUNDS,
    insist: bool = False,
    progress: Progress = lambda share, text: None,
    now: Callable[[], float] = time.monotonic,
) -> Rounds:
    """Time a plan in rounds until the budget is spent.

    A first visit warms everything up, is not counted, and tells how much of the plan fits.

    Args:
        plan: Workloads; its start is kept if not all of it fits.
        run: Runs one of them.
        budget_s: Wall time for everything.
        seed: Seed of the orders.
        planned_rounds: The plan is cut so that so many fit; more are made if the time allows.
        insist: Cut the plan again after a round that was slower than expected.
        progress: Told the share that is done.
        now: The clock of the budget.

    Returns:
        Samples so far, also after an interruption by Ctrl-C.
    """
    begin_s = now()
    result = Rounds([], [])
    try:
        repeats = _first_visit(plan, run, result, budget_s, planned_rounds, now, progress)
        rng = np.random.default_rng(seed)
        round_s = 0.0
        while result.workloads and result.rounds < MOST_ROUNDS:
            round_begin_s = now()
            if result.rounds and round_begin_s - begin_s + round_s > budget_s:
                break
            for done, place in enumerate(rng.permutation(len(result.workloads))):
                workload = result.workloads[place]
                best_s = min(run.seconds(workload) for _ in range(repeats[place]))
                result.samples_s[place].append(best_s)
                if done % 16 == 0:
                    progress(min(1.0, (now() - begin_s) / budget_s), f"round {result.rounds + 1}")
            result.rounds += 1
            round_s = now() - round_begin_s
            missing = planned_rounds - result.rounds
            if insist and missing > 0:
                share = (budget_s - (now() - begin_s)) / (missing * round_s)
                kept = max(1, int(len(result.workloads) * min(1.0, share)))
                round_s *= kept / len(result.workloads)
                del result.workloads[kept:], result.samples_s[kept:], repeats[kept:]
    except KeyboardInterrupt:
        result.interrupted = True
    return result


def _first_visit(
    plan: Sequence[Workload],
    run: Workloads,
    result: Rounds,
    budget_s: float,
    planned_rounds: int,
    now: Callable[[], float],
    progress: Progress,
) -> list[int]:
    """Visit the plan once and keep as much of it as fits; repeats of each workload kept."""
    begin_s = now()
    repeats: list[int] = []
    costs_s: list[float] = []
    for place, workload in enumerate(plan):
        if place and now() - begin_s > WARM_UP_SHARE * budget_s:
            break
        run.seconds(workload)  # may compile a kernel: seconds that no later visit takes
        start_s = now()
        own_s = run.seconds(workload)
        repeats.append(SHORT_REPEATS if own_s < SHORT_S else REPEATS)
        costs_s.append((now() - start_s) * repeats[-1])
        if place % 16 == 0:
            progress(min(1.0, (now() - begin_s) / budget_s), "first visit")
    left_s = budget_s - (now() - begin_s)
    fits = np.cumsum(costs_s) * planned_rounds <= left_s
    kept = max(1, int(fits.sum())) if costs_s else 0
    result.workloads.extend(plan[:kept])
    result.samples_s.extend([] for _ in range(kept))
    return repeats[:kept]


def _threads_and_clock(
    options: MeasureOptions, load: float | None, pressure_percent: float | None
) -> tuple[int, Clock, list[str]]:
    """Threads, clock, and what is to be said about them."""
    notes: list[str] = []
    if options.device == "cuda":
        if options.clock not in (None, "cuda-event"):
            raise UsageError("a GPU is timed by its own events\nfix: leave out --clock")
        return 1, "cuda-event", notes
    usable = environment.usable_processors()
    threads = options.threads
    if threads is None:
        if pressure_percent is not None:
            busy, sign = pressure_percent > BUSY_PRESSURE_PERCENT, "CPU pressure"
            value = f"{pressure_percent:.0f} %"
        else:
            busy, sign = load is not None and load > BUSY_LOAD * usable, "load average"
            value = f"{load or 0:.1f}"
        threads = 1 if busy else usable
        if busy and usable > 1:
            notes.append(
                f"the machine is busy ({sign} {value}): one thread of {usable} was measured, by "
                f"its own processor time; --threads {usable} on a quiet machine measures all"
            )
    if not 1 <= threads <= usable:
        raise UsageError(f"--threads is {threads}; allowed: 1 to {usable} usable processors")
    clock: Clock = options.clock or ("thread-cpu" if threads == 1 else "wall")
    if clock == "cuda-event" or (clock == "thread-cpu" and threads > 1):
        raise UsageError(
            f"the clock {clock} cannot time {threads} threads of the CPU\n"
            "fix: use --clock wall, or --threads 1"
        )
    return threads, clock, notes


def pool_size(
    torch: object, plan: Sequence[Workload], on_gpu: bool = False, asked_bytes: int | None = None
) -> tuple[int, list[str]]:
    """Size of the pool of weights, and a note if it is no larger than the cache."""
    largest = max(_needed_bytes(workload) for workload in plan)
    if on_gpu:
        properties = torch.cuda.get_device_properties(0)  # type: ignore[attr-defined]
        cache, available = int(properties.L2_cache_size), int(properties.total_memory)
    else:
        cache = environment.cache_bytes() or 0
        available = environment.available_memory_bytes() or 8 * LEAST_POOL_BYTES
    wanted = max(LEAST_POOL_BYTES, 2 * largest, int(POOL_CACHES * cache))
    size = max(asked_bytes or min(wanted, available // 4), largest)
    notes = []
    if size <= cache:
        notes.append(
            f"the pool of weights ({size / 1e6:.0f} MB) is no larger than the cache "
            f"({cache / 1e6:.0f} MB): weights may have come from the cache"
        )
    return size // 4096 * 4096 + 4096, notes


def _needed_bytes(workload: Workload) -> int:
    if workload.kind != "experts":
        return workload.moved_bytes
    shape = ExpertShape(workload.hidden, workload.inter, dtype=workload.dtype)
    return len(workload.expert_rows) * int(shape.weight_bytes)


def _gpu_limits() -> PlanLimits:
    """Larger calls, and the link to the host; 8-bit products have other kernels there."""
    return PlanLimits(
        dtypes=("bf16",),
        call_bytes=2e9,
        call_flops=5e12,
        cache_bytes=0,
        copies=("read", "copy", "host-to-device", "device-to-host"),
    )


def _environment(
    processor: str,
    threads: int,
    clock: Clock,
    pool_bytes: int,
    before: tuple[float | None, float | None],
    torch: object,
    on_gpu: bool,
) -> Environment:
    after = (environment.load_average(), environment.cpu_pressure_percent())
    packages = ("torch", "numpy", "triton") if on_gpu else ("torch", "numpy")
    versions = environment.versions(*packages)
    if not on_gpu:
        capability = torch.backends.cpu.get_cpu_capability()  # type: ignore[attr-defined]
        versions["torch_cpu_capability"] = str(capability)
    return Environment(
        processor=processor,
        processors_usable=environment.usable_processors(),
        threads=threads,
        clock=clock,
        cache_bytes=environment.cache_bytes(),
        memory_bytes=environment.memory_bytes(),
        weight_pool_bytes=pool_bytes,
        clock_mhz=environment.clock_mhz(),
        frequency_governor=environment.frequency_governor(),
        load_average=tuple(v for v in (before[0], after[0]) if v is not None),
        cpu_pressure_percent=tuple(v for v in (before[1], after[1]) if v is not None),
        versions=versions,
        variables=environment.library_variables(),
    )
