"""When to plan again: a trace whose use of experts drifts, walked window by window.

A window is a stretch of the trace and stands for some number of engine steps. At its start a policy
may plan again from what was counted in the windows before it, never from what is to come; the
change pauses serving. Every window is priced under every policy's placement:

* **contiguous**: no plan at all;
* **frozen**: planned once, after the first window;
* **periodic**: planned again every so many windows (SGLang's ``--enable-eplb``);
* **threshold**: planned again when the window before was less balanced than a bound (SGLang's
  ``--eplb-min-rebalancing-utilization-threshold``);
* **oracle**: the best placement of any policy or of a plan for the window itself, without a pause:
  what foresight would reach with this planner.

Before anything has been counted, all policies but the oracle run the contiguous placement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from moesim.cluster import Cluster
from moesim.errors import InputError, MissingExtraError, UsageError
from moesim.memory import check_memory
from moesim.model import ModelSpec
from moesim.placement import Placement
from moesim.planners.align import align
from moesim.planners.migration import migration
from moesim.planners.moves import count_moves, limit_moves
from moesim.planners.outcome import PlanRequest
from moesim.planners.registry import find_planner, run_planner
from moesim.planners.setting import expert_slots, model_and_cluster, placement_problem
from moesim.planners.sources import PlanWorkload, from_parts, trace_of_model
from moesim.step import StepCost
from moesim.traces.bundle import Trace
from moesim.workload import stretch

__all__ = ["POLICIES", "Drift", "PolicyRun", "Rebalancing", "Window", "simulate_rebalancing"]

POLICIES = ("contiguous", "frozen", "periodic", "threshold", "oracle")
FEWEST_WINDOWS = 3
"""One to count in, one to run the plan in, one to see whether it lasts."""
MOST_WINDOWS = 1000
"""Guard against a ``--window-tokens`` that was meant to be something else."""


@dataclass(frozen=True)
class Drift:
    """How the trace is walked, and what a change costs.

    Attributes:
        window_tokens: Tokens of the trace in a window; a shorter rest at the end is left out.
        steps: Engine steps that a window stands for; SGLang plans again every 1000
            (``--eplb-rebalance-num-iterations``).
        history: Windows that a plan is made from.
        period: Windows between two plans of the periodic policy.
        below: Balance (mean over layers and batches of mean/max device load) under which the
            threshold policy plans again; 0.7 is a choice of ours.
        pause_s: Seconds without steps of a change, at least what the links take. 2 to 3 s were
            measured of full rebalances of Qwen3-235B in SGLang (OEPLB's re-runs of MoETuner).
    """

    window_tokens: int = 2048
    steps: int = 1000
    history: int = 1
    period: int = 1
    below: float = 0.7
    pause_s: float = 2.5

    def __post_init__(self) -> None:
        for name in ("window_tokens", "steps", "history", "period"):
            if getattr(self, name) < 1:
                raise UsageError(
                    f"--{name.replace('_', '-')} must be at least 1; found {getattr(self, name)}"
                )
        if not 0 < self.below <= 1:
            raise UsageError(
                f"--below is a balance, above 0 and at most 1; found {self.below}\n"
                "fix: pass e.g. --below 0.7"
            )
        if not 0 <= self.pause_s < float("inf"):
            raise UsageError(
                f"--pause is seconds from 0 up; found {self.pause_s}\nfix: pass e.g. --pause 2.5"
            )


@dataclass(frozen=True)
class Window:
    """One window under one policy.

    Attributes:
        step_s: Seconds of a step.
        balance: Mean over layers and batches of mean/max device load.
        moves: Copies of experts moved at its start.
        moved_bytes: Their weights.
        pause_s: Seconds without steps at its start.
    """

    step_s: float
    balance: float
    moves: int = 0
    moved_bytes: float = 0.0
    pause_s: float = 0.0


@dataclass(frozen=True)
class PolicyRun:
    """A policy over all windows.

    Attributes:
        windows: In order.
        steps: Per window.
    """

    windows: tuple[Window, ...]
    steps: int

    @cached_property
    def stepping_s(self) -> float:
        """Seconds of all steps."""
        return self.steps * sum(window.step_s for window in self.windows)

    @cached_property
    def paused_s(self) -> float:
        """Seconds of all pauses."""
        return sum(window.pause_s for window in self.windows)

    @property
    def total_s(self) -> float:
        """Steps and pauses."""
        return self.stepping_s + self.paused_s

    @property
    def rebalances(self) -> int:
        """Changes of placement."""
        return sum(window.moves > 0 for window in self.windows)

    @property
    def moves(self) -> int:
        """Copies of experts moved."""
        return sum(window.moves for window in self.windows)

    @property
    def moved_bytes(self) -> float:
        """Their weights."""
        return sum(window.moved_bytes for window in self.windows)

    @property
    def balance(self) -> float:
        """Mean over windows."""
        return sum(window.balance for window in self.windows) / len(self.windows)

    @property
    def worst_balance(self) -> float:
        """Of any window."""
        return min(window.balance for window in self.windows)


@dataclass(frozen=True)
class Rebalancing:
    """The study.

    Attributes:
        model: Sizes.
        cluster: Devices.
        request: What was asked of the planner.
        drift: How the trace was walked.
        trace_name: Of the trace.
        trace_sha256: Of its routing.
        domains: [W] the domain most tokens of a window are of; empty if the trace knows none.
        runs: By policy.
        step_tokens: Of a step, over all devices.
        evidence: The weakest that went into prices.
        kernels: What priced each half of a layer.
    """

    model: ModelSpec
    cluster: Cluster
    request: PlanRequest
    drift: Drift
    trace_name: str
    trace_sha256: str
    domains: tuple[str, ...]
    runs: dict[str, PolicyRun]
    step_tokens: int
    evidence: str
    kernels: dict[str, str]

    def tokens_per_s(self, policy: str) -> float:
        """Tokens of all steps over all seconds, pauses included."""
        run = self.runs[policy]
        return self.step_tokens * run.steps * len(run.windows) / run.total_s


class _Walk:
    """Windows of the trace, with plans and prices that several policies ask for made once."""

    def __init__(
        self,
        request: PlanRequest,
        drift: Drift,
        model: ModelSpec,
        cluster: Cluster,
        trace: Trace,
        sha256: str,
        slots: int,
    ) -> None:
        self.request, self.drift, self.model, self.cluster = request, drift, model, cluster
        self.count = trace.manifest.tokens // drift.window_tokens
        self._trace, self._sha256, self._slots = trace, sha256, slots
        self._work: dict[tuple[int, int], PlanWorkload] = {}
        self._plans: dict[tuple[int, int], Placement] = {}
        self._prices: dict[tuple[int, int, bytes], StepCost] = {}

    def work(self, start: int, stop: int) -> PlanWorkload:
        """Of windows ``start`` to ``stop``; batches of every stretch are drawn anew."""
        key = start, stop
        if key not in self._work:
            size = self.drift.window_tokens
            part = stretch(self._trace, start * size, stop * size)
            request = replace(self.request, seed=self.request.seed + start)
            self._work[key] = from_parts(
                request, self.model, self.cluster, part, None, self._sha256, stop * size
            )
        return self._work[key]

    def price(self, placement: Placement, start: int, stop: int) -> StepCost:
        """Of a step under a placement, in those windows."""
        key = start, stop, placement.physical_to_logical.tobytes()
        if key not in self._prices:
            self._prices[key] = self.work(start, stop).planning.evaluate(placement)
        return self._prices[key]

    def plan(self, start: int, stop: int) -> Placement:
        """The planner's answer to those windows."""
        key = start, stop
        if key not in self._plans:
            self._plans[key] = self.place(self.request.planner, start, stop)
        return self._plans[key]

    def place(self, planner: str, start: int, stop: int) -> Placement:
        """Any planner's answer to those windows."""
        work = self.work(start, stop)
        problem = placement_problem(self.request, self.model, self.cluster, work, self._slots)
        answer = run_planner(planner, problem)
        return Placement(
            answer.physical_to_logical, problem.devices, problem.experts, work.moe_layers
        )


def simulate_rebalancing(
    request: PlanRequest,
    drift: Drift,
    policies: Sequence[str] = POLICIES,
    say: Callable[[str], object] = lambda _: None,
) -> Rebalancing:
    """Run policies over the windows of a trace.

    Args:
        request: Model, cluster, trace, planner, redundant slots, ``max_moves`` of one change.
        drift: Windows, and what a change costs.
        policies: Of :data:`POLICIES`; contiguous is always run, for comparison.
        say: Told of each window as it starts.

    Raises:
        UsageError: If options contradict each other or name no policy or planner.
        InputError: If an input cannot be used, or the trace has too few windows.
        InfeasibleError: If the experts do not fit into the devices' memory.
    """
    for name in policies:
        if name not in POLICIES:
            raise UsageError(f"unknown policy {name!r}\nfix: choose from {', '.join(POLICIES)}")
    if not find_planner(request.planner).engine_ready:
        raise UsageError(
            f"--planner {request.planner} gives devices unequal numbers of slots\n"
            "fix: choose another, like eplb or lpt-swap"
        )
    model, cluster = model_and_cluster(request)
    slots = expert_slots(model, cluster, request.redundant)
    check_memory(model, cluster, slots)
    trace, sha256 = trace_of_model(request, model)
    walk = _Walk(request, drift, model, cluster, trace, sha256, slots)
    if not FEWEST_WINDOWS <= walk.count <= MOST_WINDOWS:
        tokens = trace.manifest.tokens
        raise InputError(
            f"the trace has {walk.count} windows",
            file=trace.path,
            field="tokens",
            found=f"{tokens} tokens, {drift.window_tokens} per window",
            allowed=f"{FEWEST_WINDOWS} … {MOST_WINDOWS} windows",
            fix=f"pass --window-tokens {max(1, tokens // 20)}",
        )
    start = walk.place("contiguous", 0, 1)
    runs: dict[str, PolicyRun] = {}
    placements: list[list[Placement]] = [[] for _ in range(walk.count)]
    for name in dict.fromkeys(("contiguous", *policies)):
        if name != "oracle":
            say(name)
            runs[name] = _run(name, walk, start, placements)
    if "oracle" in policies:
        say("oracle")
        runs["oracle"] = _foresight(walk, placements)
    first = walk.price(start, 0, 1)
    return Rebalancing(
        model=model,
        cluster=cluster,
        request=request,
        drift=drift,
        trace_name=str(request.trace or trace.manifest.model),
        trace_sha256=sha256,
        domains=_domains(trace, walk),
        runs=runs,
        step_tokens=walk.work(0, 1).planning.batches.tokens_per_device * cluster.devices,
        evidence=first.evidence.value,
        kernels=walk.work(0, 1).planning.kernels,
    )


def _run(name: str, walk: _Walk, start: Placement, placements: list[list[Placement]]) -> PolicyRun:
    """One policy; what it ran is noted for the oracle."""
    drift, placement = walk.drift, start
    windows: list[Window] = []
    for index in range(walk.count):
        moves, moved_bytes, pause_s = 0, 0.0, 0.0
        if index and _due(name, index, windows[-1].balance, drift):
            target = _target(walk, placement, index)
            if count_moves(placement, target).any():
                change = migration(placement, target, walk.model, walk.cluster)
                moves, moved_bytes = change.moves, change.moved_bytes
                pause_s = max(drift.pause_s, change.seconds)
                placement = target
        cost = walk.price(placement, index, index + 1)
        placements[index].append(placement)
        windows.append(Window(cost.step_s, cost.balance, moves, moved_bytes, pause_s))
    return PolicyRun(tuple(windows), drift.steps)


def _due(name: str, index: int, balance: float, drift: Drift) -> bool:
    """Whether a policy plans at the start of a window (the second is the first it can)."""
    if name == "contiguous":
        return False
    if index == 1 and name != "threshold":
        return True
    if name == "periodic":
        return (index - 1) % drift.period == 0
    return name == "threshold" and balance < drift.below


def _target(walk: _Walk, placement: Placement, index: int) -> Placement:
    """What the windows before say, within the budget of moves."""
    past = max(0, index - walk.drift.history), index
    target = walk.plan(*past)
    by_layer = walk.request.comm == "home-rank"
    target = align(placement, target, walk.cluster, by_layer=by_layer)
    if walk.request.max_moves is None:
        return target
    before, after = walk.price(placement, *past), walk.price(target, *past)
    return limit_moves(placement, target, before, after, walk.request.max_moves).placement


def _foresight(walk: _Walk, placements: list[list[Placement]]) -> PolicyRun:
    windows = []
    for index, tried in enumerate(placements):
        options = [*tried, walk.plan(index, index + 1)]
        costs = [walk.price(placement, index, index + 1) for placement in options]
        best = min(costs, key=lambda cost: cost.step_s)
        windows.append(Window(best.step_s, best.balance))
    return PolicyRun(tuple(windows), walk.drift.steps)


def _domains(trace: Trace, walk: _Walk) -> tuple[str, ...]:
    try:
        requests = trace.requests()
    except MissingExtraError:
        return ()
    if requests is None or "domain" not in requests:
        return ()
    size = walk.drift.window_tokens
    names = requests["domain"].astype(str).to_numpy()
    found = []
    for index in range(walk.count):
        kinds, counts = np.unique(names[index * size : (index + 1) * size], return_counts=True)
        found.append(str(kinds[counts.argmax()]))
    return tuple(found)
