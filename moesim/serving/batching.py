"""How a group forms a step, and what is true when the step ends (compiled).

The rules in words stand in :class:`~moesim.serving.engines.EnginePolicy`.
"""

from __future__ import annotations

from math import floor

from moesim.compiled import compiled_part
from moesim.serving.state import (
    CHUNKS,
    FINISHED,
    GAPS,
    NOBODY,
    PREFILL,
    GroupState,
    Log,
    RequestState,
    Rules,
)

__all__ = ["end_group", "form_group", "queue_back"]


@compiled_part
def _blocks(tokens: int, block: int) -> int:
    return (tokens + block - 1) // block


@compiled_part
def _promised(rules: Rules, requests: RequestState, r: int) -> int:
    """Blocks at the end of a request's time in this group."""
    if rules.role == PREFILL:
        return _blocks(requests.prompt[r], rules.block)
    return _blocks(requests.prompt[r] + requests.output[r] + rules.draft, rules.block)


@compiled_part
def queue_back(requests: RequestState, groups: GroupState, g: int, r: int) -> None:
    """Put a request at the end of a group's queue."""
    requests.group[r] = g
    requests.queue_after[r] = NOBODY
    tail = groups.queue_tail[g]
    if tail == NOBODY:
        groups.queue_head[g] = r
    else:
        requests.queue_after[tail] = r
    groups.queue_tail[g] = r
    groups.waiting[g] += 1


@compiled_part
def _queue_front(requests: RequestState, groups: GroupState, g: int, r: int) -> None:
    head = groups.queue_head[g]
    requests.queue_after[r] = head
    groups.queue_head[g] = r
    if head == NOBODY:
        groups.queue_tail[g] = r
    groups.waiting[g] += 1


@compiled_part
def _admissible(rules: Rules, requests: RequestState, groups: GroupState, g: int, r: int) -> bool:
    if groups.running[g] >= rules.max_sequences:
        return False
    length = requests.past[r] + requests.todo[r]
    needed = _blocks(length, rules.block)
    if rules.keeps_own:
        coming = min(requests.output[r] - requests.made[r], rules.own_clip)
        needed = max(needed, _blocks(length + coming + rules.draft, rules.block))
    growing = groups.share[g] * (groups.promised[g] - groups.held[g])
    return bool(groups.held[g] + needed + growing <= rules.capacity)


@compiled_part
def _admit(rules: Rules, requests: RequestState, groups: GroupState, g: int, now_s: float) -> None:
    """Take the head of the queue in."""
    r = groups.queue_head[g]
    groups.queue_head[g] = requests.queue_after[r]
    if groups.queue_head[g] == NOBODY:
        groups.queue_tail[g] = NOBODY
    groups.waiting[g] -= 1
    groups.held[g] += _blocks(requests.past[r] + requests.todo[r], rules.block)
    groups.promised[g] += _promised(rules, requests, r)
    groups.running[g] += 1
    tail = groups.run_tail[g]
    requests.run_before[r], requests.run_after[r] = tail, NOBODY
    if tail != NOBODY:
        requests.run_after[tail] = r
    groups.run_tail[g] = r
    if requests.admitted_s[r] != requests.admitted_s[r]:
        requests.admitted_s[r] = now_s


@compiled_part
def _leave(rules: Rules, requests: RequestState, groups: GroupState, g: int, r: int) -> None:
    """Out of the running requests; its blocks are another matter."""
    groups.running[g] -= 1
    groups.promised[g] -= _promised(rules, requests, r)
    before, after = requests.run_before[r], requests.run_after[r]
    if before != NOBODY:
        requests.run_after[before] = after
    if after == NOBODY:
        groups.run_tail[g] = before
    else:
        requests.run_before[after] = before


