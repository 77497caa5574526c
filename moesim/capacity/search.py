"""Find the best deployment: estimate everything, play what could be best.

Every deployment has an estimate of its latencies and of the objective. Those that may keep the
targets are played in order of their estimates, until what has been confirmed is better than all
that is left could be, errors of estimates allowed for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import ceil

import numpy as np

from moesim.capacity.candidates import Candidate, Refused, check_devices, find_candidates
from moesim.capacity.costs import Costs
from moesim.capacity.deployments import Plan, Played, play
from moesim.capacity.estimate import Curve, decode_curve, estimate_curve, prefill_rate
from moesim.capacity.question import Question
from moesim.model import ModelSpec, load_model

__all__ = ["Answer", "Option", "answer", "estimate_plan"]

SLACK = 0.25
"""By how much an estimate may be off: within that, deployments are played. Estimates lie within it
of what is played for nine in ten (tests.benchmarks.capacity)."""

MOST_PLAYED = 40
"""Deployments that are played; each takes some hundredths of a second."""

ENOUGH_KEPT = 6
"""Deployments that keep the targets, from which on no more are played that are estimated to be no
better."""

BEST_WORKERS = 6
"""Prefill and decode workers that are paired, of each kind, by their rate per device."""

MOST_WORKERS = 16
"""Prefill workers of a deployment."""


@dataclass(frozen=True, eq=False)
class Option:
    """A deployment with its estimate.

    Attributes:
        plan: Replicas or workers.
        ttft_s: Estimated mean.
        tpot_s: Estimated mean.
        tokens_per_s: Estimated, of all.
        value: Of the objective; less is better.
        expected: Requests in flight per replica.
    """

    plan: Plan
    ttft_s: float
    tpot_s: float
    tokens_per_s: float
    value: float
    expected: float


@dataclass(frozen=True, eq=False)
class Answer:
    """What a search found.

    Attributes:
        model: What is served.
        question: As asked.
        costs: Prices and watts.
        best: None if nothing keeps the targets.
        kept: All that were played and keep the targets, best first.
        missed: Those that were played and do not, nearest first.
        options: All estimates, best first.
        refused: Layouts that do not run.
        candidates: Replicas that do.
        curves: [candidate] estimates by concurrency, of those that hold a request.
    """

    model: ModelSpec
    question: Question
    costs: Costs
    best: Played | None
    kept: list[Played]
    missed: list[Played]
    options: list[Option]
    refused: list[Refused]
    candidates: list[Candidate]
    curves: list[tuple[Candidate, Curve]] = field(default_factory=list)


def answer(question: Question, say: Callable[[str], None] = lambda _: None) -> Answer:
    """Search.

    Args:
        question: What is asked.
        say: Told what happens next.

    Raises:
        UsageError: If the question contradicts itself.
        InputError: If a file cannot be used.
    """
    question.check()
    check_devices(question)
    model = load_model(question.model, dense=True, transforms=question.transforms)
    candidates, refused = find_candidates(question, model)
    say(f"{len(candidates)} layouts fit, {len(refused)} do not")
    costs = Costs(question)
    curves = [
        (candidate, curve)
        for candidate in candidates
        if (curve := estimate_curve(candidate, question)) is not None
    ]
    options: list[Option] = []
    if "aggregated" in question.modes:
        for candidate, curve in curves:
            options += _replicas(candidate, curve, question, costs)
    if "disaggregated" in question.modes:
        options += _workers(candidates, question, costs)
    options.sort(key=lambda option: (option.value, -option.tokens_per_s / option.plan.devices))
    kept, missed = _confirm(options, question, costs)
    say(f"{len(options)} deployments estimated, {len(kept) + len(missed)} played")
    kept.sort(key=lambda played: (costs.value(played), -played.tokens_per_s_per_device))
    missed.sort(key=lambda played: _excess(played, question))
    return Answer(
        model,
        question,
        costs,
        kept[0] if kept else None,
        kept,
        missed,
        options,
        refused,
        candidates,
        curves,
    )


def estimate_plan(
    candidate: Candidate, workers: int, curve: Curve, question: Question, costs: Costs
) -> Option | None:
    """So many replicas under the question's load; None where they cannot keep up."""
    if question.concurrency is not None:
        each = ceil(question.concurrency / workers)
        at = min(float(each), float(curve.concurrency[-1]))
        waiting = each / at
    else:
        at = curve.concurrency_for((question.rps or 0.0) / workers)
        waiting = 1.0
        if at == float("inf"):
            return None
    ttft_s, tpot_s, rate = curve.at(at)
    ttft_s += (waiting - 1) * at / rate  # those that found no room wait for one that ends
    plan = Plan(candidate, workers)
    tokens = rate * workers * question.osl
    if question.rps is not None:
        tokens = question.rps * question.osl
    value = costs.estimated(plan, tokens)
    return Option(plan, ttft_s, tpot_s, tokens, value, at)


def _replicas(
    candidate: Candidate, curve: Curve, question: Question, costs: Costs
) -> Iterator[Option]:
    """From one replica to as many as may be used."""
    most = question.max_devices // candidate.devices
    if question.concurrency is not None:
        most = min(most, question.concurrency)
    for workers in range(1, most + 1):
        option = estimate_plan(candidate, workers, curve, question, costs)
        if option is None or not _may_keep(option, question):
            continue
        yield option
        if _surely_keeps(option, question):
            return  # more replicas only add devices


