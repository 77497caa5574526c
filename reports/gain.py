"""Where a plan's gain comes from, and why this placement was taken and no other."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from moesim.reports.arithmetic import quotient
from moesim.reports.text import clean, count, percent
from moesim.units import format_seconds, format_si

if TYPE_CHECKING:
    from moesim.planners.outcome import PlanOutcome
    from moesim.step import StepCost

__all__ = ["GainSources", "gain_sources", "moving", "sources", "why"]


@dataclass(frozen=True)
class GainSources:
    """Seconds per step that the chosen placement saves against the baseline; negative is lost.

    The three add up to the whole gain.

    Attributes:
        compute_tail_s: By the slowest device's experts. The tokens to compute are the same under
            every placement, so all of it is a shorter tail.
        volume_s: By all-to-all traffic that is no longer there: what dispatch and combine would
            save if their time followed the bytes over all links.
        all_to_all_tail_s: By the rest of dispatch and combine: bytes spread more evenly over links.
    """

    compute_tail_s: float
    volume_s: float
    all_to_all_tail_s: float


def gain_sources(before: StepCost, after: StepCost) -> GainSources:
    """Take the difference of two placements apart."""
    moving = [float((c.layer_dispatch_s + c.layer_combine_s).sum()) for c in (before, after)]
    left = quotient(float(after.link_bytes.sum()), float(before.link_bytes.sum()))
    volume_s = moving[0] * (1 - left) if before.link_bytes.sum() > 0 else 0.0
    return GainSources(
        compute_tail_s=float((before.layer_compute_s - after.layer_compute_s).sum()),
        volume_s=volume_s,
        all_to_all_tail_s=moving[0] - moving[1] - volume_s,
    )


def sources(outcome: PlanOutcome) -> str | None:
    """The gain by source in a sentence; None where the baseline itself is chosen."""
    if outcome.chosen == outcome.baseline:
        return None
    before, after = (outcome.scores[key].cost for key in (outcome.baseline, outcome.chosen))
    gain = gain_sources(before, after)
    parts = (
        ("the slowest device's experts", gain.compute_tail_s),
        ("bytes that are not sent", gain.volume_s),
        ("links that are busy more evenly", gain.all_to_all_tail_s),
    )
    listed = ", ".join(f"{_signed(seconds)} by {what}" for what, seconds in parts)
    return clean(f"Saved per step, {_signed(before.step_s - after.step_s)} in all: {listed}.")


def why(outcome: PlanOutcome) -> str | None:
    """Why this placement, in a sentence; None if no other was compared or a faster one was."""
    ranked = sorted(outcome.scores, key=lambda key: outcome.scores[key].cost.step_s)
    if len(ranked) < 3 or ranked[0] != outcome.chosen:
        return None
    chosen, second = (outcome.scores[key] for key in ranked[:2])
    later = second.cost.step_s / chosen.cost.step_s - 1
    gain = gain_sources(second.cost, chosen.cost)
    moving_s = gain.volume_s + gain.all_to_all_tail_s
    reason = f"its experts are {_ahead(gain.compute_tail_s)} and its all-to-all {_ahead(moving_s)}"
    return clean(
        f"{chosen.name} has the shortest step of {len(ranked)} placements; {second.name} is next, "
        f"{percent(later)} slower: against it {reason}."
    )


def moving(outcome: PlanOutcome) -> str | None:
    """What changing from the plan in use takes, in a sentence; None without one."""
    change, steps = outcome.migration, outcome.break_even_steps
    if change is None:
        return None
    if not change.moves:
        return "The plan in use stays: no expert moves."
    text = (
        f"Changing from the plan in use moves {count(change.moves)} copies of experts, "
        f"{format_si(change.moved_bytes, 'B')}, in {format_seconds(change.seconds)} over the links"
    )
    if steps is None:
        return clean(f"{text}; steps are no faster afterwards.")
    whole = ceil(steps)
    tokens = count(round(steps * outcome.step_tokens))
    return clean(f"{text}; paid after {count(whole)} step{'s' * (whole != 1)} ({tokens} tokens).")


def _signed(seconds: float) -> str:
    return ("−" if seconds < 0 else "") + format_seconds(abs(seconds))


def _ahead(seconds: float) -> str:
    return f"{format_seconds(abs(seconds))} {'faster' if seconds >= 0 else 'slower'}"