@compiled_part
def _start_decoding(
    rules: Rules, requests: RequestState, groups: GroupState, g: int, r: int
) -> None:
    clock = groups.clock[g]
    base = requests.prompt[r] + requests.made[r] - 1 - clock
    requests.base[r] = base
    groups.decoding[g] += 1
    groups.base_sum[g] += base
    groups.residues[g, base % rules.block] += 1
    end = clock + requests.output[r] - requests.made[r]
    requests.finish_clock[r] = end
    place = end % groups.ends.shape[1]
    after = groups.ends[g, place]
    requests.end_before[r], requests.end_after[r] = NOBODY, after
    if after != NOBODY:
        requests.end_before[after] = r
    groups.ends[g, place] = r
    groups.joined[g, groups.joined_count[g]] = r
    groups.joined_count[g] += 1


@compiled_part
def _stop_decoding(
    rules: Rules, requests: RequestState, groups: GroupState, g: int, r: int
) -> None:
    base = requests.base[r]
    groups.decoding[g] -= 1
    groups.base_sum[g] -= base
    groups.residues[g, base % rules.block] -= 1
    before, after = requests.end_before[r], requests.end_after[r]
    if before == NOBODY:
        groups.ends[g, requests.finish_clock[r] % groups.ends.shape[1]] = after
    else:
        requests.end_after[before] = after
    if after != NOBODY:
        requests.end_before[after] = before


@compiled_part
def _preempt(rules: Rules, requests: RequestState, groups: GroupState, g: int, advance: int) -> int:
    """The request admitted last starts anew later; what the step need not allocate for it."""
    r = groups.run_tail[g]
    spared = 0
    _leave(rules, requests, groups, g, r)
    if groups.partial[g] == r:
        groups.partial[g] = NOBODY
        groups.held[g] -= _blocks(requests.past[r] + requests.todo[r], rules.block)
    else:
        cached = requests.base[r] + groups.clock[g]
        groups.held[g] -= _blocks(cached, rules.block)
        for token in range(advance):
            spared += (cached + token) % rules.block == 0
        requests.made[r] = requests.output[r] - (requests.finish_clock[r] - groups.clock[g])
        _stop_decoding(rules, requests, groups, g, r)
        joined = groups.joined_count[g]
        if joined and groups.joined[g, joined - 1] == r:
            groups.joined_count[g] -= 1
        else:
            requests.last_token_s[r] = groups.last_decode_s[g]
    requests.past[r] = requests.cached[r]
    requests.todo[r] = requests.prompt[r] + requests.made[r] - requests.cached[r]
    requests.preemptions[r] += 1
    _queue_front(requests, groups, g, r)
    return spared


@compiled_part
def _allocate(rules: Rules, requests: RequestState, groups: GroupState, g: int) -> bool:
    """Blocks for the decode tokens of the step; whether requests had to make room."""
    step = groups.decode_steps[g]
    pace = rules.tokens_per_step
    advance = floor((step + 1) * pace) - floor(step * pace)
    groups.step_advance[g] = advance
    needed = 0
    for token in range(advance):
        needed += groups.residues[g, (-(groups.clock[g] + token)) % rules.block]
    preempted = False
    while groups.held[g] + needed > rules.capacity:
        needed -= _preempt(rules, requests, groups, g, advance)
        preempted = True
    groups.held[g] += needed
    if preempted:
        groups.share[g] = rules.share_first
    return preempted


@compiled_part
def _chunk(requests: RequestState, groups: GroupState, log: Log, g: int, r: int, new: int) -> None:
    row = log.counts[CHUNKS]
    log.chunks[row, 0], log.chunks[row, 1], log.chunks[row, 2] = r, new, requests.past[r]
    requests.past[r] += new
    requests.todo[r] -= new
    log.chunks[row, 3] = requests.todo[r] == 0
    groups.partial[g] = NOBODY if requests.todo[r] == 0 else r
    groups.step_chunks[g] += 1
    log.counts[CHUNKS] += 1


