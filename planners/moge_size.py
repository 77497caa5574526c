"""Sizes of a grouped Mixture of Experts for a device: an integer program over measured columns.

Pangu Pro MoE (arXiv 2505.21411, section 4.3) picks hidden size, heads, layers and experts for its
devices by simulating candidates. Here a *context* fixes what multiplies everything else: hidden
size, layers, layout and batch. Within it, a step's seconds, the parameters and the bytes are sums
of one attention column and one expert column, so that one program over all contexts picks a
context and two columns of it:

    min  Σ_c cards / batch_c · (layers_c · (Σ_a t_ca x_ca + Σ_e t_ce y_ce) + head_c z_c)
    s.t. Σ_c z_c = 1,  Σ_a x_ca = z_c,  Σ_e y_ce = z_c,
         parameters, active parameters, seconds per step and bytes per device within their budgets.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING

from moesim.planners.problem import SolverName
from moesim.planners.solver import MilpStatus, solve_milp
from moesim.schema import Evidence

if TYPE_CHECKING:
    import pulp

__all__ = [
    "AttentionColumn",
    "Budgets",
    "Context",
    "ExpertColumn",
    "SizeChoice",
    "choose_size",
    "priced",
]

AT_ONCE = 12
"""Contexts of one program, likeliest first."""

BILLION, MILLISECOND, GIGABYTE = 1e9, 1e-3, 1e9
"""Units of the program: solvers want numbers near 1."""


@dataclass(frozen=True)
class AttentionColumn:
    """Attention of one layer.

    Attributes:
        heads: Query heads.
        kv_heads: Heads of keys and values.
        seconds: Of its calls in a step.
        parameters: All.
        device_bytes: Weights and cache of one device.
    """

    heads: int
    kv_heads: int
    seconds: float
    parameters: float
    device_bytes: float


@dataclass(frozen=True)
class ExpertColumn:
    """Experts of one layer.

    Attributes:
        experts: Routed.
        groups: That they are divided into.
        per_group: Active in each group.
        width: Of an expert.
        shared: Shared experts of that width.
        seconds: Of its calls in a step.
        parameters: All.
        active: Of a token.
        device_bytes: Weights of one device.
    """

    experts: int
    groups: int
    per_group: int
    width: int
    shared: int
    seconds: float
    parameters: float
    active: float
    device_bytes: float


@dataclass(frozen=True)
class Context:
    """What multiplies the columns, and what is there once.

    Attributes:
        hidden: Hidden size.
        layers: All with experts.
        tp: Devices that an attention group is cut over.
        dp: Attention groups.
        batch: Sequences of a step, over all cards.
        seconds: Of everything outside the layers.
        parameters: Of embedding and head.
        device_bytes: Of those on one device.
        attention: Columns to choose from.
        experts: Columns to choose from.
        interval: Ends of a layer's 80 % interval, as factors.
        evidence: The weakest of its prices.
    """

    hidden: int
    layers: int
    tp: int
    dp: int
    batch: int
    seconds: float
    parameters: float
    device_bytes: float
    attention: tuple[AttentionColumn, ...]
    experts: tuple[ExpertColumn, ...]
    interval: tuple[float, float] = (1.0, 1.0)
    evidence: Evidence = Evidence.ASSUMED


@dataclass(frozen=True)
class Budgets:
    """What a choice must keep.

    Attributes:
        parameters: Least and most.
        active: Least and most of a token.
        tpot_s: Most seconds of a step.
        device_bytes: Most of one device.
    """

    parameters: tuple[float, float] = (0.0, inf)
    active: tuple[float, float] = (0.0, inf)
    tpot_s: float = inf
    device_bytes: float = inf


@dataclass(frozen=True)
class SizeChoice:
    """A shape with its price.

    Attributes:
        context: Chosen.
        attention: Chosen.
        experts: Chosen.
        step_s: Seconds of a step.
        tokens_per_s: Per card.
        parameters: All.
        active: Of a token.
        device_bytes: Of one device.
        proven: Whether nothing within the budgets is better.
    """

    context: Context
    attention: AttentionColumn
    experts: ExpertColumn
    step_s: float
    tokens_per_s: float
    parameters: float
    active: float
    device_bytes: float
    proven: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the model alone, whatever batch and layout."""
        return (
            *(self.context.hidden, self.context.layers, self.attention.heads),
            *(self.attention.kv_heads, self.experts.experts, self.experts.groups),
            *(self.experts.per_group, self.experts.width, self.experts.shared),
        )


def priced(
    context: Context, attention: AttentionColumn, experts: ExpertColumn, cards: int
) -> SizeChoice:
    """Sums over a choice."""
    layers = context.layers
    step_s = layers * (attention.seconds + experts.seconds) + context.seconds
    return SizeChoice(
        context,
        attention,
        experts,
        step_s,
        context.batch / step_s / cards,
        layers * (attention.parameters + experts.parameters) + context.parameters,
        layers * (attention.parameters + experts.active) + context.parameters,
        layers * (attention.device_bytes + experts.device_bytes) + context.device_bytes,
    )


