"""A lower bound on the step time that holds for every placement.

It is made of what no placement can avoid: arithmetic and weights that exist somewhere, an expert
that is hot by itself, and tokens that must leave their device or node because it has too few slots
for all the experts they use. The parts are bounded one by one, so their sum is valid but not
tight: a placement may be optimal and still show a gap.
"""

from __future__ import annotations

import heapq

import numpy as np

from moesim.chain_bound import chain_lower_bound_s
from moesim.compiled import compiled
from moesim.link_cost import Direction
from moesim.link_cuts import device_cuts, node_cuts
from moesim.placement import Placement
from moesim.step import StepEvaluator
from moesim.workload import Batches

__all__ = ["step_lower_bound"]

TIGHTEN_S = 30.0
"""Of eigenvalues by default; what a plan is given as its time limit."""


def step_lower_bound(
    evaluator: StepEvaluator,
    slots: int,
    *,
    tighten_s: float = TIGHTEN_S,
    known: Placement | None = None,
) -> float:
    """Seconds per step that no placement with equal slots per device can beat.

    Args:
        evaluator: Batches, sizes, cluster and cost that placements are priced with.
        slots: S, physical slots per layer.
        tighten_s: Seconds, roughly, for the part that takes long: where tokens travel from expert
            to expert, the eigenvalues of the flow between layers.
        known: A good placement; where tokens travel from expert to expert, the bound comes near
            faster if it knows what it can never go below. It is valid with any.
    """
    batches, cluster = evaluator.batches, evaluator.cluster
    counts = _counts_by_home(batches)  # [W, L, G, E]
    total = counts.sum(axis=2)
    per_device = slots // cluster.devices
    compute_s = np.maximum(
        evaluator.expert_cost.lower_bound_s(
            total, float(cluster.speed_factors.sum()), cluster.devices
        ),
        _hottest_s(evaluator, total, slots),
    )
    links = evaluator.link_cost
    if evaluator.comm == "chain":
        moving_s = chain_lower_bound_s(evaluator, slots, tighten_s=tighten_s, known=known)
    else:
        vectors = _leaving(evaluator, counts, per_device)
        moving_s = _home_rank_s(vectors, links.dispatch) + _home_rank_s(vectors, links.combine)
    return float((compute_s.sum() + moving_s) / batches.count)


def _counts_by_home(batches: Batches) -> np.ndarray:
    """[W, L, G, E] int64 assignments by expert and by the device that the token comes from."""
    shape = (batches.count, batches.layers, batches.devices, batches.experts)
    counts = np.zeros(shape, np.int64)
    per_device = batches.tokens_per_device
    for batch in range(batches.count):
        for layer in range(batches.layers):
            for device in range(batches.devices):
                rows = slice(device * per_device, (device + 1) * per_device)
                ids = batches.routing[batch, layer, rows]
                if batches.valid_k is not None:
                    valid = batches.valid_k[batch, layer, rows]
                    ids = ids[np.arange(batches.top_k) < valid[:, None]]
                counts[batch, layer, device] = np.bincount(ids.ravel(), minlength=batches.experts)
    return counts


def _hottest_s(evaluator: StepEvaluator, total: np.ndarray, slots: int) -> np.ndarray:
    """[W, L] seconds of the fastest device for the fullest slot under the best replication.

    Giving every further slot to the expert with the most tokens per copy minimises the largest
    tokens per copy over all ways to replicate.
    """
    fastest = float(evaluator.cluster.speed_factors.max())
    hottest = np.empty(total.shape[:2])
    for index in np.ndindex(*hottest.shape):
        heap = [(-int(tokens), int(tokens), 1) for tokens in total[index]]
        heapq.heapify(heap)
        for _ in range(slots - total.shape[2]):
            _, tokens, copies = heap[0]
            heapq.heapreplace(heap, (-tokens / (copies + 1), tokens, copies + 1))  # type: ignore[misc]
        hottest[index] = -heap[0][0]
    return evaluator.expert_cost.lower_bound_s(hottest[..., None], fastest)


def _home_rank_s(vectors: tuple[np.ndarray, np.ndarray], way: Direction) -> float:
    """Σ seconds of one direction over batches and layers, from what :func:`_leaving` counts."""
    cuts = device_cuts(way.cluster, way.links), node_cuts(way.cluster, way.links)
    busiest = np.zeros(vectors[0].shape[:2])  # vectors over the cut's bytes/s, the largest of all
    for least, cut in zip(vectors, cuts, strict=True):
        if np.isfinite(cut).all():
            capacity = np.append(cut, cut.sum())
            busiest = np.maximum(busiest, (least / capacity).max(axis=2))
    return float(way.seconds(busiest * way.vector_bytes).sum())


