"""MoETuner: experts to clusters by one ILP, clusters to devices by another.

S. Go and D. Mahajan, "MoETuner: Optimized Mixture of Expert Serving with Balanced Expert Placement
and Token Routing", arXiv:2502.06643. The ILPs are in moetuner_clusters.py and moetuner_mapping.py.
Like the paper, both planners ignore device speeds, and the second ILP is blind to load.

``moetuner`` makes clusters of equal size, so that serving engines can load the plan, and places
redundant copies too. ``moetuner_free`` is the paper's form: cluster sizes are free, every device
holds E·L/G experts over all layers, and there are no copies.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from moesim.errors import InfeasibleError
from moesim.planners.greedy import make_copies, pack
from moesim.planners.load_bound import finish_load_bound
from moesim.planners.moetuner_chain import MappingProblem, memory_deviation
from moesim.planners.moetuner_clusters import ClusterAnswer, LayerItems, balanced_clusters
from moesim.planners.moetuner_mapping import MappingAnswer, map_clusters
from moesim.planners.problem import PlacementProblem, PlannerAnswer, SolveOutcome
from moesim.planners.solver import choose_solver, relative_gap

__all__ = ["moetuner", "moetuner_free"]

STOP_GAP = 0.025
"""Gurobi's stop tolerance in the paper, §5."""

FIRST_SHARE = 0.7
"""Part of the time limit that the first ILP may use; the rest, and what it leaves, is for the
second."""


@dataclass(frozen=True)
class _Layer:
    """A layer's experts by load, and a first clustering of them."""

    expert: np.ndarray  # [E] logical expert of every rank
    items: LayerItems
    start: np.ndarray  # [E, G] bool


def moetuner(problem: PlacementProblem) -> PlannerAnswer:
    """Both ILPs with clusters of equal size.

    Raises:
        InfeasibleError: If an expert would need more copies than there are devices.
    """
    if problem.slots > problem.experts * problem.devices:
        raise InfeasibleError(
            f"copies of an expert on distinct devices: {problem.slots} slots are more than "
            f"{problem.experts} experts × {problem.devices} devices\nfix: pass fewer --redundant"
        )
    return _solve(problem, _equal_layers(problem), free=False)


def moetuner_free(problem: PlacementProblem) -> PlannerAnswer:
    """Both ILPs as published, with free cluster sizes.

    Returns:
        Rows padded with −1, and wider than S if the largest cluster needs it.

    Raises:
        InfeasibleError: If there are fewer experts than devices.
    """
    if problem.experts < problem.devices:
        raise InfeasibleError(
            f"no empty cluster: {problem.experts} experts cannot fill {problem.devices} "
            "devices\nfix: use fewer devices"
        )
    return _solve(problem, _free_layers(problem), free=True)


def _solve(problem: PlacementProblem, layers: list[_Layer], *, free: bool) -> PlannerAnswer:
    start_s = time.perf_counter()
    deadline_s = start_s + problem.time_limit_s
    solver = choose_solver(problem.solver)
    chain = problem.transitions is not None and len(layers) > 1 and problem.devices > 1
    first_s = start_s + problem.time_limit_s * (FIRST_SHARE if chain else 1.0)
    clusters = []
    for index, layer in enumerate(layers):
        left_s = (first_s - time.perf_counter()) / (len(layers) - index)
        clusters.append(
            balanced_clusters(
                layer.items, layer.start, solver=solver, time_limit_s=left_s, stop_gap=STOP_GAP
            )
        )
    mapping_problem = _mapping_problem(problem, layers, clusters)
    if chain or free:
        mapping = map_clusters(
            mapping_problem,
            solver=solver,
            time_limit_s=deadline_s - time.perf_counter(),
            stop_gap=STOP_GAP,
        )
    else:
        mapping = _identity(mapping_problem)
    if not chain:
        mapping = replace(mapping, outcome=SolveOutcome.OPTIMAL, method="")
    table = _table(layers, clusters, mapping.device, problem)
    detail = _detail(problem, clusters, mapping, mapping_problem, chain=chain, free=free)
    detail["solver"] = solver
    outcome = _weakest([*(answer.outcome for answer in clusters), mapping.outcome])
    return PlannerAnswer(table, time.perf_counter() - start_s, outcome, detail)


def _equal_layers(problem: PlacementProblem) -> list[_Layer]:
    from moesim.planners.swap import swap_pairs  # numba: half a second

    blind = replace(problem, speed_factors=np.ones(problem.devices))
    held, load = pack(make_copies(blind), blind.speed_factors)
    swap_pairs(held, load, blind.speed_factors, finish_load_bound(blind))
    layers = []
    for layer in range(problem.layers):
        member = np.zeros((problem.experts, problem.devices), bool)
        for device, experts in enumerate(held[layer]):
            member[experts, device] = True
        count = member.sum(1)
        rank = np.argsort(-problem.loads[layer] / count, kind="stable")
        items = LayerItems(
            (problem.loads[layer] / count)[rank],
            count[rank],
            problem.devices,
            problem.slots_per_device,
        )
        layers.append(_Layer(rank, items, member[rank]))
    return layers


