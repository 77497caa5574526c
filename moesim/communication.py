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

from dataclasses import dataclass
from typing import Literal

import numpy as np

from moesim.cluster import Cluster
from moesim.compiled import compiled
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
    slots_of = placement.logical_to_physical()
    copies_of = placement.replica_count()
    device_of_slot = placement.device_of_slot()
    node_of = cluster.domain_of_device
    valid_k = batches.valid_k
    if valid_k is None:
        valid_k = np.empty((batches.count, 0, 0), np.uint8)
    slot_tokens = np.zeros((batches.count, batches.layers, placement.slots), np.int64)
    shape = (batches.count, batches.layers, cluster.devices, cluster.devices)
    dispatch, combine = np.zeros(shape), np.zeros(shape)
    totals = np.zeros(3)
    for batch in range(batches.count):
        arguments = (
            batches.routing[batch],
            valid_k[batch],
            batches.tokens_per_device,
            slots_of,
            copies_of,
            device_of_slot,
            node_of,
        )
        if form == "chain":
            _chain(*arguments, slot_tokens[batch], dispatch[batch], combine[batch], totals)
        else:
            relay = _relays(node_of) if phase == "prefill" else np.empty((0, 0), np.int32)
            _home_rank(*arguments, relay, slot_tokens[batch], dispatch[batch], totals)
            combine[batch] = dispatch[batch].transpose(0, 2, 1)
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


@compiled
def _home_rank(  # noqa: PLR0913 - compiled code takes arrays, not objects
    routing: np.ndarray,  # [L, B, K]
    valid_k: np.ndarray,  # [L, B], or [0, 0]: all entries count
    tokens_per_device: int,
    slots_of: np.ndarray,  # [L, E, R]
    copies_of: np.ndarray,  # [L, E]
    device_of_slot: np.ndarray,  # [S]
    node_of: np.ndarray,  # [G]
    relay: np.ndarray,  # [G, N], or [0, 0]: every expert gets its own copy directly
    slot_tokens: np.ndarray,  # [L, S], added to
    copies: np.ndarray,  # [L, G, G], added to
    totals: np.ndarray,  # remote, internode, all; added to
) -> None:
    layers, tokens, top_k = routing.shape
    by_node = relay.shape[0] > 0
    device_seen = np.full(node_of.shape[0], -1, np.int64)
    node_seen = np.full(node_of.shape[0], -1, np.int64)
    remote = internode = total = 0
    for layer in range(layers):
        for token in range(tokens):
            stamp = layer * tokens + token
            home = token // tokens_per_device
            valid = top_k if valid_k.shape[0] == 0 else valid_k[layer, token]
            total += valid
            # The home has every vector already, and is its own relay within its node.
            device_seen[home] = stamp
            node_seen[node_of[home]] = stamp
            for k in range(valid):
                expert = routing[layer, token, k]
                replicas = copies_of[layer, expert]
                slot = slots_of[layer, expert, token % replicas if replicas > 1 else 0]
                slot_tokens[layer, slot] += 1
                device = device_of_slot[slot]
                node = node_of[device]
                remote += device != home
                internode += node != node_of[home]
                if not by_node:
                    copies[layer, home, device] += device != home
                    continue
                sender = relay[home, node]
                new_device = device_seen[device] != stamp
                new_node = node_seen[node] != stamp
                device_seen[device] = stamp
                node_seen[node] = stamp
                copies[layer, home, sender] += new_node
                copies[layer, sender, device] += new_device & (sender != device)
    totals[0] += remote
    totals[1] += internode
    totals[2] += total


@compiled
def _chain(  # noqa: PLR0913 - compiled code takes arrays, not objects
    routing: np.ndarray,  # [L, B, K]
    valid_k: np.ndarray,  # [L, B], or [0, 0]: all entries count
    tokens_per_device: int,
    slots_of: np.ndarray,  # [L, E, R]
    copies_of: np.ndarray,  # [L, E]
    device_of_slot: np.ndarray,  # [S]
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
                slot = slots_of[layer, expert, token % copies_of[layer, expert]]
                slot_tokens[layer, slot] += 1
                device = device_of_slot[slot]
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