def _leaving(
    evaluator: StepEvaluator, counts: np.ndarray, per_device: int
) -> tuple[np.ndarray, np.ndarray]:
    """[W, L, G + 1] and [W, L, nodes + 1] vectors that leave each device (node), and all, at least.

    Two reasons why tokens must leave their device (node): with q slots it serves at home at most
    the q experts that its own tokens use most; and with R further slots in all, only R times can an
    expert be at home in more than one place. In decode every expert served elsewhere is a copy
    sent. In prefill one copy serves all the experts of a token that the receiver holds, but a token
    that is not served at home entirely needs at least one.
    """
    batches, cluster = evaluator.batches, evaluator.cluster
    node_of = cluster.domain_of_device
    members = np.bincount(node_of)
    redundant = per_device * cluster.devices - batches.experts
    largest = per_device * int(members.max()) if len(members) > 1 else per_device
    shared = min(batches.top_k, largest) if evaluator.phase == "prefill" else 1
    found = []
    for place_of, slots in (
        (np.arange(cluster.devices), np.full(cluster.devices, per_device)),
        (node_of, per_device * members),
    ):
        places = len(slots)
        used = np.stack([counts[:, :, place_of == p].sum(axis=2) for p in range(places)], axis=2)
        least = np.zeros((*counts.shape[:2], places + 1))
        if places > 1:
            least[..., places] = _not_everywhere(used, redundant) / shared
            for place in range(places):
                ranked = np.sort(used[:, :, place], axis=-1)[..., ::-1]
                copies = ranked[..., int(slots[place]) :].sum(axis=-1) / shared
                if evaluator.phase == "prefill":
                    leaving = _tokens_leaving(batches, place_of, place, int(slots[place]))
                    copies = np.maximum(copies, leaving)
                least[..., place] = copies
        found.append(least)
    return found[0], found[1]


def _not_everywhere(used: np.ndarray, redundant: int) -> np.ndarray:
    """[W, L] assignments served away from home, at least.

    Args:
        used: [W, L, places, E] assignments by the place that the token comes from.
        redundant: R, slots beyond one per expert.
    """
    best = used.max(axis=2)
    # Every further copy makes an expert at home in one more place, at most its next best.
    others = np.sort(used, axis=2)[:, :, :-1].reshape(*used.shape[:2], -1)
    gained = np.sort(others, axis=-1)[..., max(others.shape[-1] - redundant, 0) :].sum(axis=-1)
    return used.sum(axis=(2, 3)) - best.sum(axis=-1) - gained


def _tokens_leaving(batches: Batches, place_of: np.ndarray, place: int, slots: int) -> np.ndarray:
    """[W, L] tokens of a place that cannot find all their experts among its slots, at least.

    A token that does has all its K(K − 1)/2 pairs of experts among the q held there. Every expert
    has pairs with at most q − 1 others of them, so the pairs held are at most half the sum, over
    the q best experts, of each one's q − 1 most frequent partners.
    """
    top_k = batches.top_k
    homes = np.repeat(place_of == place, batches.tokens_per_device)
    tokens = int(homes.sum())
    leaving = np.zeros((batches.count, batches.layers))
    if batches.valid_k is not None or top_k < 2:
        return leaving
    if top_k > slots:
        return np.full_like(leaving, tokens)
    for index in np.ndindex(*leaving.shape):
        pairs = _pairs(batches.routing[index][homes], batches.experts)
        partners = np.sort(pairs, axis=1)[:, ::-1][:, : slots - 1].sum(axis=1)
        held = np.sort(partners)[::-1][:slots].sum() / 2
        leaving[index] = max(tokens - held / (top_k * (top_k - 1) / 2), 0)
    return leaving


@compiled
def _pairs(routing: np.ndarray, experts: int) -> np.ndarray:
    """[E, E] int64 tokens that use both experts; the diagonal is 0."""
    pairs = np.zeros((experts, experts), np.int64)
    for token in range(routing.shape[0]):
        for first in range(routing.shape[1]):
            for second in range(first):
                one, two = routing[token, first], routing[token, second]
                pairs[one, two] += 1
                pairs[two, one] += 1
    return pairs
