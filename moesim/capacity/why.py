"""Why other layouts lost, in a line each."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.capacity.candidates import Candidate
from moesim.capacity.deployments import Played
from moesim.capacity.search import Answer
from moesim.units import format_seconds

__all__ = ["Loser", "runners_up"]


@dataclass(frozen=True)
class Loser:
    """A layout that is not the answer.

    Attributes:
        name: Deployment, or replica.
        reason: Why.
    """

    name: str
    reason: str


def runners_up(found: Answer, most: int = 8) -> list[Loser]:
    """The nearest first: what keeps the targets but loses, what misses one, what does not run.

    Every layout is named once.

    Args:
        found: By a search.
        most: Lines.
    """
    best = found.best
    losers: list[Loser] = []
    seen = {best.plan.name} if best else set()
    for played in found.kept[1:]:
        if best is not None and played.plan.name not in seen:
            seen.add(played.plan.name)
            losers.append(Loser(played.plan.name, _worse(found, played, best)))
    for played in found.missed:
        if played.plan.name not in seen:
            seen.add(played.plan.name)
            reason = played.miss(found.question)
            losers.append(Loser(played.plan.name, f"{reason} misses the target"))
    tried = {id(one.plan.candidate) for one in (*found.kept, *found.missed)}
    losers = losers[: max(1, most - 3)]
    losers += _never_played(found, tried)[:2]
    losers += [Loser(one.name, one.reason) for one in found.refused[-1:]]
    return losers[:most]


def _worse(found: Answer, played: Played, best: Played) -> str:
    costs, objective = found.costs, found.question.objective
    if objective == "devices" and played.plan.devices > best.plan.devices:
        return f"{played.plan.devices} devices instead of {best.plan.devices}"
    if objective == "cost":
        own, least = costs.value(played), costs.value(best)
        return f"{own:.3g} USD per million tokens instead of {least:.3g}"
    if objective == "energy":
        return f"{costs.value(played):.3g} J per token instead of {costs.value(best):.3g}"
    rate, top = played.tokens_per_s_per_device, best.tokens_per_s_per_device
    return f"{rate:,.0f} tokens/s per device instead of {top:,.0f}"


def _never_played(found: Answer, tried: set[int]) -> list[Loser]:
    """Replicas whose every estimate misses a target by more than estimates err."""
    losers = []
    question = found.question
    listed = {id(option.plan.candidate) for option in found.options}
    for candidate, curve in found.curves:
        if id(candidate) in tried or id(candidate) in listed:
            continue
        fastest = float(curve.tpot_s.min())
        if question.tpot_s is not None and fastest > question.tpot_s:
            reason = f"TPOT is at least {format_seconds(fastest)}, whatever the batch"
        else:
            reason = "misses the targets at the batch that the load needs"
        losers.append(Loser(_alone(candidate), reason))
    return losers


def _alone(candidate: Candidate) -> str:
    return candidate.name
