"""Who is in a group, and what each holds (compiled)."""

from __future__ import annotations

import numpy as np

from moesim.compiled import compiled_part
from moesim.serving.state import NOBODY, PREFILL, GroupState, Rules

__all__ = [
    "admissible",
    "admit",
    "blocks",
    "leave",
    "preempt",
    "queue_back",
    "start_decoding",
    "stop_decoding",
]


@compiled_part
def blocks(tokens: int, block: int) -> int:
    """Blocks that hold so many tokens."""
    return (tokens + block - 1) // block


@compiled_part
def _promised(rules: Rules, requests: np.ndarray, r: int) -> int:
    """Blocks at the end of a request's time in this group."""
    if rules.role == PREFILL:
        return blocks(requests[r].prompt, rules.block)
    return blocks(requests[r].prompt + requests[r].output + rules.draft, rules.block)


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
def admissible(rules: Rules, requests: np.ndarray, groups: GroupState, g: int, r: int) -> bool:
    """Whether a waiting request may begin now."""
    if groups.at[g].running >= rules.max_sequences:
        return False
    length = requests[r].past + requests[r].todo
    needed = blocks(length, rules.block)
    if rules.keeps_own:
        coming = min(requests[r].output - requests[r].made, rules.own_clip)
        needed = max(needed, blocks(length + coming + rules.draft, rules.block))
    growing = groups.at[g].share * (groups.at[g].promised - groups.at[g].held)
    return bool(groups.at[g].held + needed + growing <= rules.capacity)


@compiled_part
def admit(rules: Rules, requests: np.ndarray, groups: GroupState, g: int, now_s: float) -> None:
    """Take the head of the queue in."""
    r = groups.at[g].queue_head
    groups.at[g].queue_head = requests[r].queue_after
    if groups.at[g].queue_head == NOBODY:
        groups.at[g].queue_tail = NOBODY
    groups.at[g].waiting -= 1
    groups.at[g].held += blocks(requests[r].past + requests[r].todo, rules.block)
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
def leave(rules: Rules, requests: np.ndarray, groups: GroupState, g: int, r: int) -> None:
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
def start_decoding(rules: Rules, requests: np.ndarray, groups: GroupState, g: int, r: int) -> None:
    """A running request goes on to decode, from the group's next decode step on."""
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
def stop_decoding(rules: Rules, requests: np.ndarray, groups: GroupState, g: int, r: int) -> None:
    """A decoding request stops: it ends, or has to make room."""
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
def preempt(rules: Rules, requests: np.ndarray, groups: GroupState, g: int, advance: int) -> int:
    """The request admitted last starts anew later; what the step need not allocate for it."""
    r = groups.at[g].run_tail
    spared = 0
    leave(rules, requests, groups, g, r)
    if groups.at[g].partial == r:
        groups.at[g].partial = NOBODY
        groups.at[g].held -= blocks(requests[r].past + requests[r].todo, rules.block)
    else:
        cached = requests[r].base + groups.at[g].clock
        groups.at[g].held -= blocks(cached, rules.block)
        for token in range(advance):
            spared += (cached + token) % rules.block == 0
        requests[r].made = requests[r].output - (requests[r].finish_clock - groups.at[g].clock)
        stop_decoding(rules, requests, groups, g, r)
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
