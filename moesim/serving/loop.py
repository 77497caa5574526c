"""The event loop of serving (compiled): requests come, steps begin and end, caches travel."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moesim.compiled import compiled, compiled_part
from moesim.serving.batching import end_group, form_group, queue_back
from moesim.serving.costs import attention_s
from moesim.serving.state import (
    CHUNKS,
    FINISHED,
    GAPS,
    NOBODY,
    PREFILL,
    RELEASED,
    STEPS,
    Costs,
    GroupState,
    Log,
    Rules,
)

__all__ = ["Fleet", "run"]


LONGER = 1 + 1e-9
"""Of two groups, the second decides only if it takes longer by more than rounding errors."""


class Fleet(NamedTuple):
    """Workers, and how requests and caches find them."""

    decodes: np.ndarray
    """[W] 1 for workers of the second pool."""
    first_group: np.ndarray
    """[W] of its groups."""
    entry: np.ndarray
    """Groups to which requests come, in the order of their turn."""
    second: np.ndarray
    """Groups to which caches go."""
    turn: np.ndarray
    """[2] whose turn it is."""
    least_loaded: bool
    token_bytes: float
    request_bytes: float
    bytes_per_s: float
    latency_s: float
    link_free_s: np.ndarray
    sent_head: np.ndarray
    sent_tail: np.ndarray
    """[G] caches that a group has sent, in the order of their arrival."""
    end_s: np.ndarray
    """[W] of the step under way; infinite when idle."""
    step: np.ndarray
    """[W] its row in the log."""


@compiled_part
def _target(fleet: Fleet, groups: GroupState, second: int) -> int:
    choices = fleet.second if second else fleet.entry
    if not fleet.least_loaded:
        turn = fleet.turn[second]
        fleet.turn[second] = (turn + 1) % choices.size
        return int(choices[turn])
    best = choices[0]
    for g in choices:
        if groups.at[g].outstanding < groups.at[best].outstanding:
            best = g
    return int(best)


@compiled_part
def _arrive(
    fleet: Fleet, requests: np.ndarray, groups: GroupState, log: Log, now_s: float, step: int
) -> None:
    """The next request comes."""
    r = log.counts[RELEASED]
    log.counts[RELEASED] += 1
    g = _target(fleet, groups, 0)
    requests[r].arrival_s, requests[r].arrival_step = now_s, step
    groups.at[g].outstanding += 1
    queue_back(requests, groups, g, r)


@compiled_part
def _send(fleet: Fleet, requests: np.ndarray, g: int, leaving: int, now_s: float) -> None:
    """Put caches on the group's link in the order in which their prompts were computed."""
    chain = NOBODY
    while leaving != NOBODY:  # the last comes first
        after = requests[leaving].queue_after
        requests[leaving].queue_after = chain
        chain, leaving = leaving, after
    while chain != NOBODY:
        r, chain = chain, requests[chain].queue_after
        begin = max(now_s, fleet.link_free_s[g])
        sent_bytes = requests[r].prompt * fleet.token_bytes + fleet.request_bytes
        fleet.link_free_s[g] = begin + sent_bytes / fleet.bytes_per_s
        requests[r].sent_s = fleet.link_free_s[g] + fleet.latency_s
        requests[r].queue_after = NOBODY
        tail = fleet.sent_tail[g]
        if tail == NOBODY:
            fleet.sent_head[g] = r
        else:
            requests[tail].queue_after = r
        fleet.sent_tail[g] = r


@compiled_part
def _receive(fleet: Fleet, rules: Rules, requests: np.ndarray, groups: GroupState, g: int) -> None:
    """A cache is there: the prefill worker forgets it, and a decode worker queues the request."""
    r = fleet.sent_head[g]
    fleet.sent_head[g] = requests[r].queue_after
    if fleet.sent_head[g] == NOBODY:
        fleet.sent_tail[g] = NOBODY
    groups.at[g].outstanding -= 1
    groups.at[g].held -= (requests[r].prompt + rules.block - 1) // rules.block
    requests[r].first_s = requests[r].last_token_s = requests[r].sent_s
    target = _target(fleet, groups, 1)
    groups.at[target].outstanding += 1
    queue_back(requests, groups, target, r)


