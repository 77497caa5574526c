"""What the compiled loops of serving share: rules, requests, groups, and what is written down."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = [
    "AGGREGATED",
    "CHUNKS",
    "DECODE",
    "FINISHED",
    "GAPS",
    "GROUP",
    "NOBODY",
    "PREFILL",
    "RELEASED",
    "REQUEST",
    "STEPS",
    "Costs",
    "GroupState",
    "Log",
    "Rules",
]

AGGREGATED, PREFILL, DECODE = range(3)
"""What workers of a pool do."""

NOBODY = -1

STEPS, CHUNKS, GAPS, FINISHED, RELEASED = range(5)
"""Places in :attr:`Log.counts`."""


class Rules(NamedTuple):
    """Of a pool's policy and size, what the loops read; sizes are those of one group."""

    role: int
    prefill_first: bool
    mixed_chunk: bool
    chunked: bool
    budget: int
    max_sequences: int
    block: int
    capacity: int
    share_first: float
    share_last: float
    share_decay: float
    keeps_own: bool
    own_clip: int
    draft: int
    tokens_per_step: float
    lanes: int
    groups: int
    """Attention groups of a lane."""


class Costs(NamedTuple):
    """Seconds of a step's parts, weights and host times included; [2, …] by kind of step."""

    token_s: np.ndarray
    """[2, N] by new tokens of the busiest group, padded to the next CUDA graph."""
    shared_s: np.ndarray
    """[2, N] by new tokens that every group brings where the tokens of all groups meet."""
    sampled_s: np.ndarray
    """[2, M] by sampled rows."""
    sequence_s: float
    decode_sequences: np.ndarray
    decode_context: np.ndarray
    decode_s: np.ndarray
    """[2, B, X]."""
    chunk_tokens: np.ndarray
    chunk_past: np.ndarray
    chunk_s: np.ndarray
    """[Q, P]."""


REQUEST = np.dtype(
    [
        (name, np.int64)
        for name in (
            "prompt", "output", "cached", "todo", "past", "made", "base", "finish_clock", "group",
            "run_before", "run_after", "end_before", "end_after", "queue_after", "arrival_step",
            "first_step", "last_step", "preemptions",
        )
    ]
    + [
        (name, np.float64)
        for name in (
            "arrival_s", "admitted_s", "first_s", "finish_s", "last_token_s", "sent_s",
        )
    ]
)  # fmt: skip
"""A request. Times are NaN, and links :data:`NOBODY`, where there is none yet.

prompt, output, cached
    Tokens, as in :class:`~moesim.serving.requests.Requests`.
todo, past
    Tokens still to prefill, and tokens before them that have keys and values.
made
    Tokens generated when the last prefill ended, its own included.
base
    While decoding: cached tokens minus the group's clock.
finish_clock
    Of the group, when the last token is there.
run_before and other links
    Neighbours among the group's running requests in order of admission, among those that end at
    the same clock, and in the queue.
sent_s
    When its keys and values are at the decode worker.
"""

GROUP = np.dtype(
    [
        (name, np.int64)
        for name in (
            "clock", "decode_steps", "decoding", "base_sum", "running", "run_tail", "partial",
            "queue_head", "queue_tail", "waiting", "outstanding", "held", "promised",
            "joined_count", "step_decoding", "step_advance", "step_chunk", "step_chunks",
        )
    ]
    + [("share", np.float64), ("last_decode_s", np.float64)]
)  # fmt: skip
"""An attention group, of one lane of the pipeline, of one worker.

All decoding sequences of a group advance together, so that one clock (tokens per sequence) serves
all: where each stands and when it ends is a difference to the clock, and nothing needs to be done
per sequence in a step.

clock, decode_steps
    Tokens that a sequence decoding from the start would have gained, and steps that it took.
decoding, base_sum
    Sequences, and the sum of their ``base``.
running, run_tail, partial
    Requests at work; the one admitted last; the one whose prompt is computed in part.
queue_head, queue_tail, waiting, outstanding
    The queue, and requests in queue and at work.
held, promised
    Blocks, and those that running requests will hold at their end.
share
    Of what running requests still grow by that is kept free.
joined_count
    Requests that began to decode since the last decode step.
step_decoding and the like
    Of the step under way: decoding sequences, tokens that each gains, rows in the log of chunks.
"""


class GroupState(NamedTuple):
    """Groups, and what is more than a number of each."""

    at: np.ndarray
    """[G] of :data:`GROUP`."""
    residues: np.ndarray
    """[G, block] decoding sequences by ``base`` modulo block size."""
    ends: np.ndarray
    """[G, ring] first request that ends at that clock, modulo the ring's size."""
    joined: np.ndarray
    """[G, most] requests that began to decode since the last decode step."""


class Log(NamedTuple):
    """What happened, in order of the steps' starts."""

    steps: np.ndarray
    """[S, :data:`~moesim.serving.schedule.STEP_FIELDS`]."""
    times: np.ndarray
    """[S, 2] start and duration."""
    chunks: np.ndarray
    """[C, 4] request, new tokens, tokens before, whether the prefill is complete."""
    gap_s: np.ndarray
    gap_count: np.ndarray
    """[I] time between tokens, and how many sequences saw it."""
    counts: np.ndarray
    """[5] rows in use, requests finished and released."""
