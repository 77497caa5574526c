"""What a run leaves behind: every step and every request, as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.errors import UsageError

__all__ = ["STEP_FIELDS", "Schedule", "latency_weights"]

STEP_FIELDS = (
    "worker",
    "kind",
    "tokens",
    "decode_sequences",
    "context",
    "chunk_first",
    "chunk_count",
    "sampled",
    "sequences",
    "all_decode_sequences",
    "all_prefill_tokens",
    "running",
    "waiting",
    "kv_blocks",
    "shared_tokens",
)
"""Columns of the log of steps."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """Steps in the order of their starts, and requests in the order of their arrival.

    What a step is priced by belongs to the group that decides how long it takes: the one whose
    attention takes longest, of the slowest lane of the pipeline.

    Attributes:
        worker: [S] which replica, or prefill or decode worker.
        kind: [S] 0 for decode tokens alone, 1 where prompts are among them.
        tokens: [S] new tokens of the busiest group, before padding.
        decode_sequences: [S] of the deciding group.
        context: [S] tokens cached before the step, sum over those sequences.
        chunk_first: [S] row of the deciding group's first chunk.
        chunk_count: [S] its chunks.
        sampled: [S] rows that are sampled, of the busiest group.
        sequences: [S] sequences in the step, of the busiest group.
        all_decode_sequences: [S] of all groups of the worker.
        all_prefill_tokens: [S] of all groups of the worker.
        running: [S] requests at work in the worker's groups.
        waiting: [S] requests in their queues.
        kv_blocks: [S] blocks held in all its groups.
        shared_tokens: [S] new tokens that a group stands for where all groups' tokens meet: their
            mean in steps with prompts; those of the busiest in others, whose graph pads all.
        start_s: [S].
        duration_s: [S].
        chunk_request: [C] chunks of all groups, in the order of their steps.
        chunk_new: [C] new tokens.
        chunk_past: [C] tokens of the same prompt before them.
        chunk_last: [C] whether the prompt is complete with it.
        gap_s: [I] times between tokens of a sequence.
        gap_count: [I] how many sequences saw each.
        input_tokens: [N].
        output_tokens: [N].
        arrival_s: [N].
        admitted_s: [N] when first taken into a batch.
        first_s: [N] when the first token is there.
        finish_s: [N].
        arrival_step: [N] step at whose end a request came; −1 at the start or in an open loop.
        first_step: [N] step that yields the first token.
        last_step: [N] step that yields the last.
        preemptions: [N].
        closed: Whether requests came when others ended.
        workers: How many.
    """

    worker: np.ndarray
    kind: np.ndarray
    tokens: np.ndarray
    decode_sequences: np.ndarray
    context: np.ndarray
    chunk_first: np.ndarray
    chunk_count: np.ndarray
    sampled: np.ndarray
    sequences: np.ndarray
    all_decode_sequences: np.ndarray
    all_prefill_tokens: np.ndarray
    running: np.ndarray
    waiting: np.ndarray
    kv_blocks: np.ndarray
    shared_tokens: np.ndarray
    start_s: np.ndarray
    duration_s: np.ndarray
    chunk_request: np.ndarray
    chunk_new: np.ndarray
    chunk_past: np.ndarray
    chunk_last: np.ndarray
    gap_s: np.ndarray
    gap_count: np.ndarray
    input_tokens: np.ndarray
    output_tokens: np.ndarray
    arrival_s: np.ndarray
    admitted_s: np.ndarray
    first_s: np.ndarray
    finish_s: np.ndarray
    arrival_step: np.ndarray
    first_step: np.ndarray
    last_step: np.ndarray
    preemptions: np.ndarray
    closed: bool
    workers: int

    @property
    def steps(self) -> int:
        """S."""
        return int(self.start_s.size)

    @property
    def requests(self) -> int:
        """N."""
        return int(self.first_s.size)

    @property
    def ttft_s(self) -> np.ndarray:
        """[N] time to first token."""
        return self.first_s - self.arrival_s

    @property
    def tpot_s(self) -> np.ndarray:
        """[N] time per output token behind the first; NaN for requests with one."""
        more = np.maximum(self.output_tokens - 1, 1)
        spent = (self.finish_s - self.first_s) / more
        return np.where(self.output_tokens > 1, spent, np.nan)


def latency_weights(
    schedule: Schedule, counted: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """How the mean latencies follow from the durations of steps.

    In a closed loop on one worker the order of steps does not depend on how long they take, and
    steps follow each other without a pause. So both means are linear in the durations T_s, exactly:
    mean TPOT = Σ w_s T_s and mean TTFT = Σ v_s T_s.

    Args:
        schedule: Of a closed loop on one worker.
        counted: [N] requests that count; all if left out. TPOT is the mean over those of them with
            two tokens or more.

    Returns:
        [S] w and [S] v.

    Raises:
        UsageError: If the schedule is not one of those.
    """
    if not schedule.closed or schedule.workers != 1:
        raise UsageError(
            "latencies are linear in the times of steps only in a closed loop on one worker\n"
            "fix: simulate with --concurrency, one replica, and no prefill workers"
        )
    count = np.ones(schedule.requests, bool) if counted is None else counted
    several = count & (schedule.output_tokens > 1)
    share = np.zeros(schedule.requests)
    share[several] = 1 / (schedule.output_tokens[several] - 1) / max(several.sum(), 1)
    tpot = _between(schedule.first_step, schedule.last_step, share, schedule.steps)
    even = count / max(count.sum(), 1)
    return tpot, _between(schedule.arrival_step, schedule.first_step, even, schedule.steps)


def _between(behind: np.ndarray, last: np.ndarray, share: np.ndarray, steps: int) -> np.ndarray:
    """[S] sums of the shares of requests that wait through a step: behind < s ≤ last."""
    begins = np.bincount(behind + 1, share, steps + 1)
    ends = np.bincount(last + 1, share, steps + 1)
    return np.cumsum(begins - ends)[:steps]