def prefill_workers(
    candidates: list[Candidate], question: Question
) -> list[tuple[Candidate, float, float]]:
    """Workers that only prefill, with prompts per second and seconds of one alone; best first."""
    found = []
    for candidate in _beside_others(candidates, question):
        rate, alone_s = prefill_rate(candidate, question)
        if question.ttft_s is None or alone_s <= question.ttft_s:
            found.append((candidate, rate, alone_s))
    return sorted(found, key=lambda item: -item[1] / item[0].devices)


def _beside_others(candidates: list[Candidate], question: Question) -> list[Candidate]:
    """Those that leave devices for workers of the other kind."""
    most = question.max_devices - min((one.devices for one in candidates), default=0)
    return [candidate for candidate in candidates if candidate.devices <= most]


def _workers(candidates: list[Candidate], question: Question, costs: Costs) -> list[Option]:
    """Prefill workers beside decode workers, rates matched."""
    firsts = prefill_workers(candidates, question)
    seconds = []
    for candidate in _beside_others(candidates, question):
        curve = decode_curve(candidate, question)
        if curve is None:
            continue
        allowed = curve.requests_per_s[
            curve.tpot_s <= (question.tpot_s or float("inf")) * (1 + SLACK)
        ]
        if allowed.size:
            seconds.append((float(allowed.max()) / candidate.devices, curve, candidate))
    seconds.sort(key=lambda item: -item[0])
    found: list[Option] = []
    for first, rate, alone_s in firsts[:BEST_WORKERS]:
        for _, curve, second in seconds[:BEST_WORKERS]:
            if first.machine.device is not second.machine.device:
                continue
            found += _ratios(question, costs, (first, rate, alone_s), (second, curve))
    return found


def _ratios(
    question: Question,
    costs: Costs,
    prefill: tuple[Candidate, float, float],
    decode: tuple[Candidate, Curve],
) -> Iterator[Option]:
    first, rate, alone_s = prefill
    second, curve = decode
    for workers in range(1, question.max_devices // second.devices + 1):
        left = question.max_devices - workers * second.devices
        for prefills in range(1, min(left // first.devices, MOST_WORKERS) + 1):
            plan = Plan(second, workers, first, prefills)
            if question.concurrency is not None:
                at = min(question.concurrency / workers, float(curve.concurrency[-1]))
                tpot_s = curve.at(max(at, 1.0))[1]
                most = min(
                    rate * prefills,
                    question.concurrency / (alone_s + (question.osl - 1) * tpot_s),
                )
                # What does not decode waits for, or is in, prefill (Little's law).
                ttft_s = max(alone_s, question.concurrency / most - (question.osl - 1) * tpot_s)
            else:
                most = question.rps or 0.0
                at = curve.concurrency_for(most / workers)
                busy = most / (rate * prefills)
                if at == float("inf") or busy >= 1:
                    continue
                tpot_s = curve.at(at)[1]
                ttft_s = alone_s * (1 + busy / (2 * (1 - busy)))
            tokens = most * question.osl
            option = Option(
                plan, ttft_s, tpot_s, tokens, costs.estimated(plan, tokens), max(at, 1.0)
            )
            if _may_keep(option, question):
                yield option


def _may_keep(option: Option, question: Question) -> bool:
    """Whether the targets may be kept, estimates being off by the slack."""
    # A percentile is above the mean, so the mean must keep the target with any.
    return all(
        target is None or found <= target * (1 + SLACK)
        for found, target in (
            (option.ttft_s, question.ttft_s),
            (option.tpot_s, question.tpot_s),
        )
    )


def _surely_keeps(option: Option, question: Question) -> bool:
    targets = (question.ttft_s, question.tpot_s)
    return all(
        target is None or value * (1 + SLACK) <= target
        for value, target in zip((option.ttft_s, option.tpot_s), targets, strict=True)
    )


def _confirm(
    options: list[Option], question: Question, costs: Costs
) -> tuple[list[Played], list[Played]]:
    """Play options in order of their estimates until none that is left could be better."""
    kept: list[Played] = []
    missed: list[Played] = []
    best = float("inf")
    # Numbers of devices are known; rates are estimates.
    slack = 0.0 if question.objective == "devices" else SLACK
    for option in options:
        if len(kept) + len(missed) >= MOST_PLAYED or option.value * (1 - slack) > best:
            break
        if len(kept) >= ENOUGH_KEPT and option.value >= best:
            break
        played = play(option.plan, question, expected=option.expected)
        if played is None:
            continue
        if played.keeps(question):
            kept.append(played)
            best = min(best, costs.value(played))
        else:
            missed.append(played)
    return kept, missed


def _excess(played: Played, question: Question) -> float:
    """By how much the targets are missed, as a factor."""
    return float(
        np.prod(
            [
                max(1.0, found / target)
                for found, target in (
                    (played.ttft_s, question.ttft_s),
                    (played.tpot_s, question.tpot_s),
                )
                if target is not None
            ]
        )
    )
