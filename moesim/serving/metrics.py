"""What users and operators see of a run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.errors import UsageError
from moesim.serving.schedule import Schedule

__all__ = ["PERCENTILES", "Distribution", "Metrics", "Targets", "measure"]

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Distribution:
    """A latency over requests, or over gaps between tokens; seconds."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: np.ndarray, counts: np.ndarray | None = None) -> Distribution | None:
        """Of values, each seen so many times; None of none.

        A percentile is the smallest value that at least so many of all do not exceed.
        """
        if values.size == 0:
            return None
        counts = np.ones(values.size, np.int64) if counts is None else counts
        order = np.argsort(values)
        reached = np.cumsum(counts[order])
        places = np.searchsorted(reached, np.ceil(np.array(PERCENTILES) / 100 * reached[-1]))
        p50, p90, p99 = values[order][places].tolist()
        mean = float(np.average(values, weights=counts))
        return cls(mean, p50, p90, p99, float(values.max()))


@dataclass(frozen=True)
class Targets:
    """Latencies that a request must keep to count as good; None: any will do.

    Attributes:
        ttft_s: Time to first token.
        tpot_s: Time per output token.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None


@dataclass(frozen=True)
class Metrics:
    """Of the requests that count.

    Attributes:
        requests: How many count.
        duration_s: From the first of them to come until the last has ended.
        ttft: Time to first token.
        tpot: Time per output token behind the first; None if none has two tokens.
        itl: Time between tokens of all requests; None if none has two tokens. With speculative
            decoding, time between steps, which yield several tokens at once.
        e2e: From arrival to the last token.
        queue: From arrival until first taken into a batch.
        output_tokens_per_s: Generated.
        input_tokens_per_s: Prompts.
        tokens_per_s_per_user: Mean over requests of 1 / TPOT; None if none has two tokens.
        requests_per_s: Ended.
        good_share: Of requests that keep the targets.
        good_requests_per_s: Goodput.
        steps: All of the run.
        mean_decode_sequences: Of all groups of a worker in its steps with decode tokens.
        busy_share: Of the time of all workers.
        waiting_mean: Requests in queues, mean over time.
        waiting_max: Most.
        running_mean: Requests admitted and not ended, mean over time.
        kv_share_mean: Of the cache, mean over the time of steps.
        kv_share_max: Most.
        preemptions: All of the run.
    """

    requests: int
    duration_s: float
    ttft: Distribution
    tpot: Distribution | None
    itl: Distribution | None
    e2e: Distribution
    queue: Distribution
    output_tokens_per_s: float
    input_tokens_per_s: float
    tokens_per_s_per_user: float | None
    requests_per_s: float
    good_share: float
    good_requests_per_s: float
    steps: int
    mean_decode_sequences: float
    busy_share: float
    waiting_mean: float
    waiting_max: int
    running_mean: float
    kv_share_mean: float
    kv_share_max: float
    preemptions: int


def measure(
    schedule: Schedule,
    kv_blocks: np.ndarray,
    *,
    targets: Targets | None = None,
    warmup: int = 0,
    cooldown: int = 0,
    ttft_host_s: float = 0.0,
) -> Metrics:
    """Sum up a run.

    Args:
        schedule: What happened.
        kv_blocks: [workers] blocks of all groups of a worker.
        targets: What a good request keeps.
        warmup: Requests that do not count, from the first on.
        cooldown: Requests that do not count either, to the last: behind them the load fades.
        ttft_host_s: Added to every time to first token and end.

    Raises:
        UsageError: If no request is left to count.
    """
    if not 0 <= warmup < schedule.requests - cooldown:
        raise UsageError(
            f"--warmup {warmup} leaves none of {schedule.requests} requests\n"
            "fix: pass a smaller --warmup, or more --requests"
        )
    targets = targets or Targets()
    places = np.arange(schedule.requests)
    counted = (places >= warmup) & (places < schedule.requests - cooldown)
    ttft = schedule.ttft_s[counted] + ttft_host_s
    tpot = schedule.tpot_s[counted]
    several = ~np.isnan(tpot)
    e2e = (schedule.finish_s - schedule.arrival_s)[counted] + ttft_host_s
    good = np.ones(ttft.size, bool)
    if targets.ttft_s is not None:
        good &= ttft <= targets.ttft_s
    if targets.tpot_s is not None:
        good &= ~several | (tpot <= targets.tpot_s)
    begin = float(schedule.arrival_s[counted].min())
    duration_s = float(schedule.finish_s[counted].max()) - begin
    whole_s = float((schedule.start_s + schedule.duration_s).max())
    time_s, busy_s = schedule.duration_s, float(schedule.duration_s.sum())
    share = schedule.kv_blocks / kv_blocks[schedule.worker]
    decodes = schedule.all_decode_sequences > 0
    queued_s = schedule.admitted_s - schedule.arrival_s
    return Metrics(
        requests=int(counted.sum()),
        duration_s=duration_s,
        ttft=_some(ttft),
        tpot=Distribution.of(tpot[several]),
        itl=Distribution.of(schedule.gap_s, schedule.gap_count),
        e2e=_some(e2e),
        queue=_some(queued_s[counted]),
        output_tokens_per_s=float(schedule.output_tokens[counted].sum()) / duration_s,
        input_tokens_per_s=float(schedule.input_tokens[counted].sum()) / duration_s,
        tokens_per_s_per_user=float((1 / tpot[several]).mean()) if several.any() else None,
        requests_per_s=ttft.size / duration_s,
        good_share=float(good.mean()),
        good_requests_per_s=float(good.sum()) / duration_s,
        steps=schedule.steps,
        mean_decode_sequences=float(schedule.all_decode_sequences[decodes].mean())
        if decodes.any()
        else 0.0,
        busy_share=busy_s / (whole_s * schedule.workers),
        waiting_mean=float(queued_s.sum()) / whole_s,
        waiting_max=int(schedule.waiting.max()),
        running_mean=float((schedule.finish_s - schedule.admitted_s).sum()) / whole_s,
        kv_share_mean=float((share * time_s).sum()) / busy_s,
        kv_share_max=float(share.max()),
        preemptions=int(schedule.preemptions.sum()),
    )


def _some(values: np.ndarray) -> Distribution:
    found = Distribution.of(values)
    if found is None:
        raise AssertionError("no values")
    return found
