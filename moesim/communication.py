"""What tokens move between devices, and how long the links are busy with it.

Two forms, named in every output:

``home-rank``
    Tokens live on their rank (data-parallel attention) and return to it after every layer:
    dispatch, experts, combine. In prefill a token crosses to another node once and is forwarded
    there over the scale-up links (DeepEP's normal kernels, DeepSeek-V3 §3.2.2); in decode every
    chosen expert gets its own copy directly (DeepEP's low-latency kernels).
``chain``
    Tokens travel from the experts of layer l to those of layer l + 1 without a home, as in
    MoETuner (arXiv 2502.06643 §4) and ExFlow. Each of the K·K pairs carries 1/K of a vector, so
    that every expert input is made of one whole vector. The first layer's tokens come from their
    home, and the last layer's return to it.

Axes: W batches, L MoE layers, B tokens, K top-k, E experts, S slots, G devices.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from moesim.cluster import Cluster
from moesim.compiled import compiled
from moesim.environment import usable_processors
from moesim.placement import Placement
from moesim.workload import Batches, Phase

__all__ = ["CommForm", "Copies", "LinkTime", "count_copies", "link_time"]

CommForm = Literal["home-rank", "chain"]


@dataclass(frozen=True)
class Copies:
    """Where the token vectors of each batch go.

    Attributes:
        slot_tokens: [W, L, S] int64, tokens that each slot computes.
        dispatch: [W, L, G, G] float64, vectors sent from device i to j before the experts.
        combine: [W, L, G, G] float64, vectors sent from device i to j behind them.
        remote: Token assignments (of all batches and layers) whose expert is on another device
            than where the token comes from.
        internode: The same for another node (scale-up domain: an NVL72 rack counts as one node).
        assignments: All token assignments.
    """

    slot_tokens: np.ndarray
    dispatch: np.ndarray
    combine: np.ndarray
    remote: float
    internode: float
    assignments: int


def count_copies(
    batches: Batches, placement: Placement, cluster: Cluster, form: CommForm, phase: Phase
) -> Copies:
    """Follow every token of every batch.

    A token whose expert has r copies takes copy ``b mod r`` of its token index b, which spreads
    the tokens of every device evenly over the copies.
    """
    node_of = cluster.domain_of_device
    valid_k = batches.valid_k
    if valid_k is None:
        valid_k = np.empty((batches.count, 0, 0), np.uint8)
    slot_tokens = np.zeros((batches.count, batches.layers, placement.slots), np.int64)
    shape = (batches.count, batches.layers, cluster.devices, cluster.devices)
    dispatch, combine = np.zeros(shape), np.zeros(shape)
    by_expert = _by_expert(placement)
    relay = _relays(node_of) if phase == "prefill" else None

    def count(batch: int) -> np.ndarray:
        """[3] totals of a batch; the rest goes into its own part of the arrays."""
        routed = (batches.routing[batch], valid_k[batch], batches.tokens_per_device)
        if form == "home-rank":
            return _home_rank(
                *routed, by_expert, node_of, relay, slot_tokens[batch], dispatch[batch]
            )
        totals = np.zeros(3)
        _chain(
            *routed,
            *by_expert,
            node_of,
            slot_tokens[batch],
            dispatch[batch],
            combine[batch],
            totals,
        )
        return totals

    with ThreadPoolExecutor(usable_processors()) as threads:
        totals = sum(threads.map(count, range(batches.count)), np.zeros(3))
    if form == "home-rank":
        combine[:] = dispatch.swapaxes(2, 3)
    return Copies(
        slot_tokens, dispatch, combine, float(totals[0]), float(totals[1]), int(totals[2])
    )


def _relays(node_of: np.ndarray) -> np.ndarray:
    """[G, N] device of node n that receives from device g: the one with the same local rank."""
    nodes = int(node_of.max()) + 1
    members = [np.flatnonzero(node_of == node) for node in range(nodes)]
    relay = np.empty((len(node_of), nodes), np.int32)
    for device in range(len(node_of)):
        rank = int(np.searchsorted(members[node_of[device]], device))
        for node in range(nodes):
            relay[device, node] = members[node][rank % len(members[node])]
    return relay


class _ByExpert(NamedTuple):
    """Copies of an expert side by side, slots ascending; those without one come first."""

    slot: np.ndarray  # [L, S]
    device: np.ndarray  # [L, S]
    first: np.ndarray  # [L, E + 1], place of an expert's first copy


def _by_expert(placement: Placement) -> _ByExpert:
    slot = np.argsort(placement.physical_to_logical, axis=1, kind="stable")
    copies = placement.replica_count()
    first = np.full((placement.layers, placement.experts + 1), placement.slots, np.int64)
    first[:, :-1] -= copies[:, ::-1].cumsum(axis=1)[:, ::-1]
    return _ByExpert(slot, placement.device_of_slot()[slot], first)


def _home_rank(
    routing: np.ndarray,  # [L, B, K]
    valid_k: np.ndarray,  # [L, B], or [0, 0]: all entries count
    tokens_per_device: int,
    copies: _ByExpert,
    node_of: np.ndarray,  # [G]
    relay: np.ndarray | None,  # [G, N]; None: every expert gets its own copy directly
    slot_tokens: np.ndarray,  # [L, S], added to
    sent: np.ndarray,  # [L, G, G], added to
) -> np.ndarray:
    """[3] assignments: remote, to other nodes, all."""
    layers, devices = len(routing), len(node_of)
    homes, nodes = np.arange(devices), int(node_of.max()) + 1
    taken = np.zeros(copies.slot.shape, np.int64)
    every, once = (np.zeros((layers, devices, devices), np.int64) for _ in range(2))
    to_node = np.zeros((layers, devices, nodes if relay is not None else 0), np.int64)
    _count_visits(
        *(routing, valid_k, tokens_per_device, copies.first, copies.device, node_of),
        *(np.full(devices, -1), np.full(nodes, -1), taken, every, once, to_node),
    )
    np.put_along_axis(slot_tokens, copies.slot, taken, axis=1)
    away = homes[:, None] != homes  # [home, device]
    remote = float(every[:, away].sum())
    elsewhere = float(every[:, node_of[:, None] != node_of].sum())
    if relay is None:
        sent += every * away
    else:
        sender = relay[:, node_of]  # [home, device], of what the device gets from that home
        onward = away & (sender != homes)
        device = np.nonzero(onward)[1]
        for layer in range(layers):
            np.add.at(sent[layer], (homes[:, None], relay), to_node[layer])
            np.add.at(sent[layer], (sender[onward], device), once[layer][onward])
    return np.array([remote, elsewhere, float(every.sum())])


@compiled
def _count_visits(  # noqa: PLR0913 - compiled code takes arrays, not objects
    routing: np.ndarray,  # [L, B, K]
    valid_k: np.ndarray,  # [L, B], or [0, 0]: all entries count
    tokens_per_device: int,
    first: np.ndarray,  # [L, E + 1]
    device_of: np.ndarray,  # [L, S], of copies by expert
    node_of: np.ndarray,  # [G]
    device_seen: np.ndarray,  # [G] −1
    node_seen: np.ndarray,  # [N] −1
    taken: np.ndarray,  # [L, S] tokens that each copy computes
    every: np.ndarray,  # [L, G, G] assignments from home to device
    once: np.ndarray,  # [L, G, G] tokens with an expert there
    to_node: np.ndarray,  # [L, G, N] or on that node; [L, G, 0]: neither is counted
) -> None:
    layers, tokens, top_k = routing.shape
    by_node = to_node.shape[2] > 0
    for layer in range(layers):
        chosen, begins, places, done = routing[layer], first[layer], device_of[layer], taken[layer]
        for start in range(0, tokens, tokens_per_device):
            home = start // tokens_per_device
            sent, vectors, onward = every[layer, home], once[layer, home], to_node[layer, home]
            for token in range(start, min(start + tokens_per_device, tokens)):
                stamp = layer * tokens + token
                valid = top_k if valid_k.shape[0] == 0 else valid_k[layer, token]
                # The home has every vector already, and is its own relay within its node.
                device_seen[home] = stamp
                node_seen[node_of[home]] = stamp
                for k in range(valid):
                    copy = begins[chosen[token, k]]
                    replicas = begins[chosen[token, k] + 1] - copy
                    if replicas > 1:
                        copy += token % replicas
                    done[copy] += 1
                    device = places[copy]
                    sent[device] += 1
                    if by_node:
                        vectors[device] += device_seen[device] != stamp
                        device_seen[device] = stamp
                        node = node_of[device]
                        onward[node] += node_seen[node] != stamp
                        node_seen[node] = stamp


@compiled
def _chain(  # noqa: PLR0913 - compiled code takes arrays, not objects
    routing: np.ndarray,  # [L, B, K]
    valid_k: np.ndarray,  # [L, B], or [0, 0]: all entries count
    tokens_per_device: int,
    slot_of: np.ndarray,  # [L, S], of copies by expert
    device_of: np.ndarray,  # [L, S], of copies by expert
    first: np.ndarray,  # [L, E + 1]
    node_of: np.ndarray,  # [G]
    slot_tokens: np.ndarray,  # [L, S], added to
    dispatch: np.ndarray,  # [L, G, G], added to
    combine: np.ndarray,  # [L, G, G], added to
    totals: np.ndarray,  # remote, internode, all; added to
) -> None:
    layers, tokens, top_k = routing.shape
    here = np.empty(top_k, np.int32)
    before = np.empty(top_k, np.int32)
    remote = internode = 0.0
    total = 0
    for token in range(tokens):
        home = token // tokens_per_device
        before[0] = home
        sources = 1
        for layer in range(layers):
            valid = top_k if valid_k.shape[0] == 0 else valid_k[layer, token]
            if valid == 0:
                continue
            total += valid
            share = 1.0 / sources
            for k in range(valid):
                expert = routing[layer, token, k]
                copy = first[layer, expert]
                copy += token % (first[layer, expert + 1] - copy)
                slot_tokens[layer, slot_of[layer, copy]] += 1
                device = device_of[layer, copy]
                here[k] = device
                for source in range(sources):
                    if before[source] != device:
                        dispatch[layer, before[source], device] += share
                        remote += share
                        if node_of[before[source]] != node_of[device]:
                            internode += share
            sources = valid
            before[:valid] = here[:valid]
        for source in range(sources):
            if before[source] != home:
                combine[layers - 1, before[source], home] += 1.0 / sources
    totals[0] += remote
    totals[1] += internode
    totals[2] += total


@dataclass(frozen=True)
class LinkTime:
    """An all-to-all over the cluster's links.

    Attributes:
        scale_up_s: [...] bytes over bandwidth of the busiest link within a domain.
        scale_out_s: [...] the same between domains.
        latency_s: [...] of the longest route that carries anything.
        link_bytes: [..., links] bytes over each link.
        tail_pair_s: [...] the same over device pairs, each alone on its route: MoETuner's tail
            term (ILP 2), which shared links can only exceed.
    """

    scale_up_s: np.ndarray
    scale_out_s: np.ndarray
    latency_s: np.ndarray
    link_bytes: np.ndarray
    tail_pair_s: np.ndarray

    @property
    def seconds(self) -> np.ndarray:
        """[...] of the busiest link and the longest route."""
        return np.maximum(self.scale_up_s, self.scale_out_s) + self.latency_s


def link_time(sent_bytes: np.ndarray, cluster: Cluster) -> LinkTime:
    """Seconds of all-to-alls, each alone on the cluster.

    Args:
        sent_bytes: [..., G, G] bytes from device i to device j; the diagonal does not count.
        cluster: Links and routes.
    """
    lead = sent_bytes.shape[:-2]
    pairs = np.ascontiguousarray(sent_bytes, np.float64).reshape(-1, cluster.devices**2)
    link_bytes = np.zeros((len(pairs), len(cluster.links)))
    _add_routes(pairs, cluster.route_offsets, cluster.route_links, link_bytes)
    bandwidth = np.array([link.bandwidth_bytes_per_s for link in cluster.links])
    outside = np.array([link.tier == "scale-out" for link in cluster.links], bool)
    busy = link_bytes / bandwidth
    latency = np.where(pairs > 0, cluster.pair_latency_s.ravel(), 0.0).max(axis=1, initial=0.0)
    alone = (pairs / cluster.pair_bandwidth_bytes_per_s.ravel()).max(axis=1, initial=0.0)
    return LinkTime(
        busy[:, ~outside].max(axis=1, initial=0.0).reshape(lead),
        busy[:, outside].max(axis=1, initial=0.0).reshape(lead),
        latency.reshape(lead),
        link_bytes.reshape(*lead, len(cluster.links)),
        alone.reshape(lead),
    )


@compiled
def _add_routes(
    pairs: np.ndarray,  # [rows, G·G]
    route_offsets: np.ndarray,  # [G·G + 1]
    route_links: np.ndarray,
    link_bytes: np.ndarray,  # [rows, links], added to
) -> None:
    for row in range(pairs.shape[0]):
        for pair in range(pairs.shape[1]):
            sent = pairs[row, pair]
            if sent > 0:
                for hop in range(route_offsets[pair], route_offsets[pair + 1]):
                    link_bytes[row, route_links[hop]] += sent
