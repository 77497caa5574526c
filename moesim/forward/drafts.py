"""Drafts of multi-token prediction in a step: their passes, and the tokens that they gain."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

from moesim.forward.calls import StepShape
from moesim.forward.layout import Sequences, StepLoad
from moesim.model import ModelSpec

__all__ = ["DraftShape", "draft_shape", "tokens_per_step"]


class DraftShape(TypedDict):
    """Fields of :class:`~moesim.forward.calls.StepShape` about drafts."""

    drafting: StepShape | None
    draft_passes: int


def draft_shape(
    model: ModelSpec, load: StepLoad, make: Callable[[StepLoad], StepShape]
) -> DraftShape:
    """What the drafting layer works on in a step.

    In decode it runs once per draft, on one token of every sequence. A model without such a layer
    drafts by other means, whose time is not known.

    Args:
        model: With its layers for multi-token prediction.
        load: Sequences of a step, all with as many drafts.
        make: The shape of a step of other sequences.
    """
    drafts = max(group.drafts for group in load.groups)
    if not drafts or not model.mtp_layers:
        return {"drafting": None, "draft_passes": 0}
    single = [Sequences(group.count, 1, group.cached_tokens) for group in load.groups]
    return {"drafting": make(StepLoad(tuple(single))), "draft_passes": drafts}


def tokens_per_step(load: StepLoad, acceptance: float) -> float:
    """Tokens that all sequences gain.

    A draft counts if those before it did: with acceptance a, a decoding sequence gains
    1 + a + … + aᵏ tokens of k drafts; a prefill counts its prompt.
    """
    return float(
        sum(
            group.count
            * (
                sum(acceptance**place for place in range(group.drafts + 1))
                if group.phase == "decode"
                else group.new_tokens
            )
            for group in load.groups
        )
    )