@compiled_part
def _price(
    fleet: Fleet, rules: Rules, costs: Costs, groups: GroupState, log: Log, w: int, now_s: float
) -> None:
    """Write down the step that the groups have formed, if there is anything to do."""
    row = log.counts[STEPS]
    first = fleet.first_group[w]
    longest_s = -1.0
    decoding, prefilled, running, waiting, held = 0, 0, 0, 0, 0
    for lane in range(rules.lanes):
        begin = first + lane * rules.groups
        tokens, sampled, sequences, kind = 0, 0, 0, 0
        for g in range(begin, begin + rules.groups):
            kind = max(kind, min(1, groups.at[g].step_chunks))
        slowest_s, deciding, deciding_context = -1.0, begin, 0
        for g in range(begin, begin + rules.groups):
            decode = groups.at[g].step_decoding
            chunks = log.chunks[
                groups.at[g].step_chunk : groups.at[g].step_chunk + groups.at[g].step_chunks
            ]
            new, done = 0, 0
            for place in range(chunks.shape[0]):
                new += chunks[place, 1]
                done += chunks[place, 3]
            rows = decode * (1 + rules.draft)
            tokens = max(tokens, rows + new)
            sampled = max(sampled, rows + done)
            sequences = max(sequences, decode + chunks.shape[0])
            context = groups.at[g].base_sum + decode * groups.at[g].clock if decode else 0
            taken_s = attention_s(costs, kind, decode, context, chunks)
            if taken_s > slowest_s * LONGER:
                slowest_s, deciding, deciding_context = taken_s, g, context
            decoding += decode
            prefilled += new
            running += groups.at[g].running
            waiting += groups.at[g].waiting
            held += groups.at[g].held
        if tokens == 0:
            continue
        step_s = slowest_s + costs.token_s[kind, tokens] + costs.sampled_s[kind, sampled]
        step_s += costs.sequence_s * sequences
        if step_s > longest_s * LONGER:
            longest_s = step_s
            step = log.steps[row]
            step[0], step[1], step[2] = w, kind, tokens
            step[3], step[4] = groups.at[deciding].step_decoding, deciding_context
            step[5], step[6] = groups.at[deciding].step_chunk, groups.at[deciding].step_chunks
            step[7], step[8] = sampled, sequences
    if longest_s < 0:
        return
    step = log.steps[row]
    step[9], step[10] = decoding, prefilled
    step[11], step[12], step[13] = running, waiting, held
    log.times[row, 0], log.times[row, 1] = now_s, longest_s
    fleet.end_s[w], fleet.step[w] = now_s + longest_s, row
    log.counts[STEPS] += 1


@compiled_part
def _longer(rows: np.ndarray) -> np.ndarray:
    longer = np.empty((2 * rows.shape[0], rows.shape[1]), rows.dtype)
    longer[: rows.shape[0]] = rows
    return longer


@compiled_part
def _most_rows(rules: Rules, requests: int) -> int:
    """Most chunks, or gaps between tokens, of a worker's step."""
    return rules.lanes * rules.groups * (min(rules.max_sequences, requests) + 2)


@compiled_part
def _is_short(log: Log, rows: int) -> bool:
    return bool(
        log.counts[STEPS] + rows > log.steps.shape[0]
        or log.counts[CHUNKS] + rows > log.chunks.shape[0]
        or log.counts[GAPS] + rows > log.gap_s.size
    )


@compiled_part
def _with_room(log: Log, rows: int) -> Log:
    """The log with space for so many more of everything."""
    steps, times, chunks = log.steps, log.times, log.chunks
    gap_s, gap_count = log.gap_s, log.gap_count
    while log.counts[STEPS] + rows > steps.shape[0]:
        steps, times = _longer(steps), _longer(times)
    while log.counts[CHUNKS] + rows > chunks.shape[0]:
        chunks = _longer(chunks)
    while log.counts[GAPS] + rows > gap_s.size:
        gap_s = np.append(gap_s, gap_s)
        gap_count = np.append(gap_count, gap_count)
    return Log(steps, times, chunks, gap_s, gap_count, log.counts)


