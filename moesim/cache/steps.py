"""Which tokens run together in a step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.cache.setting import CacheSetting
from moesim.compiled import compiled
from moesim.traces.sequences import Sequences

__all__ = ["Steps", "batch_steps"]


@dataclass(frozen=True)
class Steps:
    """The tokens of every step.

    Attributes:
        tokens: [T] int64 tokens of the trace, step after step.
        starts: [S + 1] int64; step s holds ``tokens[starts[s]:starts[s + 1]]``.
        resets: [G + 1] int64; the cache is emptied before the steps ``resets[:-1]``, and
            ``resets[-1]`` is S.
        begins: [Q] int64 steps with which a sequence begins; of sequences that run together, steps
            with which all of them begin.
    """

    tokens: np.ndarray
    starts: np.ndarray
    resets: np.ndarray
    begins: np.ndarray


def batch_steps(sequences: Sequences, setting: CacheSetting) -> Steps:
    """The steps in which sequences run, ``setting.batch`` at a time, in their order."""
    together = setting.reset == "sequence"
    arguments = (sequences.bounds, setting.batch, setting.step_tokens, together)
    nothing = np.zeros(0, np.int64)
    steps, resets = _schedule(*arguments, nothing, nothing, nothing)
    tokens: np.ndarray = np.empty(sequences.tokens, np.int64)
    starts, reset_steps = np.empty(steps + 1, np.int64), np.empty(resets + 1, np.int64)
    _schedule(*arguments, tokens, starts, reset_steps)
    if sequences.order is not None:
        tokens = sequences.order[tokens]
    begins = reset_steps[:-1]
    if setting.batch == 1:
        lengths = -(-np.diff(sequences.bounds) // setting.step_tokens)
        begins = np.cumsum(lengths) - lengths
    return Steps(tokens, starts, reset_steps, begins)


@compiled
def _schedule(
    bounds: np.ndarray,
    batch: int,
    step_tokens: int,
    together: bool,
    tokens: np.ndarray,
    starts: np.ndarray,
    resets: np.ndarray,
) -> tuple[int, int]:
    """Number of steps and of resets; with arrays of that size, fill them."""
    fill = starts.size > 0
    position, end = np.zeros(batch, np.int64), np.zeros(batch, np.int64)
    following, written, steps, groups = 0, 0, 0, 0
    count = bounds.size - 1
    while True:
        idle = True
        for lane in range(batch):
            idle &= position[lane] == end[lane]
        refill = idle or not together
        if idle and following < count and (together or steps == 0):
            if fill:
                resets[groups] = steps
            groups += 1
        before = written
        for lane in range(batch):
            while refill and position[lane] == end[lane] and following < count:
                position[lane], end[lane] = bounds[following], bounds[following + 1]
                following += 1
            if written == before and fill:
                starts[steps] = written
            for _ in range(min(step_tokens, end[lane] - position[lane])):
                if fill:
                    tokens[written] = position[lane]
                position[lane] += 1
                written += 1
        if written == before:
            break
        steps += 1
    if fill:
        starts[steps] = written
        resets[groups] = steps
    return steps, groups
