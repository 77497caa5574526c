"""Serve requests on a deployment."""

from __future__ import annotations

import numpy as np

from moesim.errors import InfeasibleError
from moesim.serving.costs import make_costs
from moesim.serving.deployment import Deployment, Pool, Transfer
from moesim.serving.fleet import LINK, WORKER, Fleet
from moesim.serving.loop import run
from moesim.serving.requests import Requests
from moesim.serving.schedule import STEP_FIELDS, Schedule
from moesim.serving.state import (
    AGGREGATED,
    CHUNKS,
    DECODE,
    FINISHED,
    GAPS,
    GROUP,
    NOBODY,
    PREFILL,
    REQUEST,
    STEPS,
    GroupState,
    Log,
    Rules,
)

__all__ = ["kv_blocks_per_lane", "simulate_requests"]

FIRST_ROWS = 4096

_KEPT = (
    "arrival_s", "admitted_s", "first_s", "finish_s", "arrival_step", "first_step", "last_step",
    "preemptions",
)  # fmt: skip


def simulate_requests(deployment: Deployment, requests: Requests) -> Schedule:
    """Serve all requests, step by step.

    Args:
        deployment: Workers, their policy, their step times.
        requests: In the order in which they come.

    Raises:
        InfeasibleError: If the cache of a group does not hold one of the requests.
    """
    pools = _pools(deployment)
    rules = tuple(_rules(pool, role) for pool, role in pools)
    for (pool, role), rule in zip(pools, rules, strict=True):
        _check_capacity(pool, role, rule, requests)
    costs = tuple(
        make_costs(pool, _most_tokens(rule, requests))
        for (pool, _), rule in zip(pools, rules, strict=True)
    )
    state = _request_state(requests)
    arrivals = requests.arrival_s
    log = run(
        _fleet(deployment, pools),
        (rules[0], rules[-1]),
        (costs[0], costs[-1]),
        state,
        _group_state(pools, rules, requests),
        _empty_log(),
        np.zeros(0) if arrivals is None else np.ascontiguousarray(arrivals, float),
        requests.concurrency,
    )
    if log.counts[FINISHED] != requests.count:
        raise AssertionError(f"{requests.count - log.counts[FINISHED]} requests never finish")
    return _schedule(log, state, requests, sum(pool.workers for pool, _ in pools))


def kv_blocks_per_lane(pool: Pool) -> int:
    """Blocks of one group's cache that one lane of the pipeline may fill."""
    return pool.kv_tokens // pool.lanes // pool.policy.block_tokens


def _pools(deployment: Deployment) -> list[tuple[Pool, int]]:
    if deployment.prefill is None:
        return [(deployment.pool, AGGREGATED)]
    return [(deployment.prefill, PREFILL), (deployment.pool, DECODE)]


