"""Scenario documents: what a paper published, and the set-up to predict it with.

A scenario is a YAML file (schema ``moesim.scenario/1``) with its clusters beside it. It holds the
published figures, where in the paper they stand, what we would accept, and every assumption that
stands between the paper's set-up and ours.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from moesim.communication import CommForm
from moesim.errors import InputError, UsageError
from moesim.planners.problem import SolverName
from moesim.planners.registry import PLANNERS
from moesim.safe_io import read_json, read_yaml
from moesim.schema import Document
from moesim.traces.likeness import likenesses
from moesim.workload import Phase

__all__ = [
    "Figure",
    "Metric",
    "Scenario",
    "Setup",
    "load_scenario",
    "scenario_ids",
    "scenario_path",
    "scenario_schema",
]

Identifier = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=64)]
Text = Annotated[str, StringConstraints(min_length=1)]
Url = Annotated[str, StringConstraints(pattern=r"^https://\S+$")]


class Metric(StrEnum):
    """What a figure is about; each is a fraction gained against the baseline.

    All but the speed-up are reductions, 1 − planned / baseline.
    """

    TOKEN_TAIL = "token-processing-tail"  # noqa: S105 - tokens of a model
    """Largest over the layers of the slowest device's time for its experts."""
    TOKEN_AVERAGE = "token-processing-average"  # noqa: S105
    """Mean over the layers of the slowest device's time for its experts."""
    ALL_TO_ALL_TAIL = "all-to-all-tail"
    """Largest over the layers of the time of the layer's all-to-alls."""
    ALL_TO_ALL_AVERAGE = "all-to-all-average"
    """Mean over the layers of the time of the layer's all-to-alls."""
    ALL_TO_ALL_PAIR = "all-to-all-pair"
    """Sum over the layers of the slowest device pair's time, each pair alone on its route: the
    objective of MoETuner's second ILP."""
    END_TO_END_SPEEDUP = "end-to-end-speedup"
    """Baseline over planned time of the whole model, less 1."""


UNMODELLED = frozenset({Metric.END_TO_END_SPEEDUP})
"""Metrics that there is no prediction of."""


class Source(Document):
    """Where the figures were published."""

    authors: Text
    url: Url
    section: Text


class Setup(Document):
    """One system of the paper."""

    id: Identifier
    title: Text
    """The system as published."""
    cluster: Text
    """Short name of a cluster, or a cluster file relative to the scenario."""


class SyntheticWorkload(Document):
    """Routing from the generator, for papers whose routing is not public."""

    like: Literal[tuple(likenesses().models)]  # type: ignore[valid-type]
    """Model whose published routing statistics the traces have."""
    seeds: int = Field(ge=1, le=100)
    """Traces, with consecutive seeds; predictions are means over them."""
    holdout: float = Field(gt=0, lt=1)
    """Share of each trace that plans are priced on and not made with."""
    tokens: int | None = Field(default=None, ge=512, le=2**20)
    """Tokens per trace; the likeness's own if not given."""


class Figure(Document):
    """One published number."""

    setup: Identifier
    metric: Metric
    reference: float
    """A fraction: 0.36 where the paper prints 36 %."""
    where: Text
    tolerance: float | None = Field(default=None, gt=0)
    """Accepted difference; the scenario's if not given."""
    not_covered: Text | None = None
    """Why there is no prediction."""

    @model_validator(mode="after")
    def _covered_or_not(self) -> Self:
        if self.metric in UNMODELLED and self.not_covered is None:
            raise InputError(
                "this metric is not modelled",
                field="not_covered",
                fix="say there why it is not, or remove the figure",
            )
        return self


class Assumption(Document):
    """One thing that is taken for granted."""

    id: Identifier
    text: Text


class OtherData(Document):
    """Parameters of the generator that replace the likeness's."""

    skew: float = Field(ge=0, le=4)
    affinity: float = Field(ge=0, le=1)


class Sensitivity(Document):
    """Other data that the predictions are repeated on, to show what they depend on."""

    setup: Identifier
    points: tuple[OtherData, ...] = Field(min_length=1, max_length=64)


class Scenario(Document):
    """Published gains of a placement, and how to predict them."""

    schema_id: ClassVar[str] = "moesim.scenario/1"

    id: Identifier
    title: Text
    source: Source
    model: Text
    baseline: Text
    planner: Text
    """The planner that the figures are of."""
    beside: tuple[Text, ...] = ()
    """Planners shown for comparison, on the first trace."""
    solver: SolverName = "cbc"
    """Fixed, so that the answer does not depend on what is installed."""
    time_limit_s: float = Field(gt=0, le=600)
    """Per plan."""
    comm: CommForm
    phase: Phase
    tokens_per_device: int = Field(ge=1, le=2**20)
    workload: SyntheticWorkload
    setups: tuple[Setup, ...] = Field(min_length=1)
    tolerance: float = Field(gt=0)
    """Accepted difference between prediction and reference, both fractions."""
    tolerance_reason: Text
    figures: tuple[Figure, ...] = Field(min_length=1)
    assumptions: tuple[Assumption, ...] = Field(min_length=1)
    sensitivity: Sensitivity | None = None

    @property
    def planners(self) -> tuple[str, ...]:
        """The baseline, the planner, then those beside it; each once."""
        return tuple(dict.fromkeys((self.baseline, self.planner, *self.beside)))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for field, names in (
            ("setups", [setup.id for setup in self.setups]),
            ("figures", [f"{figure.setup}:{figure.metric}" for figure in self.figures]),
            ("assumptions", [assumption.id for assumption in self.assumptions]),
        ):
            if repeated := {name for name in names if names.count(name) > 1}:
                raise InputError("used twice", field=field, found=min(repeated))
        setups = [setup.id for setup in self.setups]
        used = [(f"figures[{i}].setup", figure.setup) for i, figure in enumerate(self.figures)]
        if self.sensitivity is not None:
            used.append(("sensitivity.setup", self.sensitivity.setup))
        for field, name in used:
            if name not in setups:
                raise InputError(
                    "no such set-up", field=field, found=name, allowed=", ".join(setups)
                )
        named = [("baseline", self.baseline), ("planner", self.planner)]
        named += [(f"beside[{i}]", name) for i, name in enumerate(self.beside)]
        if self.planner == self.baseline:
            raise InputError("nothing to compare", field="planner", found=self.planner)
        for field, name in named:
            if name not in PLANNERS:
                raise InputError(
                    "no such planner", field=field, found=name, allowed=", ".join(PLANNERS)
                )
        return self


def _folder() -> Path:
    return Path(__file__).parent / "scenarios"


def scenario_ids() -> list[str]:
    """Ids of the bundled scenarios, sorted; each is the stem of its file."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def scenario_path(name: str) -> Path:
    """The file of a bundled scenario.

    Raises:
        UsageError: If there is none of that id.
    """
    if name not in scenario_ids():
        raise UsageError(f"no scenario {name!r}; known are {', '.join(scenario_ids())}")
    return _folder() / f"{name}.yaml"


def scenario_schema(path: str | Path) -> object:
    """What kind of scenario a file says it is; its own reader refuses what is none."""
    path = Path(path)
    data = (read_json if path.suffix == ".json" else read_yaml)(path)
    return data.get("schema") if isinstance(data, dict) else None


def load_scenario(path: str | Path) -> Scenario:
    """Read a scenario file.

    Raises:
        InputError: If it is not a scenario, or its parts do not fit together.
    """
    return Scenario.load(path)
