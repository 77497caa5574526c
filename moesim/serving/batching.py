"""How a group forms a step, and what is true when the step ends (compiled).

The rules in words stand in :class:`~moesim.serving.engines.EnginePolicy`.
"""

from __future__ import annotations

from math import floor

import numpy as np

from moesim.compiled import compiled_part
from moesim.serving.bookkeeping import (
    admissible,
    admit,
    blocks,
    leave,
    preempt,
    start_decoding,
    stop_decoding,
)
from moesim.serving.state import (
    CHUNKS,
    FINISHED,
    GAPS,
    NOBODY,
    PREFILL,
    GroupState,
    Log,
    Rules,
)

__all__ = ["end_group", "form_group"]


@compiled_part
def _allocate(rules: Rules, requests: np.ndarray, groups: GroupState, g: int) -> bool:
    """Blocks for the decode tokens of the step; whether requests had to make room."""
    step = groups.at[g].decode_steps
    pace = rules.tokens_per_step
    advance = floor((step + 1) * pace) - floor(step * pace)
    groups.at[g].step_advance = advance
    needed = 0
    for token in range(advance):
        needed += groups.residues[g, (-(groups.at[g].clock + token)) % rules.block]
    preempted = False
    while groups.at[g].held + needed > rules.capacity:
        needed -= preempt(rules, requests, groups, g, advance)
        preempted = True
    groups.at[g].held += needed
    if preempted:
        groups.at[g].share = rules.share_first
    return preempted


@compiled_part
def _chunk(requests: np.ndarray, groups: GroupState, log: Log, g: int, r: int, new: int) -> None:
    row = log.counts[CHUNKS]
    log.chunks[row, 0], log.chunks[row, 1], log.chunks[row, 2] = r, new, requests[r].past
    requests[r].past += new
    requests[r].todo -= new
    log.chunks[row, 3] = requests[r].todo == 0
    groups.at[g].partial = NOBODY if requests[r].todo == 0 else r
    groups.at[g].step_chunks += 1
    log.counts[CHUNKS] += 1


@compiled_part
def form_group(
    rules: Rules, requests: np.ndarray, groups: GroupState, log: Log, g: int, now_s: float
) -> None:
    """Decide what a group does in the step that starts now; written into the group and the log."""
    groups.at[g].step_decoding, groups.at[g].step_advance = 0, 0
    groups.at[g].step_chunk, groups.at[g].step_chunks = log.counts[CHUNKS], 0
    head = groups.at[g].queue_head
    # Keys and values that arrived from a prefill worker.
    while (
        head != NOBODY and requests[head].todo == 0 and admissible(rules, requests, groups, g, head)
    ):
        admit(rules, requests, groups, g, now_s)
        start_decoding(rules, requests, groups, g, head)
        head = groups.at[g].queue_head
    alone = False
    if rules.prefill_first and not rules.mixed_chunk:
        alone = groups.at[g].partial != NOBODY or (
            head != NOBODY
            and requests[head].todo > 0
            and admissible(rules, requests, groups, g, head)
        )
    preempted = False
    if groups.at[g].decoding and not alone:
        preempted = _allocate(rules, requests, groups, g)
        groups.at[g].step_decoding = groups.at[g].decoding
    left = rules.budget - groups.at[g].step_decoding * (1 + rules.draft)
    partial = groups.at[g].partial
    if partial != NOBODY and left > 0:
        new = min(left, requests[partial].todo)
        _chunk(requests, groups, log, g, partial, new)
        left -= new
    if preempted:
        return
    while left > 0 and groups.at[g].partial == NOBODY:
        head = groups.at[g].queue_head
        if head == NOBODY or requests[head].todo == 0:
            return
        if not admissible(rules, requests, groups, g, head):
            return
        if not rules.chunked and requests[head].todo > left and left < rules.budget:
            return
        new = min(left, requests[head].todo) if rules.chunked else requests[head].todo
        admit(rules, requests, groups, g, now_s)
        _chunk(requests, groups, log, g, head, new)
        left -= new


@compiled_part
def _gap(log: Log, gap_s: float, sequences: int) -> None:
    row = log.counts[GAPS]
    log.gap_s[row], log.gap_count[row] = gap_s, sequences
    log.counts[GAPS] += 1


@compiled_part
def _finish(
    requests: np.ndarray, groups: GroupState, log: Log, g: int, r: int, step: int, now_s: float
) -> None:
    requests[r].finish_s, requests[r].last_step = now_s, step
    groups.at[g].outstanding -= 1
    log.counts[FINISHED] += 1


@compiled_part
def end_group(
    rules: Rules,
    requests: np.ndarray,
    groups: GroupState,
    log: Log,
    g: int,
    step: int,
    now_s: float,
) -> int:
    """Tokens of a step are there: requests end, or go on to decode.

    Returns:
        Requests whose keys and values leave for a decode worker; chained by ``queue_after``, the
        last first.
    """
    if groups.at[g].step_decoding:
        old = groups.at[g].step_decoding - groups.at[g].joined_count
        if old:
            _gap(log, now_s - groups.at[g].last_decode_s, old)
        for place in range(groups.at[g].joined_count):
            _gap(log, now_s - requests[groups.joined[g, place]].last_token_s, 1)
        groups.at[g].joined_count = 0
        groups.at[g].last_decode_s = now_s
        groups.at[g].share = max(rules.share_last, groups.at[g].share - rules.share_decay)
        groups.at[g].decode_steps += 1
        before = groups.at[g].clock
        groups.at[g].clock += groups.at[g].step_advance
        for clock in range(before + 1, groups.at[g].clock + 1):
            place = clock % groups.ends.shape[1]
            while groups.ends[g, place] != NOBODY:
                r = groups.ends[g, place]
                groups.at[g].held -= blocks(requests[r].base + groups.at[g].clock, rules.block)
                stop_decoding(rules, requests, groups, g, r)
                leave(rules, requests, groups, g, r)
                _finish(requests, groups, log, g, r, step, now_s)
    leaving = NOBODY
    for row in range(groups.at[g].step_chunk, groups.at[g].step_chunk + groups.at[g].step_chunks):
        r = log.chunks[row, 0]
        if not log.chunks[row, 3]:
            continue
        if requests[r].made == 0:
            requests[r].first_s, requests[r].first_step = now_s, step
        else:
            _gap(log, now_s - requests[r].last_token_s, 1)
        requests[r].made += 1
        requests[r].last_token_s = now_s
        if requests[r].made == requests[r].output:
            groups.at[g].held -= blocks(requests[r].past, rules.block)
            leave(rules, requests, groups, g, r)
            _finish(requests, groups, log, g, r, step, now_s)
        elif rules.role == PREFILL:
            leave(rules, requests, groups, g, r)
            requests[r].queue_after = leaving
            leaving = r
        else:
            start_decoding(rules, requests, groups, g, r)
    return leaving
