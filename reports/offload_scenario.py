"""Published figures of offloading systems, and how to predict them, as a document.

A scenario is a YAML file (schema ``moesim.offload-scenario/1``) beside those of placement. The
routing is made up, as local as a hit rate that the paper itself publishes
(:mod:`moesim.offload.router_process`); all other figures are predictions.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from moesim.errors import InputError
from moesim.offload.systems import POLICIES, PREDICTORS, QUOTAS, SYSTEMS
from moesim.reports.scenario import Assumption, Identifier, Source, Text
from moesim.schema import Document

__all__ = ["OffloadFigure", "OffloadScenario", "PaperModel", "PaperSystem"]

Share = Annotated[float, Field(gt=0, le=1)]
Kind = Literal["speedup", "seconds", "hit-rate", "hit-if-landed", "lru-hit-rate", "scheduler-gain"]


NAMED_SYSTEMS = {"speedup": 2, "seconds": 1, "hit-rate": 1, "hit-if-landed": 1}
"""How many systems a figure of each kind names."""


class PaperModel(Document):
    """A model, and how local its routing is."""

    id: Identifier
    model: Text
    """Registry name; of models that are not in it, a name for people."""
    layers: int | None = Field(default=None, ge=1)
    """MoE layers, with ``experts`` and ``top_k``, of a model that is not in the registry: then
    nothing is timed."""
    experts: int | None = Field(default=None, ge=2)
    top_k: int | None = Field(default=None, ge=1)
    fit_share: Share
    """Slots per expert at which LRU's hit rate is given."""
    fit_batch: int = Field(default=1, ge=1)
    fit_lru_hit_rate: Share
    """That hit rate, an input."""
    where: Text


class PaperSystem(Document):
    """One of moesim's systems with changes."""

    system: Literal[tuple(SYSTEMS)]  # type: ignore[valid-type]
    schedule: Text | None = None
    policy: Literal[POLICIES] | None = None  # type: ignore[valid-type]
    quota: Literal[QUOTAS] | None = None  # type: ignore[valid-type]
    predictor: Literal[PREDICTORS] | None = None  # type: ignore[valid-type]
    lookahead: int | None = Field(default=None, ge=0)
    impact: bool | None = None
    fill: bool | None = None
    prefill_schedule: Text | None = None
    bits: float | None = Field(default=None, ge=1, le=32)
    """Of expert weights; the scenario's if not given."""
    narrow_bits: float | None = Field(default=None, ge=1, le=32)
    slots_share: float | None = Field(default=None, ge=0, le=1)
    """Slots per expert; the figure's if not given."""


class OffloadFigure(Document):
    """One published number."""

    id: Identifier
    kind: Kind
    """``speedup``: baseline's over system's time. ``seconds``: of a step. ``hit-rate``: of the
    system. ``hit-if-landed``: if all that a predictor of the given recall names is there in time,
    beside the system's own hits. ``lru-hit-rate``: of LRU. ``scheduler-gain``: of ExpertFlow's
    token scheduler."""
    phase: Literal["prefill", "decode"] = "decode"
    system: Text | None = None
    baseline: Text | None = None
    models: tuple[Text, ...]
    shares: tuple[Share, ...]
    """Slots per expert; figures are means over models, shares and prompts."""
    prompts: tuple[int, ...] = (128,)
    batch: int = Field(default=1, ge=1)
    recall: Share | None = None
    """Of the predictor, for ``hit-if-landed``."""
    most: bool = False
    """Take the largest and not the mean: for what is published as "up to"."""
    reference: float
    tolerance: float = Field(gt=0)
    where: Text
    not_covered: Text | None = None
    """Why the paper's text does not determine it. What our set-up gives still stands in the
    note."""


class OffloadScenario(Document):
    """Published figures of an offloading system."""

    schema_id: ClassVar[str] = "moesim.offload-scenario/1"

    id: Identifier
    title: Text
    source: Source
    hardware: Text
    bits: float = Field(ge=1, le=32)
    decode_tokens: int = Field(ge=1, le=4096)
    learned_tokens: int = Field(ge=16, le=65_536)
    """Tokens before those that are measured, to learn popularity from."""
    models: tuple[PaperModel, ...] = Field(min_length=1)
    systems: dict[str, PaperSystem]
    tolerance_reason: Text
    figures: tuple[OffloadFigure, ...] = Field(min_length=1)
    assumptions: tuple[Assumption, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        models = [model.id for model in self.models]
        for index, figure in enumerate(self.figures):
            named = [("system", figure.system), ("baseline", figure.baseline)]
            for field, name in named:
                if name is not None and name not in self.systems:
                    raise InputError(
                        "no such system",
                        field=f"figures[{index}].{field}",
                        found=name,
                        allowed=", ".join(self.systems),
                    )
            if missing := [name for name in figure.models if name not in models]:
                raise InputError(
                    "no such model", field=f"figures[{index}].models", found=missing[0],
                    allowed=", ".join(models),
                )  # fmt: skip
            needs = {"speedup": 2, "seconds": 1, "hit-rate": 1, "hit-if-landed": 1}.get(
                figure.kind, 0
            )
            if sum(name is not None for _, name in named) < needs:
                raise InputError(
                    f"a figure of kind {figure.kind} names {needs} systems",
                    field=f"figures[{index}]",
                )
        return self
