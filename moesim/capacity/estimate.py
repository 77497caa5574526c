"""Latency and throughput of a replica at every concurrency, without playing it.

In a steady closed loop every group of a replica decodes g sequences. Prompts come in evenly: a
share p of its steps holds a chunk of one. With engines that mix, a token takes a step with or
without a chunk; where prompts go first, decoding waits for them:

    mixed:          TPOT = (1 − p) · decode(g) + p · mixed(g, chunk)
    prefill first:  TPOT = decode(g) + p · prefill(chunk)

Groups of attention DP step together, so p counts chunks of any of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np

from moesim.capacity.candidates import Candidate
from moesim.capacity.question import Question
from moesim.serving.costs import make_costs
from moesim.serving.features import interpolate_plane
from moesim.serving.state import Costs

__all__ = ["Curve", "decode_curve", "estimate_curve", "prefill_rate"]


@dataclass(frozen=True, eq=False)
class Curve:
    """A replica by the requests that it works on at once.

    Attributes:
        concurrency: [N] ascending.
        ttft_s: [N] mean.
        tpot_s: [N] mean.
        requests_per_s: [N].
    """

    concurrency: np.ndarray
    ttft_s: np.ndarray
    tpot_s: np.ndarray
    requests_per_s: np.ndarray

    def at(self, concurrency: float) -> tuple[float, float, float]:
        """TTFT, TPOT and requests per second of any concurrency, and of the most beyond it."""
        logs = np.log(self.concurrency)
        return tuple(  # type: ignore[return-value]
            float(np.interp(np.log(concurrency), logs, column))
            for column in (self.ttft_s, self.tpot_s, self.requests_per_s)
        )

    def concurrency_for(self, requests_per_s: float) -> float:
        """Requests at work when so many come per second; infinite if they are too many."""
        rates = np.maximum.accumulate(self.requests_per_s)
        if requests_per_s >= rates[-1]:
            return float("inf")
        return float(np.exp(np.interp(requests_per_s, rates, np.log(self.concurrency))))


def grid(most: int) -> np.ndarray:
    """[N] concurrencies up to the most, three in every doubling."""
    if most < 1:
        return np.zeros(0)
    steps = ceil(3 * np.log2(max(most, 2)))
    found = np.unique(np.round(2 ** (np.arange(steps + 1) / 3))).astype(float)
    return np.append(found[found < most], float(most))


def estimate_curve(candidate: Candidate, question: Question) -> Curve | None:
    """The replica with prefill and decode in one pool; None if it holds no request."""
    return _curve(candidate, question, prefills=True)


def decode_curve(candidate: Candidate, question: Question) -> Curve | None:
    """The replica as a worker that only decodes; TTFT is of the first decode step."""
    return _curve(candidate, question, prefills=False)


def _curve(candidate: Candidate, question: Question, prefills: bool) -> Curve | None:
    tokens = question.isl + question.osl
    concurrency = grid(candidate.most_concurrency(tokens))
    if concurrency.size == 0:
        return None
    pool = candidate.pool
    costs = make_costs(pool, max(pool.policy.token_budget, question.isl))
    # A lane is one micro-batch of the pipeline; a step of all lanes takes as long as one's way.
    own = np.ceil(concurrency / (pool.groups * pool.lanes))
    decode_s = _decode_s(costs, own, question)
    if not prefills:
        rate = concurrency / (decode_s * max(question.osl - 1, 1))
        return Curve(concurrency, decode_s, decode_s, rate)
    first = pool.policy.order == "prefill-first"
    budget = pool.policy.token_budget
    room = budget if first else max(1, budget - int(own.max()) // 2)
    chunks = ceil(question.isl / room) if pool.policy.chunked else 1
    chunk = ceil(question.isl / chunks)
    # Chunks of one group per step, over the steps of a request: the mean, not the busiest group.
    each = concurrency / (pool.groups * pool.lanes) * chunks / max(question.osl, 1)
    together = np.minimum(1 + np.floor((room - chunk) / chunk), np.maximum(each, 1.0))
    one = np.minimum(each / np.maximum(together, 1), 1.0)
    share = 1 - (1 - one) ** pool.groups
    beside = 0 * own if first else own
    chunk_s = _prefill_s(costs, beside, chunk, np.maximum(together, 1), question, one / share)
    tpot_s = decode_s + share * chunk_s if first else (1 - share) * decode_s + share * chunk_s
    wait_s = (1 - share) * decode_s / 2 + share * chunk_s / 2
    ttft_s = wait_s + chunks * chunk_s + pool.coefficients.request_host_s
    rate = concurrency / (ttft_s + max(question.osl - 1, 0) * tpot_s)
    return Curve(concurrency, ttft_s, tpot_s, rate)


def prefill_rate(candidate: Candidate, question: Question) -> tuple[float, float]:
    """Requests per second of a worker that only prefills, and seconds of one prompt alone."""
    pool = candidate.pool
    costs = make_costs(pool, max(pool.policy.token_budget, question.isl))
    budget = pool.policy.token_budget
    chunks = ceil(question.isl / budget) if pool.policy.chunked else 1
    chunk = ceil(question.isl / chunks)
    together = np.array([max(1, budget // chunk)], float)
    none = np.zeros(1)
    full_s = float(_prefill_s(costs, none, chunk, together, question)[0])
    alone_s = float(_prefill_s(costs, none, chunk, np.ones(1), question)[0])
    rate = float(together[0]) * pool.groups * pool.lanes / (chunks * full_s)
    return rate, chunks * alone_s


def _decode_s(costs: Costs, own: np.ndarray, question: Question) -> np.ndarray:
    """[N] seconds of a step that decodes so many sequences of a group."""
    rows = own.astype(np.int64)
    rows = np.minimum(rows, costs.token_s.shape[1] - 1)
    context = np.full(own.shape, question.isl + question.osl / 2)
    attention = interpolate_plane(
        costs.decode_sequences, costs.decode_context, costs.decode_s[0], own, context
    )
    found: np.ndarray = (
        costs.token_s[0, rows]
        + costs.shared_s[0, rows]
        + costs.sampled_s[0, rows]
        + costs.sequence_s * own
        + attention
    )
    return found


def _prefill_s(
    costs: Costs,
    decoding: np.ndarray,
    chunk: int,
    together: np.ndarray,
    question: Question,
    busy: np.ndarray | float = 1.0,
) -> np.ndarray:
    """[N] seconds of a step with chunks of prompts beside so many decoding sequences.

    ``busy`` is the share of the worker's groups that have chunks in such a step.
    """
    most = costs.token_s.shape[1] - 1
    tokens = np.minimum(decoding + chunk * together, most).astype(np.int64)
    shared = np.minimum(np.ceil(decoding + chunk * together * busy), most).astype(np.int64)
    past = np.full(decoding.shape, max(0, question.isl - chunk) / 2)
    attention = together * interpolate_plane(
        costs.chunk_tokens, costs.chunk_past, costs.chunk_s, np.full(decoding.shape, chunk), past
    )
    if decoding.any():
        context = np.full(decoding.shape, question.isl + question.osl / 2)
        attention = attention + interpolate_plane(
            costs.decode_sequences, costs.decode_context, costs.decode_s[1], decoding, context
        )
    sampled = np.minimum(decoding + together, costs.token_s.shape[1] - 1).astype(np.int64)
    found: np.ndarray = (
        costs.token_s[1, tokens]
        + costs.shared_s[1, shared]
        + costs.sampled_s[1, sampled]
        + costs.sequence_s * (decoding + together)
        + attention
    )
    return found
