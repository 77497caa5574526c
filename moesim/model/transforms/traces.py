"""What a routing trace can still say of a transformed model."""

from __future__ import annotations

from moesim.errors import UsageError
from moesim.model.spec import ModelSpec
from moesim.model.variant import Variant

__all__ = ["check_routing_of_trace"]

UNSEEN = ("copies", "router_outputs", "rounds", "pools", "equal_groups", "token_share")
"""Fields that change which tokens reach which experts; a recorded trace shows none of them."""


def check_routing_of_trace(model: ModelSpec) -> None:
    """Refuse to read the routing of a transformed model from a trace of the model as it was.

    Raises:
        UsageError: If a transform changes where tokens go, beyond what a trace of as many experts
            and choices could show.
    """
    usual = Variant()
    changed = [name for name in UNSEEN if getattr(model.variant, name) != getattr(usual, name)]
    if changed and model.variant.applied:
        raise UsageError(
            f"--transform {', '.join(model.variant.applied)} changes where tokens go "
            f"({', '.join(changed)}), and the trace is of the model as it was\n"
            "fix: leave out the trace (`moesim simulate step --routing`), or transform only how "
            "weights are stored"
        )
