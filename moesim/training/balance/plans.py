"""What each system does with experts before an iteration, from the loads that it has seen.

Systems after their papers, as Hecate's authors compare them (arXiv 2502.02581, section 5.1):

- ``ep``: every expert on its device, for ever.
- ``fastermoe``: after the gate, the hottest experts are broadcast to all devices for the
  iteration, as many as a cost model finds best; gradients come back (FasterMoE, PPoPP 2022).
- ``smartmoe``: experts change places with their optimizer states every so often (USENIX ATC 2023).
- ``flexmoe``: hot experts have copies, each with its optimizer state, which move every so often;
  gradients of copies are summed in every iteration (arXiv 2304.03946).
- ``hecate``: see :mod:`moesim.training.balance.sharding` and ``materialise``; ``hecate-rm`` drops
  copies after a layer's forward pass and gathers them again for backward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moesim.training.balance.materialise import held_by_owner, materialise, replicate
from moesim.training.balance.sharding import contiguous, heterogeneous, swapped
from moesim.training.balance.sparse import gather_chains

__all__ = ["BALANCERS", "HISTORY", "Plan", "PlanContext", "make_plan"]

HISTORY = 5
"""Iterations whose mean predicts the next (Hecate, section 4.2)."""

MOVED = 7
"""Bytes moved with an expert over those of its weights: weights, and 12 bytes of Adam's state to
the weights' 2."""

BALANCERS = ("ep", "fastermoe", "smartmoe", "flexmoe", "hecate", "hecate-rm")


@dataclass(frozen=True, eq=False)
class Plan:
    """Experts of all layers in one iteration.

    Attributes:
        held: [L, E, G].
        owner: [L, E].
        gather: [L, G, G] bytes from device to device before a layer's experts run.
        reduce: [L, G, G] the same after their backward pass.
        again: Whether weights are gathered once more for backward.
        hidden: Whether both travel behind attention.
        moved: [G, G] bytes of weights and optimizer states that change places, waited for.
    """

    held: np.ndarray
    owner: np.ndarray
    gather: np.ndarray
    reduce: np.ndarray
    again: bool
    hidden: bool
    moved: np.ndarray


@dataclass(frozen=True, eq=False)
class PlanContext:
    """What plans depend on besides loads.

    Attributes:
        node_of: [G] node of every device.
        expert_bytes: Weights of one expert.
        hot: Hecate's overlap degree.
        room: Copies of one layer that a device has room for.
        slots: FlexMoE's slots per device and layer.
        layers_s: Seconds of every layer under a plan and loads; FasterMoE's cost model.
    """

    node_of: np.ndarray
    expert_bytes: float
    hot: int
    room: int
    slots: int
    layers_s: Callable[[Plan, np.ndarray], np.ndarray]


def make_plan(
    system: str, history: np.ndarray, now: np.ndarray, before: Plan | None, context: PlanContext,
    *, rearrange: bool,
) -> Plan:  # fmt: skip
    """The plan of an iteration.

    Args:
        system: One of ``BALANCERS``.
        history: [H, L, E] loads of the last iterations.
        now: [L, E] loads of this one; only FasterMoE looks at them, after the gate.
        before: Plan of the iteration before; None at first.
        context: Everything else.
        rearrange: Whether owners may change now.
    """
    expected = history[-HISTORY:].mean(axis=0)
    layers, experts = now.shape
    devices = len(context.node_of)
    if system == "smartmoe":
        if before is not None and not rearrange:
            return _still(before)
        owner = swapped(expected, devices)
        return _plan(held_by_owner(owner, devices), owner, before, context)
    if system == "flexmoe":
        if before is not None and not rearrange:
            return _still(before)
        held, owner = replicate(expected, devices, context.slots)
        return _plan(held, owner, before, context, reduce=2.0)
    if system.startswith("hecate"):
        if before is None or rearrange:
            owner = heterogeneous(history.mean(axis=0), context.node_of, context.hot)
        else:
            owner = before.owner
        held = materialise(expected, owner, context.node_of, context.hot, context.room)
        return _plan(
            held, owner, before, context, gather=1.0, reduce=1.0, hidden=True,
            again=system == "hecate-rm", moves=rearrange,
        )  # fmt: skip
    owner = contiguous(layers, experts, devices)
    plan = _plan(held_by_owner(owner, devices), owner, None, context)
    return _shadowed(plan, now, context) if system == "fastermoe" else plan


def _plan(
    held: np.ndarray, owner: np.ndarray, before: Plan | None, context: PlanContext,
    *, gather: float = 0.0, reduce: float = 0.0, hidden: bool = False, again: bool = False,
    moves: bool = True,
) -> Plan:  # fmt: skip
    chains = gather_chains(held, owner, context.node_of, context.expert_bytes)
    devices = len(context.node_of)
    moved = np.zeros((devices, devices))
    if before is not None and moves:
        # Copies that are gathered anyway need no move; others come from a device that had them.
        keeps = held_by_owner(owner, devices) if gather else held
        had = held_by_owner(before.owner, devices) if gather else before.held
        for layer, expert, device in np.argwhere(keeps & ~had):
            source = before.owner[layer, expert]
            moved[source, device] += MOVED * context.expert_bytes
    return Plan(
        held, owner, gather * chains, reduce * chains.transpose(0, 2, 1), again, hidden, moved
    )


def _still(plan: Plan) -> Plan:
    return Plan(
        plan.held, plan.owner, plan.gather, plan.reduce, plan.again, plan.hidden,
        np.zeros_like(plan.moved),
    )  # fmt: skip


def _shadowed(plan: Plan, now: np.ndarray, context: PlanContext) -> Plan:
    """Per layer the number of hottest experts to broadcast that its cost model likes best."""
    ranked = np.argsort(-now, axis=1, kind="stable")
    best, best_s = plan, context.layers_s(plan, now)
    layers, experts = now.shape
    count = 1
    while count <= experts // 2:
        held = plan.held.copy()
        for layer in range(layers):
            held[layer, ranked[layer, :count]] = True
        tried = _plan(held, plan.owner, None, context, gather=1.0, reduce=1.0)
        seconds = context.layers_s(tried, now)
        better = seconds < best_s
        if not better.any():
            break
        take = better[:, None, None]
        best = Plan(
            np.where(take, tried.held, best.held), plan.owner,
            np.where(take, tried.gather, best.gather), np.where(take, tried.reduce, best.reduce),
            False, False, plan.moved,
        )  # fmt: skip
        best_s = np.where(better, seconds, best_s)
        count *= 2
    return best
