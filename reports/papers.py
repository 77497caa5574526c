"""Predicts the figures of a scenario: generate routing, run the planners, price the held-out part.

Only the seconds of a :class:`~moesim.step.StepCost` enter; which of them stand for which published
figure is said at :class:`~moesim.reports.scenario.Metric`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from moesim.cluster import Cluster, load_cluster
from moesim.errors import InputError, UsageError
from moesim.hardware import looks_like_file
from moesim.model import ModelSpec, load_model
from moesim.placement import Placement
from moesim.planners.outcome import PlanRequest
from moesim.planners.problem import PlacementProblem
from moesim.planners.registry import run_planner
from moesim.planners.sources import from_trace
from moesim.reports.scenario import Metric, Scenario, load_scenario
from moesim.reports.validation import ValidationRow
from moesim.schema import Evidence, weakest
from moesim.step import StepCost
from moesim.traces.generate import generate
from moesim.traces.likeness import find_likeness
from moesim.traces.synthetic_spec import GeneratorSpec

__all__ = [
    "PaperResult",
    "PlannerGain",
    "SensitivityPoint",
    "make_rows",
    "metric_seconds",
    "reductions",
    "run_scenario",
]

Say = Callable[[str], object]
_T = TypeVar("_T")


@dataclass(frozen=True)
class PlannerGain:
    """What a planner gains over the baseline on one set-up, by seed.

    Planners beside the scenario's own are run on the first seed only.

    Attributes:
        gains: [seeds] reduction for every metric that is modelled.
        balance: [seeds] mean/max device load, mean over layers and batches.
        remote_fraction: [seeds] assignments that leave their device.
        outcomes: [seeds] how each search ended.
        evidence: Of the prediction.
    """

    gains: dict[Metric, np.ndarray]
    balance: np.ndarray
    remote_fraction: np.ndarray
    outcomes: tuple[str, ...]
    evidence: Evidence


@dataclass(frozen=True)
class SensitivityPoint:
    """The scenario's planner on other data.

    Attributes:
        skew: Exponent of the generated popularity.
        affinity: Strength of the generated inter-layer affinity.
        preset: Whether this is the scenario's preset, on its first seed.
        baseline_balance: mean/max device load of the baseline: 1 − it is about the most that
            any placement can take off the average token-processing time.
        outcome: How the planner's search ended.
        gains: Reduction for every metric that is modelled.
    """

    skew: float
    affinity: float
    preset: bool
    baseline_balance: float
    outcome: str
    gains: dict[Metric, float]


@dataclass(frozen=True)
class PaperResult:
    """Everything predicted for a scenario.

    Attributes:
        scenario: As read.
        rows: One per published figure.
        planners: By set-up and planner, the baseline included (its gains are 0).
        sensitivity: Other data, if the scenario asks for it.
    """

    scenario: Scenario
    rows: tuple[ValidationRow, ...]
    planners: dict[str, dict[str, PlannerGain]]
    sensitivity: tuple[SensitivityPoint, ...]


def run_scenario(path: str | Path, *, seed: int = 0, say: Say = lambda _: None) -> PaperResult:
    """Predict the figures of a scenario file.

    Args:
        path: The scenario; cluster files it names are relative to it.
        seed: Of the first trace; the others follow on.
        say: Told of each step as it starts.

    Raises:
        InputError: If the scenario cannot be used.
        InfeasibleError: If a planner has no answer.
    """
    path = Path(path)
    scenario = load_scenario(path)
    model = _named(path, "model", load_model, scenario.model)
    spec = find_likeness(scenario.workload.like).spec(scenario.workload.like)
    if scenario.workload.tokens is not None:
        spec = spec.model_copy(update={"tokens": scenario.workload.tokens})
    runner = _Runner(scenario, model)
    clusters = {}
    for index, asked in enumerate(scenario.setups):
        name = str(path.parent / asked.cluster) if looks_like_file(asked.cluster) else asked.cluster
        clusters[asked.id] = _named(path, f"setups[{index}].cluster", load_cluster, name)
    runs: dict[str, list[dict[str, _Run]]] = {setup: [] for setup in clusters}
    # On Windows a memory-mapped trace may outlive the folder.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for trace_seed in range(seed, seed + scenario.workload.seeds):
            trace = Path(folder) / f"seed-{trace_seed}"
            generate(spec, trace, seed=trace_seed)
            for setup, cluster in clusters.items():
                say(f"{scenario.id}: {setup}, seed {trace_seed}")
                planners = scenario.planners if trace_seed == seed else scenario.planners[:2]
                runs[setup].append(runner.run(trace, cluster, planners, trace_seed))
        points = []
        if scenario.sensitivity is not None:
            of_preset = runs[scenario.sensitivity.setup][0]
            points.append(_point(scenario, spec, of_preset, preset=True))
            cluster = clusters[scenario.sensitivity.setup]
            points += _other_data(runner, cluster, spec, Path(folder), seed, say)
    gains = {
        setup: {name: _gain(scenario, of_setup, name) for name in scenario.planners}
        for setup, of_setup in runs.items()
    }
    return PaperResult(scenario, make_rows(scenario, gains), gains, tuple(points))


def make_rows(
    scenario: Scenario, planners: Mapping[str, Mapping[str, PlannerGain]]
) -> tuple[ValidationRow, ...]:
    """One row per published figure; a prediction is the mean over the seeds."""
    rows = []
    for figure in scenario.figures:
        gain = planners[figure.setup][scenario.planner]
        covered = figure.not_covered is None
        values = gain.gains[figure.metric] if covered else None
        rows.append(
            ValidationRow(
                id=f"{scenario.id}:{figure.setup}:{figure.metric.value}",
                reference=figure.reference,
                predicted=None if values is None else float(values.mean()),
                tolerance=figure.tolerance or scenario.tolerance,
                error_kind="difference",
                evidence=None if values is None else gain.evidence,
                source=f"{scenario.source.url}, {figure.where}",
                note=f"not covered: {figure.not_covered}"
                if values is None
                else f"synthetic routing; {values.min():.3f} … {values.max():.3f} "
                f"over {len(values)} seeds",
            )
        )
    return tuple(rows)


def metric_seconds(cost: StepCost) -> dict[Metric, float]:
    """The seconds that each metric is a reduction of."""
    all_to_all_s = cost.layer_dispatch_s + cost.layer_combine_s
    return {
        Metric.TOKEN_TAIL: float(cost.layer_compute_s.max()),
        Metric.TOKEN_AVERAGE: float(cost.layer_compute_s.mean()),
        Metric.ALL_TO_ALL_TAIL: float(all_to_all_s.max()),
        Metric.ALL_TO_ALL_AVERAGE: float(all_to_all_s.mean()),
        Metric.ALL_TO_ALL_PAIR: cost.tail_pair_s,
    }


def reductions(planned: StepCost, baseline: StepCost) -> dict[Metric, float]:
    """1 − planned / baseline; 0 where the baseline takes no time."""
    before, after = metric_seconds(baseline), metric_seconds(planned)
    return {
        metric: 1 - after[metric] / before[metric] if before[metric] > 0 else 0.0
        for metric in before
    }


@dataclass(frozen=True)
class _Run:
    """One plan, priced on the held-out part of its trace."""

    cost: StepCost
    outcome: str


@dataclass(frozen=True)
class _Runner:
    """Plans on a trace as the scenario says.

    :func:`~moesim.planners.plan.make_plan` would price both parts and bound every plan, which
    here takes four times as long, and would use whichever solver is installed.
    """

    scenario: Scenario
    model: ModelSpec

    def run(
        self, trace: Path, cluster: Cluster, planners: tuple[str, ...], seed: int
    ) -> dict[str, _Run]:
        """Every planner on one trace."""
        scenario = self.scenario
        request = PlanRequest(
            trace=trace,
            comm=scenario.comm,
            phase=scenario.phase,
            tokens_per_device=scenario.tokens_per_device,
            holdout=scenario.workload.holdout,
            seed=seed,
        )
        work = from_trace(request, self.model, cluster)
        if work.holdout is None:
            raise UsageError("a scenario is priced on held-out data, and there is none")
        problem = PlacementProblem(
            loads=work.loads,
            devices=cluster.devices,
            nodes=int(cluster.domain_of_device.max()) + 1,
            slots=self.model.experts,
            routing_groups=self.model.routing_groups,
            speed_factors=cluster.speed_factors,
            transitions=work.transitions,
            pair_bandwidth_bytes_per_s=cluster.pair_bandwidth_bytes_per_s,
            seed=seed,
            time_limit_s=scenario.time_limit_s,
            solver=scenario.solver,
        )
        runs = {}
        for name in planners:
            answer = run_planner(name, problem)
            placement = Placement(
                answer.physical_to_logical, cluster.devices, self.model.experts, work.moe_layers
            )
            runs[name] = _Run(work.holdout.evaluate(placement), answer.outcome.value)
        return runs


def _gain(scenario: Scenario, runs: list[dict[str, _Run]], name: str) -> PlannerGain:
    runs = [run for run in runs if name in run]
    gains = [reductions(run[name].cost, run[scenario.baseline].cost) for run in runs]
    costs = [run[name].cost for run in runs]
    return PlannerGain(
        gains={metric: np.array([gain[metric] for gain in gains]) for metric in gains[0]},
        balance=np.array([cost.balance for cost in costs]),
        remote_fraction=np.array([cost.remote_fraction for cost in costs]),
        outcomes=tuple(run[name].outcome for run in runs),
        # The routing is generated, whatever else went in.
        evidence=weakest(Evidence.ASSUMED, *(cost.evidence for cost in costs)),
    )


def _other_data(
    runner: _Runner, cluster: Cluster, spec: GeneratorSpec, folder: Path, seed: int, say: Say
) -> list[SensitivityPoint]:
    """The planner on data of other skew and affinity, everything else as it was."""
    scenario = runner.scenario
    points = []
    for index, data in enumerate(scenario.sensitivity.points if scenario.sensitivity else ()):
        say(f"{scenario.id}: skew {data.skew}, affinity {data.affinity}")
        trace = folder / f"other-data-{index}"
        other = spec.model_copy(update={"skew": data.skew, "affinity": data.affinity})
        generate(other, trace, seed=seed)
        run = runner.run(trace, cluster, (scenario.baseline, scenario.planner), seed)
        points.append(_point(scenario, other, run, preset=False))
    return points


def _point(
    scenario: Scenario, spec: GeneratorSpec, run: dict[str, _Run], *, preset: bool
) -> SensitivityPoint:
    baseline, planned = run[scenario.baseline].cost, run[scenario.planner].cost
    return SensitivityPoint(
        skew=spec.skew,
        affinity=spec.affinity,
        preset=preset,
        baseline_balance=baseline.balance,
        outcome=run[scenario.planner].outcome,
        gains=reductions(planned, baseline),
    )


def _named(path: Path, field: str, load: Callable[[str], _T], name: str) -> _T:
    """What a scenario names; a name that is not known is the file's fault."""
    try:
        return load(name)
    except UsageError as error:
        raise InputError(str(error), file=path, field=field) from error
