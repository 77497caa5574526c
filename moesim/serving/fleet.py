"""Workers, how requests find them, and how caches travel between them (compiled)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moesim.compiled import compiled_part
from moesim.serving.bookkeeping import queue_back
from moesim.serving.state import NOBODY, RELEASED, GroupState, Log, Rules

__all__ = [
    "LINK",
    "WORKER",
    "Fleet",
    "arrive",
    "arrive_together",
    "next_end",
    "next_sent",
    "receive",
    "send",
]

WORKER = np.dtype(
    [("decodes", np.int64), ("first_group", np.int64), ("step", np.int64), ("end_s", np.float64)]
)
"""Whether it belongs to the second pool; the first of its groups; row in the log and end of its
step under way, infinite when idle."""

LINK = np.dtype([("head", np.int64), ("tail", np.int64), ("free_s", np.float64)])
"""Caches that a group has sent, in the order of their arrival, and when it can send the next."""


class Fleet(NamedTuple):
    """Workers, and how requests and caches find them."""

    workers: np.ndarray
    """[W] of :data:`WORKER`."""
    links: np.ndarray
    """[groups that prefill alone] of :data:`LINK`."""
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
def arrive(
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
def arrive_together(
    fleet: Fleet, requests: np.ndarray, groups: GroupState, log: Log, arrivals: np.ndarray
) -> None:
    """All requests that come at the time of the next one."""
    now_s = arrivals[log.counts[RELEASED]]
    while log.counts[RELEASED] < requests.size and arrivals[log.counts[RELEASED]] == now_s:
        arrive(fleet, requests, groups, log, now_s, -1)


@compiled_part
def send(fleet: Fleet, requests: np.ndarray, g: int, leaving: int, now_s: float) -> None:
    """Put caches on the group's link in the order in which their prompts were computed."""
    chain = NOBODY
    while leaving != NOBODY:  # the last comes first
        after = requests[leaving].queue_after
        requests[leaving].queue_after = chain
        chain, leaving = leaving, after
    while chain != NOBODY:
        r, chain = chain, requests[chain].queue_after
        begin = max(now_s, fleet.links[g].free_s)
        sent_bytes = requests[r].prompt * fleet.token_bytes + fleet.request_bytes
        fleet.links[g].free_s = begin + sent_bytes / fleet.bytes_per_s
        requests[r].sent_s = fleet.links[g].free_s + fleet.latency_s
        requests[r].queue_after = NOBODY
        tail = fleet.links[g].tail
        if tail == NOBODY:
            fleet.links[g].head = r
        else:
            requests[tail].queue_after = r
        fleet.links[g].tail = r


@compiled_part
def receive(fleet: Fleet, rules: Rules, requests: np.ndarray, groups: GroupState, g: int) -> None:
    """A cache is there: the prefill worker forgets it, and a decode worker queues the request."""
    r = fleet.links[g].head
    fleet.links[g].head = requests[r].queue_after
    if fleet.links[g].head == NOBODY:
        fleet.links[g].tail = NOBODY
    groups.at[g].outstanding -= 1
    groups.at[g].held -= (requests[r].prompt + rules.block - 1) // rules.block
    requests[r].first_s = requests[r].last_token_s = requests[r].sent_s
    target = _target(fleet, groups, 1)
    groups.at[target].outstanding += 1
    queue_back(requests, groups, target, r)


@compiled_part
def next_sent(fleet: Fleet, requests: np.ndarray) -> int:
    """The group whose cache arrives next; :data:`NOBODY` if none is on its way."""
    sender = NOBODY
    for g in range(fleet.links.size):
        head = fleet.links[g].head
        if head != NOBODY and (
            sender == NOBODY or requests[head].sent_s < requests[fleet.links[sender].head].sent_s
        ):
            sender = g
    return sender


@compiled_part
def next_end(fleet: Fleet) -> int:
    """The worker whose step ends next."""
    ending = 0
    for w in range(1, fleet.workers.size):
        if fleet.workers[w].end_s < fleet.workers[ending].end_s:
            ending = w
    return ending