@compiled_part
def form_group(
    rules: Rules, requests: RequestState, groups: GroupState, log: Log, g: int, now_s: float
) -> None:
    """Decide what a group does in the step that starts now; written into the group and the log."""
    groups.step_decoding[g], groups.step_advance[g] = 0, 0
    groups.step_chunk[g], groups.step_chunks[g] = log.counts[CHUNKS], 0
    head = groups.queue_head[g]
    # Keys and values that arrived from a prefill worker.
    while (
        head != NOBODY
        and requests.todo[head] == 0
        and _admissible(rules, requests, groups, g, head)
    ):
        _admit(rules, requests, groups, g, now_s)
        _start_decoding(rules, requests, groups, g, head)
        head = groups.queue_head[g]
    alone = False
    if rules.prefill_first and not rules.mixed_chunk:
        alone = groups.partial[g] != NOBODY or (
            head != NOBODY
            and requests.todo[head] > 0
            and _admissible(rules, requests, groups, g, head)
        )
    preempted = False
    if groups.decoding[g] and not alone:
        preempted = _allocate(rules, requests, groups, g)
        groups.step_decoding[g] = groups.decoding[g]
    left = rules.budget - groups.step_decoding[g] * (1 + rules.draft)
    partial = groups.partial[g]
    if partial != NOBODY and left > 0:
        new = min(left, requests.todo[partial])
        _chunk(requests, groups, log, g, partial, new)
        left -= new
    if preempted:
        return
    while left > 0 and groups.partial[g] == NOBODY:
        head = groups.queue_head[g]
        if head == NOBODY or requests.todo[head] == 0:
            return
        if not _admissible(rules, requests, groups, g, head):
            return
        if not rules.chunked and requests.todo[head] > left and left < rules.budget:
            return
        new = min(left, requests.todo[head]) if rules.chunked else requests.todo[head]
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
    requests: RequestState, groups: GroupState, log: Log, g: int, r: int, step: int, now_s: float
) -> None:
    requests.finish_s[r], requests.last_step[r] = now_s, step
    groups.outstanding[g] -= 1
    log.counts[FINISHED] += 1


@compiled_part
def end_group(
    rules: Rules,
    requests: RequestState,
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
    if groups.step_decoding[g]:
        old = groups.step_decoding[g] - groups.joined_count[g]
        if old:
            _gap(log, now_s - groups.last_decode_s[g], old)
        for place in range(groups.joined_count[g]):
            _gap(log, now_s - requests.last_token_s[groups.joined[g, place]], 1)
        groups.joined_count[g] = 0
        groups.last_decode_s[g] = now_s
        groups.share[g] = max(rules.share_last, groups.share[g] - rules.share_decay)
        groups.decode_steps[g] += 1
        before = groups.clock[g]
        groups.clock[g] += groups.step_advance[g]
        for clock in range(before + 1, groups.clock[g] + 1):
            place = clock % groups.ends.shape[1]
            while groups.ends[g, place] != NOBODY:
                r = groups.ends[g, place]
                groups.held[g] -= _blocks(requests.base[r] + groups.clock[g], rules.block)
                _stop_decoding(rules, requests, groups, g, r)
                _leave(rules, requests, groups, g, r)
                _finish(requests, groups, log, g, r, step, now_s)
    leaving = NOBODY
    for row in range(groups.step_chunk[g], groups.step_chunk[g] + groups.step_chunks[g]):
        r = log.chunks[row, 0]
        if not log.chunks[row, 3]:
            continue
        if requests.made[r] == 0:
            requests.first_s[r], requests.first_step[r] = now_s, step
        else:
            _gap(log, now_s - requests.last_token_s[r], 1)
        requests.made[r] += 1
        requests.last_token_s[r] = now_s
        if requests.made[r] == requests.output[r]:
            groups.held[g] -= _blocks(requests.past[r], rules.block)
            _leave(rules, requests, groups, g, r)
            _finish(requests, groups, log, g, r, step, now_s)
        elif rules.role == PREFILL:
            _leave(rules, requests, groups, g, r)
            requests.queue_after[r] = leaving
            leaving = r
        else:
            _start_decoding(rules, requests, groups, g, r)
    return leaving
