"""What a published design changes in a model that no dimension of it shows.

The fields are few and general: a design (null experts, shared bases, recursion, …) sets some of
them, and whoever counts parameters, bytes or FLOPs reads them without knowing the design.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictInt, model_validator

from moesim.errors import InputError
from moesim.model.mixers import Size
from moesim.schema import Document

__all__ = ["ComponentBits", "ExtraProduct", "Variant"]

Share = Annotated[float, Field(gt=0, le=1)]
Bits = Annotated[float, Field(ge=1, le=64)]
Count = Annotated[StrictInt, Field(ge=0, le=2**62)]


class ComponentBits(Document):
    """Stored bits per weight, scales included; ``None``: as the model states or is asked for."""

    experts: Bits | None = None
    shared: Bits | None = None
    mixers: Bits | None = None
    dense: Bits | None = None


class ExtraProduct(Document):
    """A matrix product [m, depth] x [depth, columns] that every MoE layer makes beside the usual.

    Its weights are counted elsewhere: in the parameters of an expert or of the layer.
    """

    name: str = Field(min_length=1)
    columns: Annotated[StrictInt, Field(ge=1, le=2**40)]
    depth: Size
    per: Literal["token", "copy", "expert"]
    """What a row stands for: a token; a token copy at its expert, whose own matrix multiplies it;
    or an expert that any token chose."""


class Variant(Document):
    """Departures of a model from one router, one top-k choice and one pass through every layer."""

    applied: tuple[str, ...] = ()
    """The transforms that led here, in order."""

    copies: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()
    """Probability that a token goes to 0, 1, …, top-k routed experts; empty: always top-k."""
    router_outputs: Size | None = None
    """Candidates that a router scores; ``None``: the experts of its layer."""
    routers: Size | None = None
    """Router matrices that the model stores; ``None``: one per choice and MoE layer."""
    rounds: Annotated[StrictInt, Field(ge=1, le=64)] = 1
    """Times that an MoE layer routes, dispatches, computes and combines, one after another."""
    pools: Annotated[StrictInt, Field(ge=1, le=64)] = 1
    """Sets of experts of a layer, each of ``experts``; round r uses set r modulo this."""
    equal_groups: bool = False
    """Whether a token chooses equally many experts of every routing group."""

    expert_parameters: Count | None = None
    """Stored per routed expert; ``None``: what its dimensions say."""
    expert_active_parameters: Count | None = None
    """What a token copy multiplies with, and what is read if any does; ``None``: the stored."""
    layer_expert_parameters: Count = 0
    """Stored once per MoE layer, for all its experts."""
    adapter_experts: Annotated[float, Field(ge=0, le=2**20)] = 0.0
    """Further experts stored per MoE layer (mean), chosen in place of one of the model's own."""
    products: tuple[ExtraProduct, ...] = ()
    bits: ComponentBits = ComponentBits()

    layer_reuse: Annotated[StrictInt, Field(ge=1, le=4096)] = 1
    """Layers that share one set of weights."""
    token_share: Annotated[float, Field(gt=0, le=8)] = 1.0
    """Passes of a token through a layer, mean over layers; below 1 where tokens skip layers."""
    head_share: Share = 1.0
    """Query heads of a layer that a token uses; keys and values are kept for all."""
    hidden_share: Share = 1.0
    """Elements of the hidden size that a token uses."""

    @model_validator(mode="after")
    def _distribution(self) -> Variant:
        if self.copies and abs(sum(self.copies) - 1) > 1e-6:
            raise InputError(
                "probabilities must add up to 1", field="copies", found=sum(self.copies)
            )
        if self.copies and self.copies[0] > 1 - 1e-9:
            raise InputError(
                "no token reaches any expert",
                field="copies",
                found=self.copies[0],
                allowed="a probability of no expert below 1",
            )
        if self.rounds % self.pools:
            raise InputError(
                "the rounds must be a multiple of the pools",
                field="rounds",
                found=self.rounds,
                allowed=f"a multiple of {self.pools}",
            )
        return self

    def mean_copies(self, top_k: int) -> float:
        """Routed experts per token and round, mean."""
        if not self.copies:
            return float(top_k)
        return sum(k * probability for k, probability in enumerate(self.copies))
