"""How a group forms a step, and what is true when the step ends (compiled).

The rules in words stand in :class:`~moesim.serving.engines.EnginePolicy`.
"""

from __future__ import annotations

from math import floor

import numpy as np

from moesim.compiled import compiled_part
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

__all__ = ["end_group", "form_group", "queue_back"]


@compiled_part
def _blocks(tokens: int, block: int) -> int:
    return (tokens + block - 1) // block


@compiled_part
def _promised(rules: Rules, requests: np.ndarray, r: int) -> int:
    """Blocks at the end of a request's time in this group."""
    if rules.role == PREFILL:
        return _blocks(requests[r].prompt, rules.block)
    return _blocks(requests[r].prompt + requests[r].output + rules.draft, rules.block)


@compiled_part
def queue_back(requests: np.ndarray, groups: GroupState, g: int, r: int) -> None:
    """Put a request at the end of a group's queue."""
    requests[r].group = g
    requests[r].queue_after = NOBODY
    tail = groups.at[g].queue_tail
    if tail == NOBODY:
        groups.at[g].queue_head = r
    else:
        requests[tail].queue_after = r
    groups.at[g].queue_tail = r
    groups.at[g].waiting += 1


@compiled_part
def _queue_front(requests: np.ndarray, groups: GroupState, g: int, r: int) -> None:
    head = groups.at[g].queue_head
    requests[r].queue_after = head
    groups.at[g].queue_head = r
    if head == NOBODY:
        groups.at[g].queue_tail = r
    groups.at[g].waiting += 1


@compiled_part
def _admissible(rules: Rules, requests: np.ndarray, groups: GroupState, g: int, r: int) -> bool:
    if groups.at[g].running >= rules.max_sequences:
        return False
    length = requests[r].past + requests[r].todo
    needed = _blocks(length, rules.block)
    if rules.keeps_own:
        coming = min(requests[r].output - requests[r].made, rules.own_clip)
        needed = max(needed, _blocks(length + coming + rules.draft, rules.block))
    growing = groups.at[g].share * (groups.at[g].promised - groups.at[g].held)
    return bool(groups.at[g].held + needed + growing <= rules.capacity)


@compiled_part
def _admit(rules: Rules, requests: np.ndarray, groups: GroupState, g: int, now_s: float) -> None:
    """Take the head of the queue in."""
    r = groups.at[g].queue_head
    groups.at[g].queue_head = requests[r].queue_after
    if groups.at[g].queue_head == NOBODY:
        groups.at[g].queue_tail = NOBODY
    groups.at[g].waiting -= 1
    groups.at[g].held += _blocks(requests[r].past + requests[r].todo, rules.block)
    groups.at[g].promised += _promised(rules, requests, r)
    groups.at[g].running += 1
    tail = groups.at[g].run_tail
    requests[r].run_before, requests[r].run_after = tail, NOBODY
    if tail != NOBODY:
        requests[tail].run_after = r
    groups.at[g].run_tail = r
    if requests[r].admitted_s != requests[r].admitted_s:
        requests[r].admitted_s = now_s


@compiled_part
def _leave(rules: Rules, requests: np.ndarray, groups: GroupState, g: int, r: int) -> None:
    """Out of the running requests; its blocks are another matter."""
    groups.at[g].running -= 1
    groups.at[g].promised -= _promised(rules, requests, r)
    before, after = requests[r].run_before, requests[r].run_after
    if before != NOBODY:
        requests[before].run_after = after
    if after == NOBODY:
        groups.at[g].run_tail = before
    else:
        requests[after].run_before = before


@compiled_part
def _start_decoding(rules: Rules, requests: np.ndarray, groups: GroupState, g: int, r: int) -> None:
    clock = groups.at[g].clock
    base = requests[r].prompt + requests[r].made - 1 - clock
    requests[r].base = base
    groups.at[g].decoding += 1
    groups.at[g].base_sum += base
    groups.residues[g, base % rules.block] += 1
    end = clock + requests[r].output - requests[r].made
    requests[r].finish_clock = end
    place = end % groups.ends.shape[1]
    after = groups.ends[g, place]
    requests[r].end_before, requests[r].end_after = NOBODY, after
    if after != NOBODY:
        requests[after].end_before = r
    groups.ends[g, place] = r
    groups.joined[g, groups.at[g].joined_count] = r
    groups.at[g].joined_count += 1


@compiled_part
def _stop_decoding(rules: Rules, requests: np.ndarray, groups: GroupState, g: int, r: int) -> None:
    base = requests[r].base
    groups.at[g].decoding -= 1
    groups.at[g].base_sum -= base
    groups.residues[g, base % rules.block] -= 1
    before, after = requests[r].end_before, requests[r].end_after
    if before == NOBODY:
        groups.ends[g, requests[r].finish_clock % groups.ends.shape[1]] = after
    else:
        requests[before].end_after = after
    if after != NOBODY:
        requests[after].end_before = before


@compiled_part
def _preempt(rules: Rules, requests: np.ndarray, groups: GroupState, g: int, advance: int) -> int:
    """The request admitted last starts anew later; what the step need not allocate for it."""
    r = groups.at[g].run_tail
    spared = 0
    _leave(rules, requests, groups, g, r)
    if groups.at[g].partial == r:
        groups.at[g].partial = NOBODY
        groups.at[g].held -= _blocks(requests[r].past + requests[r].todo, rules.block)
    else:
        cached = requests[r].base + groups.at[g].clock
        groups.at[g].held -= _blocks(cached, rules.block)
        for token in range(advance):
            spared += (cached + token) % rules.block == 0
        requests[r].made = requests[r].output - (requests[r].finish_clock - groups.at[g].clock)
        _stop_decoding(rules, requests, groups, g, r)
        joined = groups.at[g].joined_count
        if joined and groups.joined[g, joined - 1] == r:
            groups.at[g].joined_count -= 1
        else:
            requests[r].last_token_s = groups.at[g].last_decode_s
    requests[r].past = requests[r].cached
    requests[r].todo = requests[r].prompt + requests[r].made - requests[r].cached
    requests[r].preemptions += 1
    _queue_front(requests, groups, g, r)
    return spared


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
        needed -= _preempt(rules, requests, groups, g, advance)
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
        head != NOBODY
        and requests[head].todo == 0
        and _admissible(rules, requests, groups, g, head)
    ):
        _admit(rules, requests, groups, g, now_s)
        _start_decoding(rules, requests, groups, g, head)
        head = groups.at[g].queue_head
    alone = False
    if rules.prefill_first and not rules.mixed_chunk:
        alone = groups.at[g].partial != NOBODY or (
            head != NOBODY
            and requests[head].todo > 0
            and _admissible(rules, requests, groups, g, head)
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
        if not _admissible(rules, requests, groups, g, head):
            return
        if not rules.chunked and requests[head].todo > left and left < rules.budget:
            return
        new = min(left, requests[head].todo) if rules.chunked else requests[head].todo
        _admit(rules, requests, groups, g, now_s)
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
                groups.at[g].held -= _blocks(requests[r].base + groups.at[g].clock, rules.block)
                _stop_decoding(rules, requests, groups, g, r)
                _leave(rules, requests, groups, g, r)
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
            groups.at[g].held -= _blocks(requests[r].past, rules.block)
            _leave(rules, requests, groups, g, r)
            _finish(requests, groups, log, g, r, step, now_s)
        elif rules.role == PREFILL:
            _leave(rules, requests, groups, g, r)
            requests[r].queue_after = leaving
            leaving = r
        else:
            _start_decoding(rules, requests, groups, g, r)
    return leaving
