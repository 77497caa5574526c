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
    "NOBODY",
    "PREFILL",
    "RELEASED",
    "STEPS",
    "Costs",
    "GroupState",
    "Log",
    "RequestState",
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


class RequestState(NamedTuple):
    """[N] each. Times are NaN, and links :data:`NOBODY`, where there is none yet."""

    prompt: np.ndarray
    output: np.ndarray
    cached: np.ndarray
    todo: np.ndarray
    """Tokens still to prefill."""
    past: np.ndarray
    """Tokens with keys and values while prefilling."""
    made: np.ndarray
    """Tokens generated before the last prefill ended, its own included."""
    base: np.ndarray
    """Cached tokens minus the group's clock, while decoding."""
    finish_clock: np.ndarray
    group: np.ndarray
    run_before: np.ndarray
    run_after: np.ndarray
    end_before: np.ndarray
    end_after: np.ndarray
    queue_after: np.ndarray
    arrival_s: np.ndarray
    admitted_s: np.ndarray
    first_s: np.ndarray
    finish_s: np.ndarray
    last_token_s: np.ndarray
    sent_s: np.ndarray
    """When its keys and values are at the decode worker."""
    arrival_step: np.ndarray
    first_step: np.ndarray
    last_step: np.ndarray
    preemptions: np.ndarray


class GroupState(NamedTuple):
    """[G] each: an attention group, of one lane of the pipeline, of one worker.

    All decoding sequences of a group advance together, so that one clock (tokens per sequence)
    serves all: where each stands and when it ends is a difference to the clock, and nothing needs
    to be done per sequence in a step.
    """

    clock: np.ndarray
    decode_steps: np.ndarray
    decoding: np.ndarray
    base_sum: np.ndarray
    residues: np.ndarray
    """[G, block] decoding sequences by ``base`` modulo block size."""
    ends: np.ndarray
    """[G, ring] first request that ends at that clock, modulo the ring's size."""
    running: np.ndarray
    run_tail: np.ndarray
    partial: np.ndarray
    queue_head: np.ndarray
    queue_tail: np.ndarray
    waiting: np.ndarray
    outstanding: np.ndarray
    held: np.ndarray
    """Blocks."""
    promised: np.ndarray
    """Blocks that running requests will hold at their end."""
    share: np.ndarray
    last_decode_s: np.ndarray
    joined: np.ndarray
    """[G, most] requests that began to decode since the last decode step."""
    joined_count: np.ndarray
    step_decoding: np.ndarray
    """Of the step under way: decoding sequences, tokens that each advances, chunks in the log."""
    step_advance: np.ndarray
    step_chunk: np.ndarray
    step_chunks: np.ndarray


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
