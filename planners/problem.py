"""What a placement planner is asked, and what it answers.

Axes: L MoE layers, E logical experts, S physical slots per layer, G devices, N nodes. Slot ``s``
lives on device ``s // (S / G)`` and device ``g`` on node ``g // (G / N)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from moesim.errors import InfeasibleError, InputError, UsageError

if TYPE_CHECKING:
    from moesim.planners.search_cost import SearchCost

__all__ = [
    "PlacementProblem",
    "Planner",
    "PlannerAnswer",
    "SolveOutcome",
    "SolverName",
    "device_finish_load",
]

SolverName = Literal["auto", "cbc", "highs"]

LARGEST_LOAD = 1e30
"""Loads above it could overflow the float32 arithmetic of EPLB when they are added up."""


class SolveOutcome(StrEnum):
    """How much is known about an answer, from least to most."""

    HEURISTIC = "heuristic"
    """No solver improved or confirmed it."""
    FEASIBLE = "feasible"
    """A solver hit its time limit; the answer is the best found."""
    WITHIN_GAP = "within-gap"
    """Proven to be within the stop gap of the optimum."""
    OPTIMAL = "optimal"
    """Proven optimal, for the objective that the planner states."""


@dataclass(frozen=True, kw_only=True)
class PlacementProblem:
    """Where should every expert go?

    Attributes:
        loads: [L, E] float64, token assignments per expert.
        devices: G.
        nodes: N, divides G; consecutive devices share a node.
        slots: S per layer, a multiple of G and ≥ E; more than E means redundant experts.
        routing_groups: Groups of consecutive experts that the router picks from (DeepSeek's
            ``n_group``), 1 if it knows none.
        speed_factors: [G] float64, relative speed of each device (1 is nominal).
        transitions: [L-1, E, E] float64, assignments that go from expert i of a layer to expert j
            of the next, or None if unknown.
        coactivation: [L, E, E] float64, tokens that use both experts in a layer, or None if
            unknown.
        pair_bandwidth_bytes_per_s: [G, G] float64 from device g to h; the diagonal is not used.
        seed: Of everything random.
        time_limit_s: For planners that run a solver.
        solver: MILP solver; ``auto`` is HiGHS if installed, else the CBC that PuLP brings.
        memory_factors: [G] float64, relative memory for experts of each device, for planners with
            free slots; None if all have the same.
        distinct_copies: Whether no device may hold two copies of an expert.
        cost: What a step costs, for planners that trade computation against communication; None
            where only loads are known.

    Raises:
        InputError: If a field is outside of what is said above.
        UsageError: If the solver is unknown.
        InfeasibleError: If copies cannot all be on distinct devices.
    """

    loads: np.ndarray
    devices: int
    slots: int
    speed_factors: np.ndarray
    pair_bandwidth_bytes_per_s: np.ndarray
    nodes: int = 1
    routing_groups: int = 1
    transitions: np.ndarray | None = None
    coactivation: np.ndarray | None = None
    seed: int = 0
    time_limit_s: float = 60.0
    solver: SolverName = "auto"
    memory_factors: np.ndarray | None = None
    distinct_copies: bool = False
    cost: SearchCost | None = None

    def __post_init__(self) -> None:
        for name in ("loads", "speed_factors", "pair_bandwidth_bytes_per_s"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.float64))
        for name in ("transitions", "coactivation", "memory_factors"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, np.asarray(getattr(self, name), np.float64))
        for check in _CHECKS:
            check(self)

    @property
    def layers(self) -> int:
        """L."""
        return int(self.loads.shape[0])

    @property
    def experts(self) -> int:
        """E."""
        return int(self.loads.shape[1])

    @property
    def slots_per_device(self) -> int:
        """S / G."""
        return self.slots // self.devices


@dataclass(frozen=True)
class PlannerAnswer:
    """A placement and how it was found.

    Attributes:
        physical_to_logical: [L, S] int32. Planners with free cluster sizes may return wider rows
            (still a multiple of G) that are padded with −1.
        solve_s: Seconds that the planner took.
        outcome: What is known about it.
        detail: Objective, bound and gap where known, and notes in words.
    """

    physical_to_logical: np.ndarray
    solve_s: float
    outcome: SolveOutcome = SolveOutcome.HEURISTIC
    detail: dict[str, float | str] = field(default_factory=dict)


Planner = Callable[[PlacementProblem], PlannerAnswer]


def device_finish_load(physical_to_logical: np.ndarray, problem: PlacementProblem) -> np.ndarray:
    """Load over speed of every device, tokens split evenly over the copies of an expert.

    Args:
        physical_to_logical: [L, S'] with −1 for empty slots.
        problem: Gives loads, devices and speed factors.

    Returns:
        [L, G] float64 token assignments (of a device of nominal speed).
    """
    table = np.asarray(physical_to_logical)
    held = table >= 0
    experts = np.where(held, table, 0)
    rows = np.broadcast_to(np.arange(len(table))[:, None], table.shape)
    count = np.zeros(problem.loads.shape)
    np.add.at(count, (rows[held], experts[held]), 1.0)
    slot_load = np.take_along_axis(problem.loads / np.maximum(count, 1.0), experts, 1) * held
    per_device = slot_load.reshape(len(table), problem.devices, -1).sum(-1)
    result: np.ndarray = per_device / problem.speed_factors
    return result


def _check_loads(problem: PlacementProblem) -> None:
    loads = problem.loads
    if loads.ndim != 2 or 0 in loads.shape:
        raise InputError(
            "a non-empty [layers, experts] table is needed",
            field="loads",
            found=f"shape {loads.shape}",
        )
    bad = ~((loads >= 0) & (loads <= LARGEST_LOAD))
    if bad.any():
        layer, expert = np.argwhere(bad)[0]
        raise InputError(
            "a load must be a finite number of tokens",
            field=f"loads[{layer}, {expert}]",
            found=float(loads[layer, expert]),
            allowed=f"0 … {LARGEST_LOAD:g}",
        )


def _check_counts(problem: PlacementProblem) -> None:
    for name, at_least in (("devices", 1), ("nodes", 1), ("routing_groups", 1), ("seed", 0)):
        value = getattr(problem, name)
        if value < at_least:
            raise InputError("out of range", field=name, found=value, allowed=f"≥ {at_least}")
    if problem.devices % problem.nodes:
        raise InputError(
            "the devices do not divide by the nodes",
            field="devices",
            found=f"{problem.devices} devices on {problem.nodes} nodes",
        )
    if problem.slots < problem.experts or problem.slots % problem.devices:
        redundant = -problem.experts % problem.devices
        raise InputError(
            "the slots must hold every expert and divide by the devices",
            field="slots",
            found=f"{problem.slots} slots for {problem.experts} experts "
            f"on {problem.devices} devices",
            allowed=f"multiples of {problem.devices}, at least {problem.experts + redundant}",
            fix=f"choose redundant experts = {redundant} + a multiple of {problem.devices}",
        )


def _check_copies(problem: PlacementProblem) -> None:
    if problem.distinct_copies and problem.slots > problem.experts * problem.devices:
        raise InfeasibleError(
            f"no two copies of an expert on one device: {problem.slots} slots are more than "
            f"{problem.experts} experts × {problem.devices} devices\n"
            "fix: pass fewer --redundant, or leave out --distinct-copies"
        )


def _check_devices(problem: PlacementProblem) -> None:
    devices = problem.devices
    bandwidth = problem.pair_bandwidth_bytes_per_s
    for name, factors in (
        ("speed_factors", problem.speed_factors),
        ("memory_factors", problem.memory_factors),
    ):
        if factors is None:
            continue
        if factors.shape != (devices,) or not (np.isfinite(factors) & (factors > 0)).all():
            raise InputError(
                "one positive factor per device is needed",
                field=name,
                found=f"{factors.shape} {factors.tolist()}",
            )
    between = ~np.eye(devices, dtype=bool)
    if bandwidth.shape != (devices, devices) or not (bandwidth[between] > 0).all():
        raise InputError(
            "a positive bandwidth between each two devices is needed",
            field="pair_bandwidth_bytes_per_s",
            found=f"shape {bandwidth.shape}",
            allowed=f"[{devices}, {devices}], > 0 off the diagonal",
        )


def _check_flow(problem: PlacementProblem) -> None:
    layers, experts = problem.layers, problem.experts
    for name, counts, rows in (
        ("transitions", problem.transitions, layers - 1),
        ("coactivation", problem.coactivation, layers),
    ):
        if counts is None:
            continue
        expected = (rows, experts, experts)
        if counts.shape != expected:
            raise InputError(
                f"{name} do not fit the loads",
                field=name,
                found=f"shape {counts.shape}",
                allowed=f"{expected}",
            )
        if counts.size and not (counts.min() >= 0 and counts.max() <= LARGEST_LOAD):
            raise InputError(
                "a count must be a finite number", field=name, allowed=f"0 … {LARGEST_LOAD:g}"
            )


def _check_solver(problem: PlacementProblem) -> None:
    if not (np.isfinite(problem.time_limit_s) and problem.time_limit_s > 0):
        raise InputError(
            "a time limit must be positive", field="time_limit_s", found=problem.time_limit_s
        )
    if problem.solver not in get_args(SolverName):
        raise UsageError(
            f"unknown solver {problem.solver!r}\nfix: choose from {', '.join(get_args(SolverName))}"
        )


_CHECKS = (_check_loads, _check_counts, _check_copies, _check_devices, _check_flow, _check_solver)
