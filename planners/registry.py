"""Every placement planner by name."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moesim.errors import InfeasibleError, UsageError
from moesim.hardware import near_names
from moesim.planners import (
    affinity_groups,
    cooccurrence,
    eplb,
    free_slots,
    greedy,
    joint,
    moetuner,
    node_groups,
    simple,
)
from moesim.planners.problem import (
    PlacementProblem,
    Planner,
    PlannerAnswer,
    device_finish_load,
)
from moesim.planners.verify import copies_share_a_device, verify_placement

__all__ = ["PLANNERS", "PlannerEntry", "find_planner", "run_planner"]


@dataclass(frozen=True)
class PlannerEntry:
    """A planner and what is to be known about it before it runs.

    Attributes:
        name: As on the command line.
        function: The planner.
        summary: What it does, in one line.
        exact: Whether it runs a MILP solver (and so obeys ``time_limit_s``).
        distinct_copies: Whether it never puts two copies of an expert on one device while the
            slots allow that (S ≤ E · G).
        engine_ready: Whether every device gets equally many slots, as serving engines need it.
        follows_memory: Whether devices with more memory get more experts.
    """

    name: str
    function: Planner
    summary: str
    exact: bool = False
    distinct_copies: bool = True
    engine_ready: bool = True
    follows_memory: bool = False


def find_planner(name: str) -> PlannerEntry:
    """The planner of that name.

    Raises:
        UsageError: If there is none.
    """
    if name not in PLANNERS:
        raise UsageError(
            f"unknown planner {name!r}{near_names(name, list(PLANNERS))}\n"
            f"fix: choose from auto, {', '.join(PLANNERS)}"
        )
    return PLANNERS[name]


def run_planner(name: str, problem: PlacementProblem) -> PlannerAnswer:
    """Run a planner and have its answer verified by code of its own.

    Raises:
        UsageError: If there is no planner of that name.
        InfeasibleError: If the planner's constraints have no solution, or the planner keeps no
            copies apart and the problem asks for that.
        MoesimError: If the answer is no placement (a bug).
    """
    entry = find_planner(name)
    answer = entry.function(problem)
    if problem.distinct_copies and copies_share_a_device(answer.physical_to_logical, problem):
        raise InfeasibleError(
            f"{name} puts two copies of an expert on one device\n"
            "fix: use --planner lpt-swap, or leave out --distinct-copies"
        )
    verify_placement(answer.physical_to_logical, problem, distinct_copies=entry.distinct_copies)
    return answer


def _timed(table: Callable[[PlacementProblem], np.ndarray]) -> Planner:
    """A planner from a function that returns only the table."""

    def planner(problem: PlacementProblem) -> PlannerAnswer:
        start_s = time.perf_counter()
        physical_to_logical = table(problem)
        solve_s = time.perf_counter() - start_s
        largest = device_finish_load(physical_to_logical, problem).max(1)
        detail: dict[str, float | str] = {"largest_load_sum": float(largest.sum())}
        return PlannerAnswer(physical_to_logical, solve_s, detail=detail)

    return planner


_ENTRIES = (
    PlannerEntry(
        "contiguous",
        _timed(simple.contiguous),
        "consecutive experts per device, the engines' default",
    ),
    PlannerEntry(
        "round-robin", _timed(simple.round_robin), "experts dealt to the devices one by one"
    ),
    PlannerEntry("random", _timed(simple.random_balanced), "experts dealt in random order"),
    PlannerEntry(
        "lpt", _timed(greedy.lpt), "heaviest first onto the device that is done with it first"
    ),
    PlannerEntry(
        "lpt-swap",
        _timed(greedy.lpt_swap),
        "LPT and swaps of pairs, with several uses of the spare slots tried out",
        distinct_copies=False,
    ),
    PlannerEntry(
        "lpt-swap-hierarchical",
        _timed(node_groups.lpt_swap_hierarchical),
        "the best pairing of routing groups with nodes, LPT and swaps inside every node",
        distinct_copies=False,
    ),
    PlannerEntry(
        "lpt-swap-free",
        _timed(free_slots.lpt_swap_free),
        "LPT, moves and swaps with free numbers of experts per device and layer",
        engine_ready=False,
        follows_memory=True,
    ),
    PlannerEntry(
        "eplb",
        _timed(eplb.eplb),
        "DeepSeek's EPLB as published: hierarchical if nodes divide the routing groups",
        distinct_copies=False,
    ),
    PlannerEntry(
        "eplb-hierarchical",
        _timed(eplb.eplb_hierarchical),
        "EPLB that keeps routing groups on one node",
        distinct_copies=False,
    ),
    PlannerEntry(
        "eplb-global",
        _timed(eplb.eplb_global),
        "EPLB over all devices at once",
        distinct_copies=False,
    ),
    PlannerEntry(
        "cooccurrence",
        _timed(cooccurrence.cooccurrence),
        "TensorRT-LLM's: experts used together up to 0.8 of a device, the rest by load",
        distinct_copies=False,
    ),
    PlannerEntry(
        "exflow",
        _timed(affinity_groups.exflow),
        "ExFlow's: experts of neighbouring layers that follow one another, whatever the load",
        distinct_copies=False,
    ),
    PlannerEntry(
        "grace",
        _timed(affinity_groups.grace),
        "GRACE-MoE's: experts used together into nodes, then devices, by spectral clustering",
        distinct_copies=False,
    ),
    PlannerEntry(
        "joint",
        joint.joint,
        "swaps priced in seconds per step: the slowest device and the links together",
        distinct_copies=False,
    ),
    PlannerEntry(
        "moetuner",
        moetuner.moetuner,
        "MoETuner's two ILPs with equally many experts per device",
        exact=True,
    ),
    PlannerEntry(
        "moetuner-free",
        moetuner.moetuner_free,
        "MoETuner's two ILPs as published: cluster sizes are free",
        exact=True,
        engine_ready=False,
    ),
)

PLANNERS: dict[str, PlannerEntry] = {entry.name: entry for entry in _ENTRIES}