@compiled_part
def _next_sent(fleet: Fleet, requests: np.ndarray) -> int:
    """The group whose cache arrives next; :data:`NOBODY` if none is on its way."""
    sender = NOBODY
    for g in range(fleet.sent_head.size):
        head = fleet.sent_head[g]
        if head != NOBODY and (
            sender == NOBODY or requests[head].sent_s < requests[fleet.sent_head[sender]].sent_s
        ):
            sender = g
    return sender


@compiled_part
def _start(
    fleet: Fleet,
    rules: tuple[Rules, Rules],
    costs: tuple[Costs, Costs],
    requests: np.ndarray,
    groups: GroupState,
    log: Log,
    w: int,
    now_s: float,
) -> None:
    """An idle worker looks for something to do."""
    own, price = (rules[1], costs[1]) if fleet.decodes[w] else (rules[0], costs[0])
    first = fleet.first_group[w]
    for g in range(first, first + own.lanes * own.groups):
        form_group(own, requests, groups, log, g, now_s)
    _price(fleet, own, price, groups, log, w, now_s)


@compiled
def run(
    fleet: Fleet,
    rules: tuple[Rules, Rules],
    costs: tuple[Costs, Costs],
    requests: np.ndarray,
    groups: GroupState,
    log: Log,
    arrivals: np.ndarray,
    concurrency: int,
) -> Log:
    """Serve all requests.

    Args:
        fleet: Workers.
        rules: Of the first and the second pool.
        costs: Of both.
        requests: Changed in place.
        groups: Changed in place.
        log: Empty.
        arrivals: [N] times in an open loop; not read in a closed one.
        concurrency: Requests in flight in a closed loop; 0 in an open one.

    Returns:
        The log, longer where it had to be.
    """
    total = requests.size
    most = max(_most_rows(rules[0], total), _most_rows(rules[1], total))
    for _ in range(min(concurrency, total)):
        _arrive(fleet, requests, groups, log, 0.0, -1)
    now_s = 0.0
    while log.counts[FINISHED] < total:
        for w in range(fleet.end_s.size):
            if fleet.end_s[w] == np.inf:
                if _is_short(log, most):
                    log = _with_room(log, most)
                _start(fleet, rules, costs, requests, groups, log, w, now_s)
        arrival_s = np.inf
        if concurrency == 0 and log.counts[RELEASED] < total:
            arrival_s = arrivals[log.counts[RELEASED]]
        sender, ending = _next_sent(fleet, requests), int(np.argmin(fleet.end_s))
        sent_s = np.inf if sender == NOBODY else requests[fleet.sent_head[sender]].sent_s
        now_s = min(arrival_s, sent_s, fleet.end_s[ending])
        if now_s == np.inf:
            break  # nothing can happen any more: the caller sees that requests are missing
        if arrival_s == now_s:
            while log.counts[RELEASED] < total and arrivals[log.counts[RELEASED]] == now_s:
                _arrive(fleet, requests, groups, log, now_s, -1)
        elif sent_s == now_s:
            _receive(fleet, rules[0], requests, groups, sender)
        else:
            if _is_short(log, most):
                log = _with_room(log, most)
            _end(fleet, rules, requests, groups, log, ending, concurrency > 0)
    return log


@compiled_part
def _end(
    fleet: Fleet,
    rules: tuple[Rules, Rules],
    requests: np.ndarray,
    groups: GroupState,
    log: Log,
    w: int,
    closed: bool,
) -> None:
    """A worker's step ends; in a closed loop as many requests come as have ended."""
    now_s, step = fleet.end_s[w], fleet.step[w]
    fleet.end_s[w] = np.inf
    own = rules[1] if fleet.decodes[w] else rules[0]
    first = fleet.first_group[w]
    finished = log.counts[FINISHED]
    for g in range(first, first + own.lanes * own.groups):
        leaving = end_group(own, requests, groups, log, g, step, now_s)
        if own.role == PREFILL:
            _send(fleet, requests, g, leaving, now_s)
    if closed:
        for _ in range(log.counts[FINISHED] - finished):
            if log.counts[RELEASED] < requests.size:
                _arrive(fleet, requests, groups, log, now_s, step)