def choose_size(
    contexts: Sequence[Context],
    budgets: Budgets,
    cards: int,
    *,
    without: Collection[tuple[int, ...]] = (),
    solver: SolverName = "auto",
    time_limit_s: float = 60.0,
) -> SizeChoice | None:
    """The choice with most tokens per second and card, or None if nothing keeps the budgets.

    Args:
        contexts: To choose from, each with columns.
        budgets: That it keeps.
        cards: Of every layout.
        without: Shapes (:attr:`SizeChoice.shape`) that are not to be chosen again.
        solver: As for :func:`~moesim.planners.solver.solve_milp`.
        time_limit_s: Seconds.
    """
    waiting = sorted(contexts, key=lambda context: -_at_best(context, cards))
    best: SizeChoice | None = None
    proven = True
    while waiting:
        # Contexts that cannot beat the best so far are left out; that proves nothing less.
        least = 0.0 if best is None else best.tokens_per_s
        waiting = [context for context in waiting if _at_best(context, cards) > least]
        part, waiting = waiting[:AT_ONCE], waiting[AT_ONCE:]
        if not part:
            break
        found, done = _solve(part, budgets, cards, without, solver, time_limit_s)
        proven &= done
        if found is not None and found.tokens_per_s > least:
            best = found
    return None if best is None else replace(best, proven=proven)


def _at_best(context: Context, cards: int) -> float:
    """Tokens per second and card with the fastest columns, whatever they cost."""
    layer_s = min(one.seconds for one in context.attention)
    layer_s += min(one.seconds for one in context.experts)
    return context.batch / (context.layers * layer_s + context.seconds) / cards


def _solve(
    contexts: Sequence[Context],
    budgets: Budgets,
    cards: int,
    without: Collection[tuple[int, ...]],
    solver: SolverName,
    time_limit_s: float,
) -> tuple[SizeChoice | None, bool]:
    """The program over some contexts, and whether its answer is proven."""
    import pulp

    model = pulp.LpProblem("sizes", pulp.LpMinimize)
    seconds, total, active, held, objective = [], [], [], [], []
    chosen = []
    for c, context in enumerate(contexts):
        z = model.add_variable(f"z_{c}", cat="Binary")
        x = [model.add_variable(f"x_{c}_{a}", cat="Binary") for a in range(len(context.attention))]
        y = [model.add_variable(f"y_{c}_{e}", cat="Binary") for e in range(len(context.experts))]
        model.addConstraint(pulp.lpSum(x) == z, f"attention__{c}")
        model.addConstraint(pulp.lpSum(y) == z, f"experts__{c}")
        chosen.append(z)
        layers = context.layers
        pairs: list[tuple[pulp.LpVariable, AttentionColumn | ExpertColumn]] = []
        pairs += zip(x, context.attention, strict=True)
        pairs += zip(y, context.experts, strict=True)
        step = [(z, context.seconds / MILLISECOND)]
        step += [(v, layers * one.seconds / MILLISECOND) for v, one in pairs]
        seconds += [weight * v for v, weight in step]
        objective += [weight * cards / context.batch * v for v, weight in step]
        total += [context.parameters / BILLION * z]
        total += [layers * one.parameters / BILLION * v for v, one in pairs]
        active += [context.parameters / BILLION * z]
        active += [layers * one.parameters / BILLION * v for v, one in pairs[: len(x)]]
        active += [
            layers * one.active / BILLION * v for v, one in zip(y, context.experts, strict=True)
        ]
        held += [context.device_bytes / GIGABYTE * z]
        held += [layers * one.device_bytes / GIGABYTE * v for v, one in pairs]
        for number, shape in enumerate(without):
            _forbid(model, c, context, (x, y), shape, number)
    model.addConstraint(pulp.lpSum(chosen) == 1, "one__context")
    limits = (
        ("parameters", total, budgets.parameters, BILLION),
        ("active", active, budgets.active, BILLION),
        ("tpot", seconds, (0.0, budgets.tpot_s), MILLISECOND),
        ("memory", held, (0.0, budgets.device_bytes), GIGABYTE),
    )
    for name, terms, (low, high), unit in limits:
        if low > 0:
            model.addConstraint(pulp.lpSum(terms) >= low / unit, f"{name}__low")
        if high < inf:
            model.addConstraint(pulp.lpSum(terms) <= high / unit, f"{name}__high")
    model.setObjective(pulp.lpSum(objective))
    found = solve_milp(model, solver=solver, time_limit_s=time_limit_s, stop_gap=1e-6)
    done = found.status in (MilpStatus.SOLVED, MilpStatus.INFEASIBLE)
    return _read(contexts, found.values or {}, cards), done


def _forbid(
    model: pulp.LpProblem,
    c: int,
    context: Context,
    variables: tuple[list[pulp.LpVariable], list[pulp.LpVariable]],
    shape: tuple[int, ...],
    number: int,
) -> None:
    """Not both columns of a shape that was chosen before."""
    if shape[:2] != (context.hidden, context.layers):
        return
    x, y = variables
    for a, one in enumerate(context.attention):
        for e, other in enumerate(context.experts):
            if (one.heads, one.kv_heads) == shape[2:4] and _shape(other) == shape[4:]:
                model.addConstraint(x[a] + y[e] <= 1, f"other__{number}_{c}_{a}_{e}")


def _shape(column: ExpertColumn) -> tuple[int, ...]:
    return column.experts, column.groups, column.per_group, column.width, column.shared


def _read(contexts: Sequence[Context], values: dict[str, float], cards: int) -> SizeChoice | None:
    for c, context in enumerate(contexts):
        if values.get(f"z_{c}", 0.0) < 0.5:
            continue
        a = next(k for k in range(len(context.attention)) if values.get(f"x_{c}_{k}", 0.0) > 0.5)
        e = next(k for k in range(len(context.experts)) if values.get(f"y_{c}_{k}", 0.0) > 0.5)
        return priced(context, context.attention[a], context.experts[e], cards)
    return None
