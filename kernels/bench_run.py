"""Running a benchmark: check, then time case by case within a time budget, and keep everything.

Passes over the plan follow one another, so that a slow minute of the machine falls on one pass of
a case and not on all of it; within a case the kernels take turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from moesim import environment
from moesim.errors import InfeasibleError, UsageError
from moesim.kernels import bench_environment
from moesim.kernels.bench_cases import CPU_SCALE, MODELS, Case, Scale, plan_cases
from moesim.kernels.bench_check import TOLERANCES, check_cases, check_kernel, relative_error
from moesim.kernels.bench_configs import configured_kernels
from moesim.kernels.bench_file import (
    SCHEMA,
    add_samples,
    case_entries,
    plan_hash,
    read_bench,
    same_run,
    write_bench,
)
from moesim.kernels.bench_inputs import Operands, Source, fast_dtype, pool_size
from moesim.kernels.bench_kernels import Kernel, own_kernels
from moesim.kernels.bench_timing import CpuTimer, CudaTimer, Timed

__all__ = ["BenchOptions", "Machine", "bench", "chosen_cases", "cpu_scale", "guessed_s", "run_plan"]

PASSES = {"cuda": 2, "cpu": 3}
ROUNDS = {"cuda": 3, "cpu": 2}
"""Turns of every kernel in one pass over a case."""
CALLS = {"cuda": 7, "cpu": 1}
"""Calls in one turn."""
LEAST_OF = {"cuda": 1, "cpu": 2}
"""A sample is the least of so many calls in a row: on a CPU other programs stall single ones."""

MOST_MEMORY_BYTES = 60e9
"""Cases that need more are left out: an H100 of 80 GB also holds graphs and the flush buffer."""
COMPARED_ROWS = 8192

GUESS = {"cuda": (3e12, 6e14, 0.5), "cpu": (1e10, 1.5e11, 0.05)}
"""Bytes/s, FLOP/s and seconds of set-up that the time of a first pass is guessed by."""

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class BenchOptions:
    """What to run.

    Attributes:
        device: ``cuda`` or ``cpu``.
        out: File that receives everything, and that a rerun continues.
        minutes: Time for all of it, of this call.
        seed: Of loads and operands.
        fresh: Begin the file anew.
        models: Models whose shapes are run; all if empty.
        cases: Only cases whose names begin with one of these; all if empty.
        scale: What to divide shapes by; the device's usual if None.
        peers: Folder with peers' files, if any (:mod:`moesim.kernels.bench_peers`).
        system: Name of the machine; None for one made of its processor's.
        command: The command line, for the record.
    """

    device: str
    out: Path
    minutes: float = 8.0
    seed: int = 0
    fresh: bool = False
    models: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()
    scale: Scale | None = None
    peers: Path | None = None
    system: str | None = None
    command: str = ""


class Machine(Protocol):
    """What runs cases; the tests have one that only pretends."""

    def time(
        self, case: Case, first: bool
    ) -> tuple[dict[tuple[str, str], tuple[str, list[float]]], list[dict[str, str]]]:
        """Samples by kernel and configuration with their clock, and what failed and why."""
        ...


def chosen_cases(options: BenchOptions) -> tuple[Case, ...]:
    """The plan of the options.

    Raises:
        UsageError: If a model is unknown or nothing is left.
    """
    for name in options.models:
        if name not in MODELS:
            raise UsageError(f"no shapes of the model {name}\nfix: use {', '.join(MODELS)}")
    plan = plan_cases(options.device == "cuda", options.seed, options.scale, options.models)
    plan = tuple(
        case
        for case in plan
        if not options.cases or case.regime == "ceiling" or case.name.startswith(options.cases)
    )
    if all(case.regime == "ceiling" for case in plan):
        raise UsageError(
            f"no case begins with {' or '.join(options.cases)}\nfix: --dry-run lists all of them"
        )
    return plan


def cpu_scale(torch: Any) -> Scale:
    """The usual scale, in the number type that this CPU multiplies fastest."""
    return replace(CPU_SCALE, dtype=fast_dtype(torch))


def guessed_s(case: Case, device: str, kernels: int = 4) -> float:
    """Wall time of one pass over a case, before anything is known of the machine."""
    bytes_per_s, flop_per_s, set_up_s = GUESS[device]
    one_s = max(case.moved_bytes / bytes_per_s, case.flops / flop_per_s)
    calls = ROUNDS[device] * CALLS[device] * LEAST_OF[device] + 4
    made_s = case.memory_bytes / bytes_per_s / 4
    if case.every_config:
        kernels = 40
    return set_up_s + made_s + kernels * (calls * one_s + (0.1 if device == "cuda" else 0.0))


def bench(options: BenchOptions, progress: Progress = lambda share, text: None) -> dict[str, Any]:
    """Run or continue a benchmark.

    Returns:
        The document, which is also in the file; ``interrupted`` says whether Ctrl-C ended it.

    Raises:
        UsageError: If there is no such device, or the file is of another run.
        InfeasibleError: If none of our kernels is correct here.
    """
    import torch

    if options.device not in ("cuda", "cpu"):
        raise UsageError(f"unknown device {options.device}\nfix: use --device cpu or cuda")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("torch sees no GPU here\nfix: use --device cpu")
    if not 0 < options.minutes <= 24 * 60:
        raise UsageError(
            f"--minutes is {options.minutes:g}; allowed: above 0, at most a day\n"
            "fix: pass e.g. --minutes 5"
        )
    begin_s = time.monotonic()
    if options.device == "cpu" and options.scale is None:
        options = replace(options, scale=cpu_scale(torch))
    plan = chosen_cases(options)
    document = _begun(torch, options, plan)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        progress(0.0, "checking")
        kernels = _checked_kernels(torch, options, document, lambda text: progress(0.0, text))
        wrong = [(f["case"], f["kernel"], f["config"]) for f in document["failed"]]
        machine = TorchMachine(torch, options, plan, kernels, wrong)
        left_s = options.minutes * 60 - (time.monotonic() - begin_s)
        run_plan(plan, machine, document, options, left_s, progress)
    finally:
        torch.set_num_threads(threads_before)
    document["environment_after"] = _state_after(options.device)
    write_bench(options.out, document)
    return document


def _begun(torch: Any, options: BenchOptions, plan: Sequence[Case]) -> dict[str, Any]:
    """A new document, or the one in the file."""
    on_gpu = options.device == "cuda"
    clock = "cuda-event" if on_gpu else "thread-cpu"
    described = bench_environment.describe(torch, on_gpu, clock)
    processor = described.get("gpu", described["processor"])
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "ok": True,
        "kind": "bench",
        "device": options.device,
        "system": options.system or environment.system_name(processor),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": options.command,
        "seed": options.seed,
        "planned": len(plan),
        "plan_sha256": plan_hash(plan),
        "interrupted": False,
        "environment": described,
        "timing": {
            "passes": PASSES[options.device],
            "rounds_per_pass": ROUNDS[options.device],
            "calls_per_round": CALLS[options.device],
            "sample": f"least of {LEAST_OF[options.device]} calls in a row",
            "time": "median of the samples of all passes",
            "cache": "L2 flushed before every call"
            if on_gpu
            else "weights taken in turn from a pool above the last-level cache",
        },
        "ceilings": {},
        "left_out": {},
        "failed": [],
        "checks": [],
        "loads": {},
        "cases": [],
    }
    if options.out.exists() and not options.fresh:
        held = read_bench(options.out)
        same_run(held, document, options.out)
        return held | {"interrupted": False, "checks": []}
    return document


def _checked_kernels(
    torch: Any, options: BenchOptions, document: dict[str, Any], say: Callable[[str], None]
) -> list[Kernel]:
    """Kernels that are correct here."""
    from moesim.kernels.bench_peers import peer_kernels

    kernels = own_kernels(torch, options.device)
    peers, absent = peer_kernels(torch, options.device, options.peers)
    document["absent"] = absent
    source = Source(torch, options.device, options.seed + 1)
    cases = check_cases(options.device, (options.scale or Scale()).dtype)
    good = []
    for kernel in [*kernels, *peers]:
        found = check_kernel(torch, kernel, cases, source, say)
        document["checks"] += found
        if all(entry["ok"] for entry in found):
            good.append(kernel)
    if not good:
        raise InfeasibleError("no kernel gives correct results here; nothing was timed")
    return good


class TorchMachine:
    """The device that torch sees.

    Args:
        torch: The module.
        options: Device, seed.
        plan: All cases, to size a CPU's pool of weights.
        kernels: To time.
        wrong: Case, kernel and configuration that gave wrong results before: never timed.
    """

    def __init__(
        self,
        torch: Any,
        options: BenchOptions,
        plan: Sequence[Case],
        kernels: Sequence[Kernel],
        wrong: Iterable[tuple[str, str, str]] = (),
    ) -> None:
        self._torch, self._device, self._kernels = torch, options.device, list(kernels)
        self._wrong = set(wrong)
        pool_bytes = 0
        self._timer: CudaTimer | CpuTimer
        if options.device == "cuda":
            self._timer = CudaTimer(torch)
        else:
            self._timer = CpuTimer(torch)
            available = environment.available_memory_bytes() or 2**32
            pool_bytes = pool_size(tuple(plan), environment.cache_bytes(), available // 4)
        self._source = Source(torch, options.device, options.seed, pool_bytes)

    def time(
        self, case: Case, first: bool
    ) -> tuple[dict[tuple[str, str], tuple[str, list[float]]], list[dict[str, str]]]:
        """See :class:`Machine`."""
        failed: list[dict[str, str]] = []
        self._timer.begin_case()
        if case.op == "copy":
            ready = {("torch-copy", ""): self._copy(case)}
        else:
            operands = self._source.first(case, timing_only=True)
            kernels = [kernel for kernel in self._kernels if not kernel.takes(case)]
            if case.every_config and self._device == "cuda":
                kernels += configured_kernels(self._torch, case)
            kernels = [k for k in kernels if (case.name, k.name, k.config) not in self._wrong]
            if first and case.op in ("grouped-gemm", "experts"):
                kernels, failed = self._agreeing(kernels, operands)
                self._wrong |= {(f["case"], f["kernel"], f["config"]) for f in failed}
            ready = {}
            for kernel in kernels:
                try:
                    prepare = partial(self._prepared, kernel, operands)
                    ready[kernel.name, kernel.config] = self._timer.ready(prepare)
                except Exception as problem:  # one kernel that fails must not end the run
                    failed.append(_failure(case, kernel, problem))
        samples: dict[tuple[str, str], list[float]] = {key: [] for key in ready}
        for _ in range(ROUNDS[self._device]):
            for key, timed in ready.items():
                for _ in range(CALLS[self._device]):
                    calls = (timed.sample_s() for _ in range(LEAST_OF[self._device]))
                    samples[key].append(min(calls))
        clocks = {key: timed.clock for key, timed in ready.items()}
        if self._device == "cuda":
            ready.clear()
            self._torch.cuda.empty_cache()
        return {key: (clocks[key], samples[key]) for key in clocks}, failed

    def _prepared(self, kernel: Kernel, operands: Operands) -> Callable[[], Any]:
        return kernel.prepare(self._source.renewed(operands))

    def _copy(self, case: Case) -> Timed:
        torch = self._torch
        source = torch.ones(case.n, dtype=torch.int8, device=self._device)
        target = torch.zeros_like(source)
        # A graph copies more slowly than the same call outside of one: 3.2 and 4.3 TB/s on an H200.
        return self._timer.ready(lambda: lambda: target.copy_(source), graph=False)

    def _agreeing(
        self, kernels: Sequence[Kernel], operands: Operands
    ) -> tuple[list[Kernel], list[dict[str, str]]]:
        """Kernels whose result is that of the vendor's library, expert by expert, and the others.

        A large shape can overflow an index that the small checks do not reach.
        """
        # Wrong layouts of an expert layer's weights are for timing only.
        operands = replace(operands, timing_only=False)
        loop = next(k for k in own_kernels(self._torch, self._device) if k.name == "torch-loop")
        wanted = self._some_rows(loop.prepare(operands)())
        good, failed = [], []
        for kernel in kernels:
            try:
                self._compare(kernel, operands, wanted)
            except Exception as problem:  # one kernel that fails must not end the run
                failed.append(_failure(operands.case, kernel, problem))
            else:
                good.append(kernel)
        return good, failed

    def _compare(self, kernel: Kernel, operands: Operands, wanted: Any) -> None:
        out = self._some_rows(kernel.prepare(operands)())
        error = relative_error(self._torch, out, wanted)
        if error is None or error > TOLERANCES[operands.case.dtype]:
            raise ArithmeticError(f"differs from the vendor's product by {error}")

    def _some_rows(self, out: Any) -> Any:
        return out[:: max(1, len(out) // COMPARED_ROWS)].float()


def _failure(case: Case, kernel: Kernel, problem: Exception) -> dict[str, str]:
    reason = f"{type(problem).__name__}: {problem}".replace("\n", " ")[:300]
    return {"case": case.name, "kernel": kernel.name, "config": kernel.config, "reason": reason}


@dataclass
class _Clock:
    """What is left of the time, and what a pass over each case took."""

    budget_s: float
    now: Callable[[], float]
    took_s: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.begin_s = self.now()

    @property
    def share(self) -> float:
        return min(1.0, (self.now() - self.begin_s) / self.budget_s) if self.budget_s > 0 else 1.0

    def allows(self, case: Case, device: str) -> bool:
        needs_s = self.took_s.get(case.name, guessed_s(case, device))
        return self.now() - self.begin_s + needs_s <= self.budget_s


def run_plan(
    plan: Sequence[Case],
    machine: Machine,
    document: dict[str, Any],
    options: BenchOptions,
    budget_s: float,
    progress: Progress = lambda share, text: None,
    now: Callable[[], float] = time.monotonic,
) -> None:
    """Time what is missing, pass by pass, until the budget is spent; the file grows case by case.

    Args:
        plan: All cases, the most important first.
        machine: Runs them.
        document: Changed in place.
        options: Device and file.
        budget_s: Wall time.
        progress: Told the share that is done.
        now: The clock of the budget.
    """
    clock = _Clock(budget_s, now)
    passes = PASSES[options.device]
    done = {case.name: _passes(document, case) for case in plan}
    try:
        for pass_ in range(passes):
            for case in plan:
                if done[case.name] > pass_ or case.memory_bytes > MOST_MEMORY_BYTES:
                    continue
                if not clock.allows(case, options.device):
                    continue  # a smaller one behind it may fit
                progress(clock.share, f"pass {pass_ + 1} of {passes}: {case.name}")
                begin_s = now()
                samples, failed = machine.time(case, first=done[case.name] == 0)
                clock.took_s[case.name] = now() - begin_s
                done[case.name] += 1
                document["failed"] += [f for f in failed if f not in document["failed"]]
                add_samples(document, case, samples)
                _ceilings(document, case)
                _left_out(document, plan, done, options)
                write_bench(options.out, document)
    except KeyboardInterrupt:
        document["interrupted"] = True
    _left_out(document, plan, done, options)


def _passes(document: dict[str, Any], case: Case) -> int:
    """Passes over a case that the document holds; a failed case counts as visited once."""
    held = [entry["passes"] for entry in case_entries(document, case.name)]
    if not held and any(entry["case"] == case.name for entry in document["failed"]):
        return PASSES[document["device"]]
    return max(held, default=0)


def _ceilings(document: dict[str, Any], case: Case) -> None:
    entries = case_entries(document, case.name)
    if case.regime != "ceiling" or not entries:
        return
    fastest_s = min(entry["time_s"] for entry in entries)
    if case.op == "copy":
        document["ceilings"]["copy_bytes_per_s"] = case.moved_bytes / fastest_s
    else:
        document["ceilings"]["dense_flop_per_s"] = case.flops / fastest_s
        document["environment"]["state_at_work"] = _state_after(document["device"])


def _left_out(
    document: dict[str, Any],
    plan: Sequence[Case],
    done: dict[str, int],
    options: BenchOptions,
) -> None:
    """Cases without any time, and why."""
    failed = {entry["case"] for entry in document["failed"]}
    too_large = [case.name for case in plan if case.memory_bytes > MOST_MEMORY_BYTES]
    missing = [case.name for case in plan if not done[case.name] and case.name not in failed]
    document["left_out"] = {
        "needs more memory than 60 GB": too_large,
        "no time left: run again to continue": [n for n in missing if n not in too_large],
    }
    fewest = min((done[case.name] for case in plan if case.name not in too_large), default=0)
    document["complete"] = fewest >= PASSES[options.device]


def _state_after(device: str) -> dict[str, Any]:
    """How busy the machine is now."""
    if device == "cuda":
        return bench_environment.gpu_state()
    return {
        "load_average": environment.load_average(),
        "cpu_pressure_percent": environment.cpu_pressure_percent(),
    }
