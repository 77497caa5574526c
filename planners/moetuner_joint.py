"""MoETuner's second ILP as one MILP over all layers, for small instances.

With y[l, c, g] = 1 if device g takes cluster c of layer l, the products y·y' of the paper are
linearised as

    t[l] ≥ Σ_c2 C[c1, c2]/B[g1, g2] · y[l+1, c2, g2] − M·(1 − y[l, c1, g1]),

M the largest of these coefficients. That is exact: one cluster c2 is on g2, so the sum is one
entry of C/B if c1 is on g1, and not positive otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.planners.assignment import bottleneck_assignment
from moesim.planners.moetuner_chain import MappingProblem, memory_deviation, tail_cost
from moesim.planners.problem import SolveOutcome, SolverName
from moesim.planners.solver import MilpStatus, solve_milp

if TYPE_CHECKING:
    import pulp

__all__ = ["is_small", "solve_joint", "solve_memory"]

JOINT_BINARIES_MAX = 512
JOINT_TAIL_ROWS_MAX = 4096
"""Size up to which the joint ILP is tried (Mixtral, 32 layers on 4 devices, just fits)."""


def is_small(problem: MappingProblem) -> bool:
    """Whether the joint ILP is worth a try."""
    layers, devices = problem.sizes.shape
    binaries, tail_rows = layers * devices**2, (layers - 1) * devices**3
    return bool(binaries <= JOINT_BINARIES_MAX and tail_rows <= JOINT_TAIL_ROWS_MAX)


def solve_memory(
    problem: MappingProblem, slots: np.ndarray, solver: SolverName, time_limit_s: float
) -> np.ndarray:
    """The size pattern that deviates least from equal memory, by MILP."""
    import pulp

    fits = problem.sizes[:, :, None] == slots[:, None, :]
    start = np.stack([bottleneck_assignment(np.where(fit, 0.0, np.inf)) for fit in fits])
    model = pulp.LpProblem("memory", pulp.LpMinimize)
    y = _add_mapping(model, problem)
    model += pulp.lpSum(_add_memory(model, problem, y))
    result = solve_milp(
        model,
        solver=solver,
        time_limit_s=time_limit_s,
        stop_gap=0.0,
        start=_start_values(problem, start),
    )
    found = _read_device(result.values, start.shape) if result.values else None
    if found is None or memory_deviation(problem, found) >= memory_deviation(problem, start):
        return slots
    better = np.empty_like(slots)
    np.put_along_axis(better, found, problem.sizes, 1)
    return better


def solve_joint(
    problem: MappingProblem,
    start: np.ndarray,
    bound: float,
    *,
    solver: SolverName,
    time_limit_s: float,
    stop_gap: float,
) -> tuple[np.ndarray, float, SolveOutcome]:
    """The joint ILP, no further from equal memory than the start."""
    scale = tail_cost(problem, start)
    allowed = memory_deviation(problem, start)
    if _links_are_equal(problem.seconds):
        # Devices are interchangeable: the first layer may be mapped as in any answer.
        start = np.argsort(start[0])[start]
    model = _joint_model(problem, start, scale, allowed)
    first = _start_values(problem, start)
    for layer, flow in enumerate(problem.flow):
        tail = (flow * problem.seconds[np.ix_(start[layer], start[layer + 1])]).max()
        first[f"t_{layer}"] = float(tail) / scale
    result = solve_milp(
        model, solver=solver, time_limit_s=time_limit_s, stop_gap=stop_gap, start=first
    )
    bound = max(bound, result.bound * scale)
    found = _read_device(result.values, start.shape) if result.values else None
    solved = result.status is MilpStatus.SOLVED
    outcome = SolveOutcome.WITHIN_GAP if solved else SolveOutcome.FEASIBLE
    if (
        found is None
        or memory_deviation(problem, found) > allowed + 1e-6
        or tail_cost(problem, found) > scale
    ):
        return start, bound, outcome
    return found, bound, outcome


def _add_mapping(model: pulp.LpProblem, problem: MappingProblem) -> Any:
    """Variables y[l][c][g], and one cluster per device and device per cluster in every layer."""
    import pulp

    layers, devices = problem.sizes.shape
    y = [
        [
            [model.add_variable(f"y_{layer}_{c}_{g}", cat=pulp.LpBinary) for g in range(devices)]
            for c in range(devices)
        ]
        for layer in range(layers)
    ]
    for layer in range(layers):
        for k in range(devices):
            model += (pulp.lpSum(y[layer][k]) == 1, f"one_device_per_cluster__{layer}_{k}")
            column = [y[layer][c][k] for c in range(devices)]
            model += (pulp.lpSum(column) == 1, f"one_cluster_per_device__{layer}_{k}")
    return y


def _add_memory(model: pulp.LpProblem, problem: MappingProblem, y: Any) -> Any:
    """|experts held − E·L/G| of every device."""
    import pulp

    layers, devices = problem.sizes.shape
    off = [model.add_variable(f"u_{g}", 0) for g in range(devices)]
    for g in range(devices):
        held = pulp.lpSum(
            int(problem.sizes[layer, c]) * y[layer][c][g]
            for layer in range(layers)
            for c in range(devices)
        )
        model += (off[g] >= held - problem.fair_share, f"equal_memory__over_{g}")
        model += (off[g] >= problem.fair_share - held, f"equal_memory__under_{g}")
    return off


def _start_values(problem: MappingProblem, device: np.ndarray) -> dict[str, float]:
    values = {
        f"y_{layer}_{c}_{g}": 1.0 for layer, row in enumerate(device) for c, g in enumerate(row)
    }
    held = np.zeros(problem.sizes.shape[1])
    np.add.at(held, device, problem.sizes)
    return values | {f"u_{g}": float(abs(held[g] - problem.fair_share)) for g in range(len(held))}


def _read_device(values: dict[str, float], shape: tuple[int, ...]) -> np.ndarray | None:
    layers, devices = shape
    device = np.empty(shape, np.int64)
    for layer in range(layers):
        table = np.array(
            [[values[f"y_{layer}_{c}_{g}"] for g in range(devices)] for c in range(devices)]
        )
        device[layer] = table.argmax(1)
        if sorted(device[layer]) != list(range(devices)):
            return None
    return device


def _joint_model(
    problem: MappingProblem, start: np.ndarray, scale: float, allowed: float
) -> pulp.LpProblem:
    import pulp

    devices = problem.sizes.shape[1]
    model = pulp.LpProblem("mapping", pulp.LpMinimize)
    y = _add_mapping(model, problem)
    tails = [model.add_variable(f"t_{layer}", 0) for layer in range(len(problem.flow))]
    model += pulp.lpSum(tails)
    off = _add_memory(model, problem, y)
    model += (pulp.lpSum(off) <= allowed + 1e-6, "equal_memory__total")
    for layer, flow in enumerate(problem.flow):
        for c1 in range(devices):
            for g1, g2 in zip(*np.nonzero(problem.seconds), strict=True):
                cost = flow[c1] * (problem.seconds[g1, g2] / scale)
                arriving = pulp.lpSum(
                    float(cost[c2]) * y[layer + 1][c2][g2] for c2 in range(devices)
                )
                slack = float(cost.max()) * (1 - y[layer][c1][g1])
                model += (tails[layer] >= arriving - slack, f"tail__{layer}_{c1}_{g1}_{g2}")
    if _links_are_equal(problem.seconds):
        for c, g in enumerate(start[0]):
            model += (y[0][c][int(g)] == 1, f"first_layer__{c}")
    return model


def _links_are_equal(seconds: np.ndarray) -> bool:
    between = seconds[~np.eye(len(seconds), dtype=bool)]
    return bool((between == between[0]).all()) if len(between) else True