def _free_layers(problem: PlacementProblem) -> list[_Layer]:
    """Every expert, heaviest first, into the lightest cluster."""
    layers = []
    count = np.ones(problem.experts, np.int64)
    for loads in problem.loads:
        rank = np.argsort(-loads, kind="stable")
        member = np.zeros((problem.experts, problem.devices), bool)
        total = np.zeros(problem.devices)
        size = np.zeros(problem.devices)
        for place, load in enumerate(loads[rank]):
            cluster = np.lexsort((size, total))[0]
            member[place, cluster] = True
            total[cluster] += load
            size[cluster] += 1
        items = LayerItems(loads[rank], count, problem.devices, None)
        layers.append(_Layer(rank, items, member))
    return layers


def _mapping_problem(
    problem: PlacementProblem, layers: list[_Layer], clusters: list[ClusterAnswer]
) -> MappingProblem:
    share = []
    for layer, answer in zip(layers, clusters, strict=True):
        by_expert = np.zeros(answer.member.shape)
        # Tokens of an expert with copies are split evenly over them.
        by_expert[layer.expert] = answer.member / layer.items.count[:, None]
        share.append(by_expert)
    devices = problem.devices
    flow = np.zeros((problem.layers - 1, devices, devices))
    if problem.transitions is not None:
        for index, counts in enumerate(problem.transitions):
            flow[index] = share[index].T @ counts @ share[index + 1]
    bandwidth = problem.pair_bandwidth_bytes_per_s.copy()
    np.fill_diagonal(bandwidth, np.inf)
    sizes = np.stack([answer.member.sum(0) for answer in clusters])
    return MappingProblem(flow, sizes, 1 / bandwidth)


def _identity(problem: MappingProblem) -> MappingAnswer:
    device = np.tile(np.arange(problem.sizes.shape[1]), (len(problem.sizes), 1))
    return MappingAnswer(device, 0.0, 0.0, SolveOutcome.OPTIMAL, "")


def _table(
    layers: list[_Layer],
    clusters: list[ClusterAnswer],
    device: np.ndarray,
    problem: PlacementProblem,
) -> np.ndarray:
    largest = max(int(answer.member.sum(0).max()) for answer in clusters)
    room = max(largest, problem.slots_per_device)
    table = np.full((problem.layers, problem.devices, room), -1, np.int32)
    for index, (layer, answer) in enumerate(zip(layers, clusters, strict=True)):
        for cluster, where in enumerate(device[index]):
            experts = np.sort(layer.expert[answer.member[:, cluster]])
            table[index, where, : len(experts)] = experts
    return table.reshape(problem.layers, -1)


def _detail(
    problem: PlacementProblem,
    clusters: list[ClusterAnswer],
    mapping: MappingAnswer,
    mapping_problem: MappingProblem,
    *,
    chain: bool,
    free: bool,
) -> dict[str, float | str]:
    objective = sum(answer.objective for answer in clusters)
    bound = sum(answer.bound for answer in clusters)
    outcomes = [answer.outcome for answer in clusters]
    counts = ", ".join(
        f"{outcomes.count(kind)} {kind}" for kind in SolveOutcome if kind in outcomes
    )
    detail: dict[str, float | str] = {
        "ilp1_objective_tokens": objective,
        "ilp1_bound_tokens": bound,
        "ilp1_gap": _finite(relative_gap(objective, bound)),
        "ilp1_outcome": _weakest(outcomes).value,
        "ilp1_layers": counts,
    }
    notes = []
    if SolveOutcome.HEURISTIC in outcomes:
        notes.append(
            "ILP 1 was too large or its time too short in some layers: those are LPT with swaps"
        )
    if chain:
        detail |= {
            "ilp2_objective_s_per_byte": mapping.objective,
            "ilp2_bound_s_per_byte": mapping.bound,
            "ilp2_gap": _finite(relative_gap(mapping.objective, mapping.bound)),
            "ilp2_outcome": mapping.outcome.value,
            "ilp2_method": mapping.method,
        }
    elif problem.devices > 1:
        reason = "one layer" if problem.layers == 1 else "no transitions"
        notes.append(f"ILP 2 left out ({reason}): clusters are not matched to links")
    if free:
        off = memory_deviation(mapping_problem, mapping.device)
        detail["memory_deviation_experts"] = off
        if off > 1e-9:
            notes.append(
                "no mapping of ILP 1's cluster sizes gives every device E·L/G experts: relaxed, "
                f"devices are off by {off:g} experts in sum"
            )
        if problem.slots > problem.experts:
            notes.append("redundant slots stay unused: the published form has no copies")
    if notes:
        detail["note"] = "; ".join(notes)
    return detail


def _finite(gap: float) -> float:
    """Gaps above 100 % mean a bound of 0: say 1."""
    return min(gap, 1.0)


def _weakest(outcomes: list[SolveOutcome]) -> SolveOutcome:
    order = list(SolveOutcome)
    return min(outcomes, key=order.index)