def _rules(pool: Pool, role: int) -> Rules:
    policy = pool.policy
    grows = role != PREFILL
    draft = pool.draft_tokens if grows else 0
    budget = max(policy.token_budget, 1 + draft)
    share = policy.growth_share if grows else (0.0, 0.0)
    return Rules(
        role=role,
        prefill_first=policy.order == "prefill-first",
        mixed_chunk=policy.mixed_chunk,
        chunked=policy.chunked,
        budget=budget,
        max_sequences=max(1, min(policy.max_sequences // pool.lanes, budget // (1 + draft))),
        block=policy.block_tokens,
        capacity=kv_blocks_per_lane(pool),
        share_first=float(share[0]),
        share_last=float(share[1]),
        share_decay=float(policy.growth_decay if grows else 0.0),
        keeps_own=policy.keeps_own and grows,
        own_clip=policy.own_clip,
        draft=draft,
        tokens_per_step=float(pool.tokens_per_step if grows else 1.0),
        lanes=pool.lanes,
        groups=pool.groups,
    )


def _check_capacity(pool: Pool, role: int, rules: Rules, requests: Requests) -> None:
    tokens = requests.input_tokens.copy()
    if role != PREFILL:
        tokens = tokens + requests.output_tokens + rules.draft
    longest = int(tokens.max())
    if -(-longest // rules.block) > rules.capacity:
        lanes = f" of each of {pool.lanes} pipeline lanes" if pool.lanes > 1 else ""
        raise InfeasibleError(
            f"a request of {longest:,} tokens does not fit into the KV cache{lanes}: there is room "
            f"for {rules.capacity * rules.block:,}\n"
            "fix: use more devices, another layout, a narrower --kv-dtype, or shorter requests"
        )


def _most_tokens(rules: Rules, requests: Requests) -> int:
    """Most new tokens of a group in a step."""
    if rules.chunked:
        return rules.budget
    longest = int((requests.input_tokens + requests.output_tokens).max())
    return max(rules.budget, longest)


def _request_state(requests: Requests) -> np.ndarray:
    state = np.zeros(requests.count, REQUEST)
    state["prompt"], state["output"] = requests.input_tokens, requests.output_tokens
    state["cached"] = state["past"] = requests.cached_tokens
    state["todo"] = state["prompt"] - state["cached"]
    for name in REQUEST.names or ():
        if name.endswith(("_before", "_after", "_step")):
            state[name] = NOBODY
        elif name.endswith("_s"):
            state[name] = np.nan
    return state


def _group_state(
    pools: list[tuple[Pool, int]], rules: tuple[Rules, ...], requests: Requests
) -> GroupState:
    counts = [pool.workers * pool.lanes * pool.groups for pool, _ in pools]
    total = sum(counts)
    groups = np.zeros(total, GROUP)
    for name in ("run_tail", "partial", "queue_head", "queue_tail"):
        groups[name] = NOBODY
    groups["share"] = np.repeat([rule.share_first for rule in rules], counts)
    groups["last_decode_s"] = np.nan
    most = max(min(rule.max_sequences, requests.count) for rule in rules)
    return GroupState(
        groups,
        residues=np.zeros((total, max(rule.block for rule in rules)), np.int64),
        ends=np.full((total, int(requests.output_tokens.max()) + 1), NOBODY, np.int64),
        joined=np.full((total, most), NOBODY, np.int64),
    )


def _fleet(deployment: Deployment, pools: list[tuple[Pool, int]]) -> Fleet:
    decodes, first, turns = [], [], []
    begin = 0
    for index, (pool, _) in enumerate(pools):
        per_worker = pool.lanes * pool.groups
        decodes += [index] * pool.workers
        own = begin + per_worker * np.arange(pool.workers)
        first.append(own)
        # Requests go to every worker in turn, then to the second group of each.
        turns.append((own[None, :] + np.arange(per_worker)[:, None]).ravel())
        begin += per_worker * pool.workers
    transfer = deployment.transfer or Transfer(0.0, 0.0, 1.0, 0.0)
    workers = np.zeros(len(decodes), WORKER)
    workers["decodes"], workers["first_group"] = decodes, np.concatenate(first)
    workers["end_s"] = np.inf
    links = np.zeros(turns[0].size if deployment.prefill is not None else 0, LINK)
    links["head"] = links["tail"] = NOBODY
    return Fleet(
        workers,
        links,
        entry=turns[0].astype(np.int64),
        second=turns[-1].astype(np.int64),
        turn=np.zeros(2, np.int64),
        least_loaded=deployment.router == "least-loaded",
        token_bytes=float(transfer.bytes_per_token),
        request_bytes=float(transfer.bytes_per_request),
        bytes_per_s=float(transfer.bytes_per_s),
        latency_s=float(transfer.latency_s),
    )


def _empty_log() -> Log:
    return Log(
        np.empty((FIRST_ROWS, len(STEP_FIELDS)), np.int64),
        np.empty((FIRST_ROWS, 2)),
        np.empty((FIRST_ROWS, 4), np.int64),
        np.empty(FIRST_ROWS),
        np.empty(FIRST_ROWS, np.int64),
        np.zeros(5, np.int64),
    )


def _schedule(log: Log, state: np.ndarray, requests: Requests, workers: int) -> Schedule:
    steps = log.steps[: log.counts[STEPS]]
    times = log.times[: log.counts[STEPS]]
    chunks = log.chunks[: log.counts[CHUNKS]]
    gaps = int(log.counts[GAPS])
    return Schedule(
        **{name: steps[:, column].copy() for column, name in enumerate(STEP_FIELDS)},
        start_s=times[:, 0].copy(),
        duration_s=times[:, 1].copy(),
        chunk_request=chunks[:, 0].copy(),
        chunk_new=chunks[:, 1].copy(),
        chunk_past=chunks[:, 2].copy(),
        chunk_last=chunks[:, 3] == 1,
        gap_s=log.gap_s[:gaps].copy(),
        gap_count=log.gap_count[:gaps].copy(),
        input_tokens=state["prompt"].copy(),
        output_tokens=state["output"].copy(),
        **{name: state[name].copy() for name in _KEPT},
        closed=requests.concurrency > 0,
        workers=workers,
    )
