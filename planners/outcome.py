"""What is asked of a plan, and everything that is known of the answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from moesim.cluster import Cluster
from moesim.communication import CommForm
from moesim.cost_model import CostModel
from moesim.fitted_costs import Engine
from moesim.model import ModelSpec
from moesim.placement import Placement
from moesim.planners.migration import Migration, break_even_steps
from moesim.planners.validation import PlacementValidation
from moesim.step import StepCost
from moesim.workload import Batches, Phase

__all__ = ["Bound", "PlanOutcome", "PlanRequest", "PlannerScore", "SlotsForm"]

SlotsForm = Literal["equal", "free-per-layer"]


@dataclass(frozen=True)
class PlanRequest:
    """What to plan.

    Attributes:
        trace: Trace bundle; None for the bundled sample (unless ``load`` is given).
        load: Expert counts instead of a trace.
        model: Registry name, file or folder; None for the trace's own model.
        transforms: Of the model, as given to ``--transform``.
        cluster: Short name or file.
        planner: Name of a planner, or ``auto`` for all that suit.
        redundant: Further slots per layer for copies of experts.
        slots: Whether every device gets equally many expert slots in a layer, as serving engines
            need it, or as many as its memory holds over all layers.
        distinct_copies: Whether no device may hold two copies of an expert.
        comm: Form of communication.
        phase: Prefill or decode.
        tokens_per_device: Tokens that each device brings to a step; None for the phase's usual.
        time_limit_s: For all planners together.
        holdout: Share of the trace to keep back for checking.
        seed: Of everything random.
        cost: Kernels fitted to measurements, or rooflines.
        engine: Whose kernels.
        warm_start: Plan file that is in use now.
        max_moves: Slots that may change against ``warm_start``.
        beside: Further planners to run for comparison; they are never chosen.
        command: Command line, for the report.
    """

    trace: Path | None = None
    load: Path | None = None
    model: str | None = None
    transforms: tuple[str, ...] = ()
    cluster: str | None = None
    planner: str = "auto"
    redundant: int = 0
    slots: SlotsForm = "equal"
    distinct_copies: bool = False
    comm: CommForm = "home-rank"
    phase: Phase = "prefill"
    tokens_per_device: int | None = None
    time_limit_s: float = 30.0
    holdout: float = 0.25
    seed: int = 0
    cost: CostModel = "fitted"
    engine: Engine = "sglang"
    warm_start: Path | None = None
    max_moves: int | None = None
    beside: tuple[str, ...] = ()
    command: str = ""


@dataclass(frozen=True)
class PlannerScore:
    """One planner's answer and what it is worth.

    Attributes:
        name: Of the planner.
        placement: Its answer, re-checked.
        cost: On the part of the trace that was planned on.
        holdout: On the part that it did not see.
        solve_s: Seconds the planner took.
        outcome: How the search ended (``heuristic``, ``optimal`` …).
        summary: What the planner does, in a line.
        detail: What it says of its search.
    """

    name: str
    placement: Placement
    cost: StepCost
    holdout: StepCost | None
    solve_s: float
    outcome: str
    summary: str
    detail: dict[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Bound:
    """How far the chosen placement may be from the best there is.

    Attributes:
        lower_bound_s: No placement with these slots takes less per step.
        gap: (step − bound) / bound of the chosen placement.
        proven: Whether the step equals the bound.
    """

    lower_bound_s: float
    gap: float
    proven: bool


@dataclass(frozen=True)
class PlanOutcome:
    """Everything a plan's report says; files, launch and left_out are filled when it is written.

    ``kernels`` names what priced ``experts`` and ``communication``, each with its evidence;
    ``left_out`` holds the engines that cannot load the plan, and why; ``skipped`` the planners
    that have no answer to this problem, where others do. The batches are those that placements
    were priced on; ``validation`` is there once their experts were run, ``migration`` if a
    plan is in use now: what it takes to get from that to the chosen one.
    """

    model: ModelSpec
    cluster: Cluster
    trace_name: str
    trace_sha256: str | None
    trace_note: str
    tokens: int
    moe_layers: tuple[int, ...]
    experts: int
    top_k: int
    loads: np.ndarray
    holdout_fraction: float
    comm: CommForm
    phase: Phase
    tokens_per_device: int
    redundant: int
    seed: int
    cost: str
    engine: str
    kernels: dict[str, str]
    scores: dict[str, PlannerScore]
    chosen: str
    baseline: str
    bound: Bound
    command: str
    version: str
    inputs: dict[str, str]
    files: dict[str, str] = field(default_factory=dict)
    launch: dict[str, list[str]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    planning_batches: Batches | None = None
    holdout_batches: Batches | None = None
    validation: PlacementValidation | None = None
    migration: Migration | None = None

    @property
    def placement(self) -> Placement:
        """The chosen placement."""
        return self.scores[self.chosen].placement

    @property
    def break_even_steps(self) -> float | None:
        """Steps until the transfers from the plan in use have paid; None if they never do."""
        if self.migration is None:
            return None
        before, after = (self.scores[key].cost.step_s for key in ("current", self.chosen))
        return break_even_steps(self.migration.seconds, before, after)

    @property
    def step_tokens(self) -> int:
        """Tokens of a step on all devices."""
        return self.tokens_per_device * self.cluster.devices
