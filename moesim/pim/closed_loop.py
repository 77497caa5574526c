"""Continuous batching with a constant number of requests: latencies, throughput, energy.

A finished request is replaced at once, or by the next of a queue. A stage that admits requests
works on their prompts beside everybody else's next token (mixed stage); all others decode only
(Duplex, arXiv 2409.01141, section II). Between two events a decode-only stage lengthens linearly
with the cached tokens, so such a run of stages is added up at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from moesim.forward.layout import Sequences, StepLoad
from moesim.pim.stage import Stage, StagePricer

__all__ = ["LoopResult", "draw_lengths", "run_loop"]

SHIFT_TOKENS = 256
SHIFT_DEVIATION = 0.4
SHIFT_BOUND = 0.95
"""Duplex draws lengths normally around their means: a request's prompt is shorter and its answer
longer by one draw, of 0.4 times the least of 256 tokens, prompt and answer in standard deviation,
drawn again beyond 0.95 (LLMSimulator, ``src/scheduler/scheduler.cpp``)."""

ROUNDS = 4
"""Requests per place in the batch; the first and the last round are not counted."""

STEPS = 8
"""Prompt lengths are priced to an eighth of their mean."""


@dataclass(frozen=True)
class LoopResult:
    """A run in its steady part.

    Attributes:
        tokens_per_s: Answer tokens of all requests.
        tbt_p50_s: Time between two tokens of a request, median.
        tbt_p90_s: 90th percentile.
        tbt_p99_s: 99th percentile.
        ttft_p50_s: From arrival to the first token, median.
        latency_s: From arrival to the last token, mean.
        joules_per_token: Of all devices, per answer token.
        mixed_share: Stages that hold prompts, share of all.
    """

    tokens_per_s: float
    tbt_p50_s: float
    tbt_p90_s: float
    tbt_p99_s: float
    ttft_p50_s: float
    latency_s: float
    joules_per_token: float
    mixed_share: float


def draw_lengths(
    prompt: int, answer: int, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """[count] prompts and [count] answers in tokens, around their means."""
    drawn = rng.normal(0.0, SHIFT_DEVIATION, count)
    while (outside := np.abs(drawn) >= SHIFT_BOUND).any():
        drawn[outside] = rng.normal(0.0, SHIFT_DEVIATION, int(outside.sum()))
    shift = np.fix(drawn * (min(SHIFT_TOKENS, prompt, answer) - 1)).astype(np.int64)
    return prompt - shift, answer + shift


class _Prices:
    """Stage prices as functions of counts and cached tokens."""

    def __init__(self, pricer: StagePricer, prompt: int, usual: int) -> None:
        step = max(1, prompt // STEPS)

        def price(load: StepLoad) -> tuple[float, float]:
            stage: Stage = pricer.price(load)
            return stage.time_s, stage.joules

        @cache
        def lines(decoding: int, prompts: int, length: int) -> np.ndarray:
            """[2, 2] offset and slope per mean cached token of seconds and joules."""
            near, far = max(1, usual // 2), usual + usual // 2 + 2
            found = []
            for context in (near, far):
                groups = []
                if decoding:
                    groups.append(Sequences(decoding, 1, context))
                if prompts:
                    groups.append(Sequences(prompts, max(2, length), 0))
                found.append(price(StepLoad(tuple(groups))))
            low, high = np.array(found)
            slope = (high - low) / (far - near)
            return np.stack([low - slope * near, slope])

        self.step, self.lines = step, lines

    def line(self, decoding: int, prompt_lengths: np.ndarray) -> np.ndarray:
        """[2, 2] of a stage with those prompts, whose lengths stand for their mean."""
        if len(prompt_lengths) == 0:
            return self.lines(decoding, 0, 0)
        length = max(1, round(float(prompt_lengths.mean()) / self.step)) * self.step
        return self.lines(decoding, len(prompt_lengths), length)


def run_loop(
    pricer: StagePricer,
    prompt: int,
    answer: int,
    batch: int,
    *,
    arrivals_per_s: float | None = None,
    requests: int | None = None,
    seed: int = 0,
    say: Callable[[int], object] = lambda done: None,
) -> LoopResult:
    """Serve requests until all are done.

    Args:
        pricer: Of stages.
        prompt: Mean prompt tokens.
        answer: Mean answer tokens.
        batch: Most requests at once.
        arrivals_per_s: Poisson arrivals; without it there is always a next request.
        requests: How many; four per place of the batch without it.
        seed: Of lengths and arrivals.
        say: Told the number of finished requests.
    """
    rng = np.random.default_rng(seed)
    count = requests or ROUNDS * batch
    prompts, answers = draw_lengths(prompt, answer, count, rng)
    prices = _Prices(pricer, prompt, prompt + answer // 2)
    arrived: np.ndarray = np.zeros(count)
    if arrivals_per_s is not None:
        arrived = np.cumsum(rng.exponential(1 / arrivals_per_s, count))
    else:
        # Requests that were served before the start: places free themselves one by one.
        answers[:batch] = np.maximum(1, answers[:batch] * rng.random(batch)).astype(np.int64)
    record = _Record(count)
    active = np.zeros(0, np.int64)
    left, cached = np.zeros(count, np.int64), np.zeros(count, np.int64)
    now, following = 0.0, 0
    while following < count or len(active):
        waiting = int(np.searchsorted(arrived, now, side="right")) - following
        admitted = np.arange(following, following + min(batch - len(active), max(0, waiting)))
        if len(active) + len(admitted) == 0:
            now = float(arrived[following])
            continue
        following += len(admitted)
        context = float(cached[active].mean()) if len(active) else 0.0
        line = prices.line(len(active), prompts[admitted])
        if len(admitted):
            steps = 1
        else:
            steps = int(left[active].min())
            if len(active) < batch and following < count:
                # Stop at the stage in which the next request arrives.
                until = max(0.0, float(arrived[following]) - now)
                steps = min(steps, 1 + int(until / max(line[0, 0] + line[1, 0] * context, 1e-12)))
        seconds, joules = (
            steps * (line[0] + line[1] * context) + line[1] * (steps * (steps - 1) / 2)
        ).tolist()
        now += seconds
        served = np.concatenate([active, admitted])
        record.stages(now, seconds, joules, steps, len(served), len(admitted), len(active))
        cached[active] += steps
        left[active] -= steps
        cached[admitted], left[admitted] = prompts[admitted] + 1, answers[admitted] - 1
        record.first[admitted] = now
        done = left[served] <= 0
        record.last[served[done]] = now
        active = served[~done]
        say(int(count - following))
    return record.result(arrived, answers, batch, closed=arrivals_per_s is None)


class _Record:
    """What happened."""

    def __init__(self, count: int) -> None:
        self.first, self.last = np.zeros(count), np.zeros(count)
        self.rows: list[tuple[float, float, float, int, int, int, int]] = []

    def stages(
        self, end: float, seconds: float, joules: float, steps: int, tokens: int, new: int, old: int
    ) -> None:
        """Steps of one kind, one after the other."""
        self.rows.append((end, seconds, joules, steps, tokens, new, old))

    def result(
        self, arrived: np.ndarray, answers: np.ndarray, batch: int, *, closed: bool
    ) -> LoopResult:
        """Over the middle of the run."""
        count = len(self.first)
        skip = min(batch, count // 4)
        inside = slice(skip, max(skip + 1, count - skip))
        ends = np.array([row[0] for row in self.rows])
        rows = np.array([row[1:] for row in self.rows])
        start, stop = self.first[skip], self.last[:count].min() if count == 1 else ends[-1]
        full = self.first[-1]  # from here on nobody follows
        stop = full if closed and full > start else stop
        kept = rows[(ends > start) & (ends <= stop)]
        if not len(kept):
            kept = rows
        seconds, joules, steps, tokens, new, old = kept.T
        per_step, weights = seconds / steps, steps * old
        made = float((steps * tokens).sum())
        # In a closed loop a request arrives when the place that it takes is free.
        begin = arrived
        if closed:
            begin = self._admitted(ends, rows)
        p50, p90, p99 = _weighted(per_step, weights, (0.5, 0.9, 0.99))
        return LoopResult(
            tokens_per_s=made / float(seconds.sum()),
            tbt_p50_s=p50,
            tbt_p90_s=p90,
            tbt_p99_s=p99,
            ttft_p50_s=float(np.median((self.first - begin)[inside])),
            latency_s=float(np.mean((self.last - begin)[inside])),
            joules_per_token=float(joules.sum()) / made,
            mixed_share=float((new > 0).sum() / steps.sum()),
        )

    def _admitted(self, ends: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """[count] when the stage began in which a request was admitted."""
        stage = np.searchsorted(ends, self.first)
        return self.first - rows[stage, 0]


def _weighted(
    values: np.ndarray, weights: np.ndarray, quantiles: tuple[float, ...]
) -> tuple[float, ...]:
    """Quantiles of values that occur so often."""
    if weights.sum() == 0:
        return tuple(float(values.mean()) for _ in quantiles)
    order = np.argsort(values)
    share = np.cumsum(weights[order]) / weights.sum()
    return tuple(
        float(values[order][min(int(np.searchsorted(share, q)), len(values) - 1)])
        for q in quantiles
    )
