"""Groups of experts as a document: ``moesim.moge/1``."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from moesim.errors import InputError
from moesim.placement import Placement
from moesim.planners.moge_mass import Choices, lost_sets_bits
from moesim.planners.moge_regroup import Grouping
from moesim.schema import Document
from moesim.traces.bundle import Trace

__all__ = ["GroupLayer", "GroupShares", "MogeGroups", "groups_document"]


class GroupShares(Document):
    """Gate mass of all layers that group-limited top-k does not keep, as shares."""

    groups: float
    contiguous: float
    random: float | None = None
    lower_bound: float | None = None
    gap: float | None = None
    """(groups − lower bound) / groups."""


class GroupLayer(Document):
    """One layer's shares."""

    layer: int
    method: Literal["ilp", "search"]
    lost: float
    lower_bound: float
    contiguous: float
    random: float


class MogeGroups(Document):
    """Equal groups of the experts of every MoE layer, one group per device."""

    schema_id: ClassVar[str] = "moesim.moge/1"

    model: str
    experts: int = Field(ge=1)
    top_k: int = Field(ge=1)
    groups: int = Field(ge=1)
    per_group: int = Field(ge=1)
    """Experts of a token in every group."""
    moe_layers: tuple[int, ...]
    physical_to_logical: tuple[tuple[int, ...], ...]
    """[L, E] permutation per layer: slot s holds this expert and is in group s // (E / groups)."""
    trace_sha256: str | None = None
    weights: Literal["gates", "choices"]
    """What is lost: gates, or choices of a trace without gates."""
    lost: GroupShares
    holdout: GroupShares | None = None
    bits_free: float
    """log2 of the sets of experts that a token can have under free top-k."""
    bits_grouped: float
    layers: tuple[GroupLayer, ...]

    @model_validator(mode="after")
    def _permutations(self) -> MogeGroups:
        if self.experts % self.groups:
            raise InputError(
                "groups do not divide the experts", field="groups", found=self.groups,
                allowed=f"a divisor of {self.experts}",
            )  # fmt: skip
        for index, row in enumerate(self.physical_to_logical):
            if sorted(row) != list(range(self.experts)):
                raise InputError(
                    "every expert is needed exactly once",
                    field=f"physical_to_logical[{index}]",
                    found=row,
                    allowed=f"a permutation of 0 … {self.experts - 1}",
                )
        return self

    def placement(self) -> Placement:
        """One group per device."""
        table = np.array(self.physical_to_logical)
        return Placement(table, self.groups, self.experts, self.moe_layers)


def groups_document(
    trace: Trace, model: str, found: Grouping, held_out: Choices | None
) -> MogeGroups:
    """What was found, with its price."""
    manifest, experts = trace.manifest, trace.manifest.experts
    free, grouped = lost_sets_bits(experts, found.groups, found.per_group)
    lost, bound = found.mean("lost"), found.mean("lower_bound")
    return MogeGroups(
        model=model,
        experts=experts,
        top_k=manifest.top_k,
        groups=found.groups,
        per_group=found.per_group,
        moe_layers=manifest.moe_layers,
        physical_to_logical=tuple(map(tuple, found.order.tolist())),
        trace_sha256=trace.sha256,
        weights="choices" if trace.gates is None else "gates",
        lost=GroupShares(
            groups=lost,
            contiguous=found.mean("contiguous"),
            random=found.mean("random"),
            lower_bound=bound,
            gap=(lost - bound) / lost if lost else 0.0,
        ),
        holdout=None if held_out is None else _held_out(found, held_out),
        bits_free=free,
        bits_grouped=grouped,
        layers=tuple(
            GroupLayer(
                layer=number, method="ilp" if layer.method == "ilp" else "search",
                lost=layer.lost, lower_bound=layer.lower_bound,
                contiguous=layer.contiguous, random=layer.random,
            )
            for number, layer in zip(manifest.moe_layers, found.layers, strict=True)
        ),
    )  # fmt: skip


def _held_out(found: Grouping, choices: Choices) -> GroupShares:
    even = np.arange(choices.experts) * found.groups // choices.experts
    return GroupShares(
        groups=found.lost(choices), contiguous=found.lost_by(choices, [even] * len(found.layers))
    )
