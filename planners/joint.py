"""The joint planner: seconds per step, computation and communication in one objective.

It starts from LPT with swaps, which is even and knows no links, and searches on by swaps of two
copies that are priced on sampled batches (``search_cost.py``):

- where tokens return to their rank, layer by layer (``token_search.py``), also from placements
  that keep experts together that tokens use together (``token_starts.py``);
- where they travel from expert to expert, in all layers at once, from that start and from
  placements that keep as much flow at home as they can (``chain_search.py``).

How many swaps are tried follows from the size of the problem and the time limit, not from the
clock, so that the same seed gives the same answer; the clock only ends a search that is late.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from moesim.planners.chain_combine import ChainCost, combine
from moesim.planners.chain_search import anneal_chain, propagate
from moesim.planners.compiled_random import random_state
from moesim.planners.greedy import lpt_swap
from moesim.planners.problem import PlacementProblem, PlannerAnswer
from moesim.planners.search_cost import SAMPLED_TOKENS, SearchCost
from moesim.planners.token_search import anneal_layer
from moesim.planners.token_starts import busiest_link_s, other_starts, rank_of_copy, token_uses

__all__ = ["joint"]

PROPOSALS_PER_COPY = 2000
"""Swaps tried per copy and layer if time allows."""

LEAST_PROPOSALS = 50_000
"""Swaps tried in all layers together however small they are; a tenth of a second."""

PROPOSAL_S = 1e-6
"""What a swap takes to price, roughly; sets how many are tried within a time limit."""

SHARE_OF_TIME = 0.5
"""Of the time limit that the search plans to use."""

HOT, COOLING = 1.5, 0.02
"""Temperature at the start, as a share of a layer's seconds times copies^1.5, and what is left of
it at the end. Chosen on ``tests/benchmarks/placement.py`` and the bundled sample: what a swap
changes is a smaller part of the layer the more copies there are."""

HOT_FROM_FLOW = 0.05
"""The same from a placement that keeps flow on the devices of one node: warmer, and the search
forgets it. With several nodes it is further from the best (``tests/benchmarks/placement.py``)."""

STARTS = 3
"""Placements that keep flow at home, from different first layers; the best one is searched on."""

SMALL, RESTARTS = 128, 12
"""Copies in all layers up to which a search also starts from this many random placements, each with
``LEAST_PROPOSALS`` swaps: there a single one now and then ends in a local optimum."""


def joint(problem: PlacementProblem) -> PlannerAnswer:
    """Search for the placement with the least seconds per step.

    Returns:
        ``outcome`` is heuristic; ``detail`` says how many swaps were tried.
    """
    cost = problem.cost or _load_only(problem)
    chain = cost.comm == "chain" and problem.transitions is not None and problem.layers > 1
    _compile(chain)  # once per machine; not part of the search
    start_s = time.perf_counter()
    table = lpt_swap(problem).astype(np.int64)
    if chain:
        room = problem.slots_per_device
        at_start = np.broadcast_to(np.arange(problem.slots) // room, table.shape).copy()
        copy_s = _copy_seconds(cost, table, room)
        device_of, tried = _search_chain(problem, cost, table, at_start, copy_s)
    else:
        device_of, table, tried = _search_layers(problem, cost, table, start_s)
    order = np.lexsort((table, device_of), axis=1)
    found = np.take_along_axis(table, order, 1).astype(np.int32)
    return PlannerAnswer(found, time.perf_counter() - start_s, detail={"swaps_tried": float(tried)})


def _load_only(problem: PlacementProblem) -> SearchCost:
    """A cost that knows nothing but loads: the slowest device, in tokens."""
    return SearchCost(
        comm="home-rank",
        tokens=problem.loads[:, None, :],
        experts_s=lambda slot_tokens: np.sum(slot_tokens, axis=-1),
        arrival_s=0.0,
        node_of=np.arange(problem.devices) // (problem.devices // problem.nodes),
        routing=None,
        nic_s=0.0,
        port_s=0.0,
        pair_vectors=0.0,
        near_s=0.0,
        far_s=0.0,
    )


def _compile(chain: bool) -> None:
    """Run a search on a problem of nothing, so that it is compiled."""
    device_of, expert_of = np.array([0, 1]), np.array([0, 1])
    seconds, speed, node_of = np.ones((1, 2, 2), np.float32), np.ones(2), np.zeros(2, np.int64)
    uses, state = np.zeros((2, 1), np.uint64), random_state(0)
    if not chain:
        anneal_layer(
            device_of, expert_of, uses, seconds, speed, node_of, 0.0, 0.0, 1, 1.0, 1.0, state
        )
        return
    layers = np.stack([device_of, device_of])
    flow = np.ones((1, 2, 2), np.float32)
    anneal_chain(
        layers, layers.copy(), flow, np.stack([seconds, seconds]), speed, node_of,
        0.0, 0.0, 1, 1.0, 1.0, state,
    )  # fmt: skip


def _copy_seconds(cost: SearchCost, table: np.ndarray, room: int) -> np.ndarray:
    """[L, W, 2, S] float32 seconds that every copy adds to its device, and to its links.

    A cost that is no sum (launches, latencies, overlap) is taken at the margin: what the copy adds
    to a device whose other slots have the mean number of tokens.
    """
    tokens = _copy_tokens(cost.tokens, table)  # [L, W, S]
    beside = np.repeat(tokens.mean(axis=2, keepdims=True), max(room - 1, 1), axis=2)[:, :, None, :]
    beside = np.broadcast_to(beside, (*tokens.shape, beside.shape[-1]))
    full_s = cost.experts_s(np.concatenate((tokens[..., None], beside), axis=-1))
    rest_s = cost.experts_s(np.concatenate((np.zeros_like(tokens)[..., None], beside), -1))
    seconds = (full_s - rest_s, tokens * cost.arrival_s)
    return np.stack(seconds, axis=2).astype(np.float32)


def _copy_tokens(tokens: np.ndarray, table: np.ndarray) -> np.ndarray:
    """[L, W, S] float64 tokens of every copy; those of an expert are dealt to its copies."""
    rank, count = rank_of_copy(table)
    whole = np.take_along_axis(tokens, table[:, None, :], 2)
    share = whole // count[:, None] + (rank[:, None] < whole % count[:, None])
    return share.astype(np.float64)


def _proposals(problem: PlacementProblem) -> int:
    """Swaps to try in all layers together."""
    affordable = problem.time_limit_s * SHARE_OF_TIME / PROPOSAL_S
    wanted = max(PROPOSALS_PER_COPY * problem.slots * problem.layers, LEAST_PROPOSALS)
    return int(min(wanted, affordable))


def _hot(problem: PlacementProblem) -> float:
    """Temperature at the start, as a share of a layer's seconds."""
    return float(HOT / problem.slots**1.5)


