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
from typing import Literal

import numpy as np

from moesim.cluster import Cluster
from moesim.compiled import compiled, compiled_part
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
    relay = _relays(node_of) if phase == "prefill" else np.empty((0, 0), np.int32)

    def count(batch: int) -> np.ndarray:
        """[3] totals of a batch; the rest goes into its own part of the arrays."""
        found = np.zeros(3)
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
            _chain(*arguments, slot_tokens[batch], dispatch[batch], combine[batch], found)
        else:
            _home_rank(*arguments, relay, slot_tokens[batch], dispatch[batch], found)
            combine[batch] = dispatch[batch].transpose(0, 2, 1)
        return found

    with ThreadPoolExecutor(usable_processors()) as threads:
        totals = sum(threads.map(count, range(batches.count)), np.zeros(3))
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


@compiled_part
def _count_from(
    home: int,
    tokens: range,
    routing: np.ndarray,  # [B, K]
    valid_k: np.ndarray,  # [B], or [0]: all entries count
    first: np.ndarray,  # [E + 1] where an expert's copies begin
    device_of: np.ndarray,  # [copies]
    node_of: np.ndarray,  # [G]
    by_node: bool,
    taken: np.ndarray,  # [copies] tokens that each computes, added to
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """[G] assignments to devices, [G] tokens with an expert there, [N] or on that node, and all."""
    every, once = np.zeros(node_of.shape[0], np.int64), np.zeros(node_of.shape[0], np.int64)
    to_node = np.zeros(node_of.max() + 1, np.int64)
    device_seen, node_seen = (
        np.full(every.shape, -1, np.int64),
        np.full(to_node.shape, -1, np.int64),
    )
    single = len(device_of) == len(first) - 1
    total = 0
    for token in tokens:
        valid = routing.shape[1] if valid_k.shape[0] == 0 else valid_k[token]
        total += valid
        # The home has every vector already, and is its own relay within its node.
        device_seen[home] = token
        node_seen[node_of[home]] = token
        for k in range(valid):
            expert = routing[token, k]
            copy = first[expert]
            if not single:
                copy += token % (first[expert + 1] - copy)
            taken[copy] += 1
            device = device_of[copy]
            every[device] += 1
            if by_node:
                once[device] += device_seen[device] != token
                device_seen[device] = token
                node = node_of[device]
                to_node[node] += node_seen[node] != token
                node_seen[node] = token
    return every, once, to_node, total


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
    layers, tokens, _ = routing.shape
    experts, devices = copies_of.shape[1], node_of.shape[0]
    by_node = relay.shape[0] > 0
    all_valid = np.empty(0, np.uint8)
    for layer in range(layers):
        # The layer's copies in one row, so that an assignment takes one look-up.
        first = np.zeros(experts + 1, np.int64)
        first[1:] = np.cumsum(copies_of[layer])
        slot_of = np.empty(first[experts], np.int64)
        for expert in range(experts):
            for copy in range(copies_of[layer, expert]):
                slot_of[first[expert] + copy] = slots_of[layer, expert, copy]
        device_of = device_of_slot[slot_of]
        taken = np.zeros(first[experts], np.int64)
        for start in range(0, tokens, tokens_per_device):
            home = start // tokens_per_device
            every, once, to_node, total = _count_from(
                home,
                range(start, min(start + tokens_per_device, tokens)),
                routing[layer],
                valid_k[layer] if valid_k.shape[0] else all_valid,
                first,
                device_of,
                node_of,
                by_node,
                taken,
            )
            totals[2] += total
            for device in range(devices):
                if device == home:
                    continue
                node = node_of[device]
                totals[0] += every[device]
                totals[1] += every[device] * (node != node_of[home])
                if not by_node:
                    copies[layer, home, device] += every[device]
                elif relay[home, node] != device:
                    copies[layer, relay[home, node], device] += once[device]
            if by_node:
                for node in range(len(to_node)):
                    copies[layer, home, relay[home, node]] += to_node[node]
        for copy in range(first[experts]):
            slot_tokens[layer, slot_of[copy]] += taken[copy]


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
