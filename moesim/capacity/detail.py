"""What the answer's devices do and hold: a decode step and a prefill step, call by call."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from moesim.capacity.candidates import Candidate
from moesim.capacity.deployments import Played
from moesim.capacity.question import Question
from moesim.forward.expert_load import parse_distribution
from moesim.forward.layout import StepLoad
from moesim.forward.pricing import PricedOp
from moesim.forward.simulate import ForwardStep, simulate_step

__all__ = ["Detail", "bottleneck", "detail"]


@dataclass(frozen=True, eq=False)
class Detail:
    """Steps of the answer.

    Attributes:
        decode: With as many sequences as are in flight.
        prefill: With one chunk for every attention group.
        kv_tokens: That the caches of a decoding replica hold.
    """

    decode: ForwardStep
    prefill: ForwardStep
    kv_tokens: int


def detail(played: Played, question: Question) -> Detail:
    """Price the answer's usual steps."""
    plan = played.plan
    own = plan.candidate
    sequences = max(1, ceil(played.concurrency / plan.workers))
    context = question.isl + question.osl // 2
    first = plan.prefill or own
    chunk = min(question.isl, first.pool.policy.token_budget)
    return Detail(
        _step(own, question, StepLoad.of("decode", sequences, context)),
        _step(first, question, StepLoad.of("prefill", first.layout.dp, max(2, chunk))),
        own.pool.kv_tokens * own.pool.groups,
    )


def _step(candidate: Candidate, question: Question, load: StepLoad) -> ForwardStep:
    return simulate_step(
        candidate.model,
        candidate.machine,
        candidate.layout,
        load,
        candidate.formats,
        parse_distribution(question.routing),
        seed=question.seed,
        check_memory=False,
    )


def bottleneck(step: ForwardStep) -> str:
    """What bounds most of a step, and the call that takes longest."""
    longest: PricedOp = max(step.ops, key=lambda priced: priced.time_s)
    by_bound: dict[str, float] = {}
    for priced in step.ops:
        by_bound[priced.bound] = by_bound.get(priced.bound, 0.0) + priced.time_s
    total_s = sum(by_bound.values())
    bound = max(by_bound, key=lambda name: by_bound[name])
    return (
        f"{bound} for {by_bound[bound] / total_s:.0%} of the time; longest call {longest.op.name} "
        f"with {longest.time_s / total_s:.0%}, bound by {longest.bound}"
    )