def _search_layers(
    problem: PlacementProblem, cost: SearchCost, table: np.ndarray, start_s: float
) -> tuple[np.ndarray, np.ndarray, int]:
    """Every layer by itself, from each of its starts, on all cores; the best of them is taken.

    Returns:
        device_of: [L, S] device of every copy.
        table: [L, S] logical expert of every copy.
        tried: Swaps.
    """
    tables = [table]
    if cost.routing is not None:
        tables += other_starts(problem)
    room = problem.slots_per_device
    at_start = np.arange(problem.slots) // room
    places = [np.broadcast_to(at_start, table.shape).copy() for _ in tables]
    seconds = np.full((len(tables), problem.layers), np.inf)
    copies_s = [_copy_seconds(cost, copies, room) for copies in tables]
    ranks = [rank_of_copy(copies) for copies in tables]
    proposals = max(_proposals(problem) // problem.layers // len(tables), 1)
    tried = np.zeros(seconds.shape, np.int64)

    def search(job: tuple[int, int]) -> None:
        layer, start = job
        late = time.perf_counter() - start_s > problem.time_limit_s
        if late and start:
            return
        uses = token_uses(cost, layer, tables[start], *ranks[start])
        copy_s = np.ascontiguousarray(copies_s[start][layer])
        device_of = places[start][layer]
        nic_s, port_s = cost.nic_s / SAMPLED_TOKENS, cost.port_s / SAMPLED_TOKENS
        if not late:
            tried[start, layer] = proposals
            anneal_layer(
                device_of,
                tables[start][layer],
                uses,
                copy_s,
                problem.speed_factors,
                cost.node_of,
                nic_s,
                port_s,
                proposals,
                _hot(problem),
                _hot(problem) * COOLING,
                random_state(problem.seed * problem.layers + layer),
            )
        links_s = busiest_link_s(uses, device_of, cost.node_of, nic_s, port_s)
        slowest_s = _slowest_s(copy_s[None], device_of[None], problem.speed_factors)
        seconds[start, layer] = links_s + slowest_s

    # All layers from the first start, then from the next: a late search has an answer for each.
    jobs = [(layer, start) for start in range(len(tables)) for layer in range(problem.layers)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(search, jobs))
    best = seconds.argmin(axis=0)
    every = np.arange(problem.layers)
    return np.stack(places)[best, every], np.stack(tables)[best, every], int(tried.sum())


def _search_chain(
    problem: PlacementProblem,
    cost: SearchCost,
    table: np.ndarray,
    at_start: np.ndarray,
    copy_s: np.ndarray,
) -> tuple[np.ndarray, int]:
    """All layers at once, from the even placement and from the best one that keeps flow."""
    flow = _flow(problem, cost, table)
    rng = np.random.default_rng(problem.seed)
    nodes = int(cost.node_of.max()) + 1
    even_nodes = (np.bincount(cost.node_of) * nodes == problem.devices).all()
    starts, hot = [at_start], [_hot(problem)]
    if even_nodes and _distinct(table):
        kept = [propagate(flow, problem.devices, nodes, sweeps=4, rng=rng) for _ in range(STARTS)]
        starts.append(min(kept, key=lambda found: _travel_s(flow, found, cost)))
        hot.append(_hot(problem) * (HOT_FROM_FLOW / HOT if nodes == 1 else 1))
    proposals = _proposals(problem) // len(starts)
    if problem.slots * problem.layers <= SMALL and _distinct(table):
        starts += [rng.permuted(at_start, axis=1) for _ in range(RESTARTS)]
        hot = [_hot(problem)] * len(starts)
        affordable = problem.time_limit_s * SHARE_OF_TIME / PROPOSAL_S / len(starts)
        proposals = int(min(LEAST_PROPOSALS, affordable))
    level_s = float(copy_s.sum(axis=(2, 3)).mean() / problem.devices)
    level_s += _travel_s(flow, at_start, cost) / problem.layers

    def search(number: int) -> float:
        return anneal_chain(
            starts[number], table, flow, copy_s, problem.speed_factors, cost.node_of,
            cost.near_s, cost.far_s, proposals, hot[number] * level_s,
            hot[number] * COOLING * level_s,
            random_state(problem.seed * (RESTARTS + 2) + number),
        )  # fmt: skip

    with ThreadPoolExecutor(min(len(starts), os.cpu_count() or 1)) as pool:
        list(pool.map(search, range(len(starts))))
    if len(starts) > RESTARTS:
        priced = (flow, copy_s, problem.speed_factors, cost.node_of, cost.near_s, cost.far_s)
        starts.append(combine(ChainCost(*priced), starts))
    seconds = [
        _travel_s(flow, found, cost) + _slowest_s(copy_s, found, problem.speed_factors)
        for found in starts
    ]
    return starts[int(np.argmin(seconds))], proposals * len(starts)


def _distinct(table: np.ndarray) -> bool:
    """Whether no expert has a second copy (a placement by flow could put both on one device)."""
    ordered = np.sort(table, axis=1)
    return not (ordered[:, 1:] == ordered[:, :-1]).any()


def _flow(problem: PlacementProblem, cost: SearchCost, table: np.ndarray) -> np.ndarray:
    """[L − 1, S, S] float32 vectors per step between copies of neighbouring layers."""
    assert problem.transitions is not None  # noqa: S101 - the caller has checked
    _, count = rank_of_copy(table)
    flow = np.empty((problem.layers - 1, problem.slots, problem.slots), np.float32)
    for layer, pairs in enumerate(problem.transitions):
        vectors = pairs[table[layer][:, None], table[layer + 1][None, :]]
        vectors = vectors / (count[layer][:, None] * count[layer + 1][None, :])
        flow[layer] = vectors * (cost.pair_vectors / max(vectors.sum(), 1e-300))
    return flow


def _travel_s(flow: np.ndarray, device_of: np.ndarray, cost: SearchCost) -> float:
    """Seconds per step of all vectors between layers."""
    seconds = 0.0
    for layer, vectors in enumerate(flow):
        here, there = device_of[layer][:, None], device_of[layer + 1][None, :]
        hop = np.where(cost.node_of[here] == cost.node_of[there], cost.near_s, cost.far_s)
        seconds += float((vectors * np.where(here == there, 0.0, hop)).sum())
    return seconds


def _slowest_s(copy_s: np.ndarray, device_of: np.ndarray, speed: np.ndarray) -> float:
    """Seconds per step of the slowest devices, mean over batches."""
    on = device_of[:, :, None] == np.arange(len(speed))  # [L, S, G]
    busy = np.einsum("lwps,lsg->lwpg", copy_s.astype(np.float64), on.astype(np.float64))
    finish = busy[:, :, 0] / speed + busy[:, :, 1]
    return float(finish.max(axis=2).mean(axis=1).sum())
