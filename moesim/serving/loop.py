"""The event loop of serving (compiled): requests come, steps begin and end, caches travel."""

from __future__ import annotations

import numpy as np

from moesim.compiled import compiled, compiled_part
from moesim.serving.batching import end_group, form_group
from moesim.serving.costs import attention_s
from moesim.serving.fleet import (
    Fleet,
    arrive,
    arrive_together,
    next_end,
    next_sent,
    receive,
    send,
)
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

__all__ = ["run"]

LONGER = 1 + 1e-9
"""Of two groups, the second decides only if it takes longer by more than rounding errors."""


@compiled_part
def _price(
    fleet: Fleet, rules: Rules, costs: Costs, groups: GroupState, log: Log, w: int, now_s: float
) -> None:
    """Write down the step that the groups have formed, if there is anything to do."""
    row = log.counts[STEPS]
    first = fleet.workers[w].first_group
    longest_s = -1.0
    decoding, prefilled, running, waiting, held = 0, 0, 0, 0, 0
    for lane in range(rules.lanes):
        begin = first + lane * rules.groups
        tokens, together, sampled, sequences, kind = 0, 0, 0, 0, 0
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
            together += rows + new
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
        # A graph pads all groups to one size; prompts are gathered as they are.
        shared = tokens if kind == 0 else -(-together // rules.groups)
        step_s = slowest_s + costs.token_s[kind, tokens] + costs.shared_s[kind, shared]
        step_s += costs.sampled_s[kind, sampled] + costs.sequence_s * sequences
        if step_s > longest_s * LONGER:
            longest_s = step_s
            step = log.steps[row]
            step[0], step[1], step[2] = w, kind, tokens
            step[3], step[4] = groups.at[deciding].step_decoding, deciding_context
            step[5], step[6] = groups.at[deciding].step_chunk, groups.at[deciding].step_chunks
            step[7], step[8], step[14] = sampled, sequences, shared
    if longest_s < 0:
        return
    step = log.steps[row]
    step[9], step[10] = decoding, prefilled
    step[11], step[12], step[13] = running, waiting, held
    log.times[row, 0], log.times[row, 1] = now_s, longest_s
    fleet.workers[w].end_s, fleet.workers[w].step = now_s + longest_s, row
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
def _start(
    fleet: Fleet,
    rules: Rules,
    costs: Costs,
    requests: np.ndarray,
    groups: GroupState,
    log: Log,
    w: int,
    now_s: float,
) -> None:
    """An idle worker looks for something to do."""
    first = fleet.workers[w].first_group
    for g in range(first, first + rules.lanes * rules.groups):
        form_group(rules, requests, groups, log, g, now_s)
    _price(fleet, rules, costs, groups, log, w, now_s)


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
        arrive(fleet, requests, groups, log, 0.0, -1)
    now_s = 0.0
    while log.counts[FINISHED] < total:
        for w in range(fleet.workers.size):
            if fleet.workers[w].end_s == np.inf:
                if _is_short(log, most):
                    log = _with_room(log, most)
                if fleet.workers[w].decodes:
                    _start(fleet, rules[1], costs[1], requests, groups, log, w, now_s)
                else:
                    _start(fleet, rules[0], costs[0], requests, groups, log, w, now_s)
        arrival_s = np.inf
        if concurrency == 0 and log.counts[RELEASED] < total:
            arrival_s = arrivals[log.counts[RELEASED]]
        sender, ending = next_sent(fleet, requests), next_end(fleet)
        sent_s = np.inf if sender == NOBODY else requests[fleet.links[sender].head].sent_s
        now_s = min(arrival_s, sent_s, fleet.workers[ending].end_s)
        if now_s == np.inf:
            break  # nothing can happen any more: the caller sees that requests are missing
        if arrival_s == now_s:
            arrive_together(fleet, requests, groups, log, arrivals)
        elif sent_s == now_s:
            receive(fleet, rules[0], requests, groups, sender)
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
    now_s, step = fleet.workers[w].end_s, fleet.workers[w].step
    fleet.workers[w].end_s = np.inf
    own = rules[1] if fleet.workers[w].decodes else rules[0]
    first = fleet.workers[w].first_group
    finished = log.counts[FINISHED]
    for g in range(first, first + own.lanes * own.groups):
        leaving = end_group(own, requests, groups, log, g, step, now_s)
        if own.role == PREFILL:
            send(fleet, requests, g, leaving, now_s)
    if closed:
        for _ in range(log.counts[FINISHED] - finished):
            if log.counts[RELEASED] < requests.size:
                arrive(fleet, requests, groups, log, now_s, step)
