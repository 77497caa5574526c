"""What a placement search prices swaps with: a step's cost, taken apart into sums over experts.

The step evaluator follows every token of every batch, which a search that tries millions of swaps
cannot afford. Here a device's seconds are sums over its experts' tokens, and links are as busy as
an even spread of homes over the devices makes them. What the search finds is priced by the step
evaluator afterwards, like every other planner's answer.

The batches are drawn anew, so that an answer is judged on other batches than it was made on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moesim.communication import CommForm
from moesim.link_cost import Direction
from moesim.step import StepEvaluator
from moesim.workload import Batches

__all__ = [
    "SAMPLED_TOKENS",
    "SearchCost",
    "histograms",
    "search_cost",
]

SAMPLED_TOKENS = 4096
"""Tokens per layer, a multiple of 64, that show which experts are used together: the share of
tokens that touch a node is then known to 1.6 %."""


@dataclass(frozen=True)
class SearchCost:
    """A step's cost as a search sees it.

    Attributes:
        comm: Form of communication.
        tokens: [L, W, E] tokens of every expert in sampled batches.
        experts_s: Seconds [...] of a device from the tokens [..., s] of its slots.
        arrival_s: Link seconds per token that a device's experts take in.
        node_of: [G] node of every device.
        routing: [L, T, K] experts of sampled tokens, −1 for none; None where links do not depend
            on which experts a token uses together.
        nic_s: Seconds of a NIC if every token of a device crosses it once.
        port_s: The same of a scale-up port.
        pair_vectors: Vectors per step and layer between experts of neighbouring layers.
        near_s: Seconds per vector and step between devices of a node.
        far_s: Seconds per vector and step between nodes.
    """

    comm: CommForm
    tokens: np.ndarray
    experts_s: Callable[[np.ndarray], np.ndarray]
    arrival_s: float
    node_of: np.ndarray
    routing: np.ndarray | None
    nic_s: float
    port_s: float
    pair_vectors: float
    near_s: float
    far_s: float


def search_cost(evaluator: StepEvaluator, batches: list[Batches], seed: int) -> SearchCost:
    """Take a step's cost apart.

    Args:
        evaluator: Gives model, cluster, form of communication and cost of experts.
        batches: To search on, all of one size.
        seed: Of the tokens that are sampled from them.
    """
    cluster, links = evaluator.cluster, evaluator.link_cost
    node_of = cluster.domain_of_device.astype(np.int64)
    devices, nodes = cluster.devices, int(node_of.max()) + 1
    per_device = batches[0].tokens_per_device
    chain = evaluator.comm == "chain"
    by_token = not chain and evaluator.phase == "prefill"
    nic_s, port_s = _vector_seconds(links.dispatch, node_of)
    if not chain:
        back_nic_s, back_port_s = _vector_seconds(links.combine, node_of)
        nic_s, port_s = nic_s + back_nic_s, port_s + back_port_s
    arrival_s = max((1 - 1 / nodes) * nic_s, (1 / nodes - 1 / devices) * port_s)
    return SearchCost(
        comm=evaluator.comm,
        tokens=np.concatenate([histograms(drawn) for drawn in batches], axis=1),
        experts_s=lambda slot_tokens: evaluator.expert_cost.time(slot_tokens).total_s,
        arrival_s=0.0 if by_token else arrival_s,
        node_of=node_of,
        routing=_sampled(batches, seed) if by_token else None,
        nic_s=per_device * nic_s,
        port_s=per_device * port_s,
        pair_vectors=float(per_device * devices * batches[0].top_k),
        near_s=port_s / devices,
        far_s=nic_s / devices,
    )


def _vector_seconds(way: Direction, node_of: np.ndarray) -> tuple[float, float]:
    """Seconds of a device's links for one vector to another node, and within its own."""
    pair = way.cluster.pair_bandwidth_bytes_per_s
    same = node_of[:, None] == node_of
    inside = same & ~np.eye(len(node_of), dtype=bool)
    nic = float(pair[~same].min()) * way.out_rate if not same.all() else np.inf
    port = float(pair[inside].min()) * way.up_rate if inside.any() else np.inf
    return way.vector_bytes / nic, way.vector_bytes / port


def histograms(batches: Batches) -> np.ndarray:
    """[L, W, E] tokens of every expert."""
    counts = np.empty((batches.layers, batches.count, batches.experts), np.int64)
    for batch, layer in np.ndindex(batches.count, batches.layers):
        used = batches.routing[batch, layer]
        if batches.valid_k is not None:
            used = used[np.arange(batches.top_k) < batches.valid_k[batch, layer][:, None]]
        counts[layer, batch] = np.bincount(used.ravel(), minlength=batches.experts)
    return counts


def _sampled(batches: list[Batches], seed: int) -> np.ndarray:
    """[L, T, K] int64 experts of tokens drawn from all batches, −1 for none."""
    rng = np.random.default_rng(seed)
    which = rng.integers(0, len(batches), SAMPLED_TOKENS)
    parts = []
    for number, drawn in enumerate(batches):
        count = int((which == number).sum())
        batch = rng.integers(0, drawn.count, count)
        token = rng.integers(0, drawn.routing.shape[2], count)
        rows = drawn.routing[batch, :, token].astype(np.int64)  # [tokens, L, K]
        if drawn.valid_k is not None:
            valid = drawn.valid_k[batch, :, token]
            rows[np.arange(drawn.top_k) >= valid[..., None]] = -1
        parts.append(rows)
    return np.ascontiguousarray(np.concatenate(parts).transpose(1, 0, 2))
