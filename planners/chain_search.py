"""Search over all layers at once where tokens travel from expert to expert.

A step costs, per layer, what the slowest device computes, and per pair of neighbouring layers what
the links carry between experts on different devices and nodes. Both layers of a pair decide what
stays at home, so layers cannot be placed one by one:

1. ``propagate`` places layer after layer where most of its neighbours' flow is, nodes first and
   devices within them, each layer exactly (a transportation problem), back and forth. It sees no
   load.
2. ``anneal_chain`` swaps pairs of copies on the whole cost, by simulated annealing (Kirkpatrick,
   Gelatt, Vecchi 1983). What a swap changes is known from running sums, so that a proposal costs
   a fraction of a microsecond.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moesim.compiled import compiled
from moesim.planners.compiled_random import below
from moesim.planners.shelves import accepts, exchange, fill_shelves, partner
from moesim.planners.slowest_device import add_up, price_swap, take_swap
from moesim.planners.transport import transport

__all__ = ["anneal_chain", "propagate"]


def propagate(
    flow: np.ndarray, devices: int, nodes: int, *, sweeps: int, rng: np.random.Generator
) -> np.ndarray:
    """A placement that keeps flow on devices and in nodes, whatever the load.

    Nodes are found first and devices within them. That order can leave whole devices in the wrong
    node, which no single layer can mend: so devices are exchanged between nodes in all layers at
    once.

    Args:
        flow: [L − 1, S, S] vectors from copy i of a layer to copy j of the next.
        devices: G.
        nodes: N, divides G.
        sweeps: Passes over all layers, backward and forward in turn.
        rng: Of the start.

    Returns:
        [L, S] int64 device of every copy.
    """
    whole = np.zeros((len(flow) + 1, flow.shape[1]), np.int64)
    node_of = _split(flow, whole, 1, nodes, sweeps, rng)
    device_of = _split(flow, node_of, nodes, devices // nodes, sweeps, rng)
    if nodes > 1:
        between = np.zeros((devices, devices))
        for layer, vectors in enumerate(flow):
            pairs = (device_of[layer][:, None], device_of[layer + 1][None, :])
            np.add.at(between, pairs, vectors)
        device_of = _regrouped(between + between.T, nodes)[device_of]
    return device_of


def _regrouped(between: np.ndarray, nodes: int) -> np.ndarray:
    """[G] new index of every device, after exchanging devices while that keeps more in the nodes.

    Args:
        between: [G, G] vectors between devices, symmetric.
        nodes: N; device g is in node g // (G / N).
    """
    devices = len(between)
    between = between * ~np.eye(devices, dtype=bool)
    node = np.arange(devices) // (devices // nodes)
    while True:
        to_node = between @ np.eye(nodes)[node]  # [G, N]
        leave = to_node - to_node[np.arange(devices), node][:, None]
        # Exchanging g and h counts the flow between the two as gained twice, and it is not.
        gain = leave[:, node] + leave[:, node].T - 2 * between
        gain[node[:, None] == node] = 0
        g, h = np.unravel_index(gain.argmax(), gain.shape)
        if gain[g, h] <= 1e-9 * between.sum():
            return np.argsort(np.argsort(node, kind="stable"))
        node[g], node[h] = node[h], node[g]


def _split(
    flow: np.ndarray,
    part_of: np.ndarray,
    parts: int,
    pieces: int,
    sweeps: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Split every part of every layer into equal pieces that keep flow to their own piece.

    Args:
        flow: [L − 1, S, S].
        part_of: [L, S] part of every copy.
        parts: How many there are.
        pieces: To split each part into.
        sweeps: Passes over all layers.
        rng: Of the first layer's start.

    Returns:
        [L, S] int64, part · pieces + piece.
    """
    if pieces == 1:
        return part_of
    layers, copies = part_of.shape
    room = np.full(pieces, copies // parts // pieces, np.int64)
    piece_of = np.full((layers, copies), -1, np.int64)
    for part in range(parts):
        piece_of[0, part_of[0] == part] = rng.permutation(np.repeat(np.arange(pieces), room[0]))
    order = [np.arange(1, layers)]
    order += [np.arange(layers)[:: 1 if sweep % 2 else -1] for sweep in range(sweeps)]
    for layer in np.concatenate(order):
        kept = np.zeros((copies, parts * pieces))
        for other in (layer - 1, layer + 1):
            if not 0 <= other < layers or piece_of[other, 0] < 0:
                continue
            here = np.zeros((copies, parts * pieces))
            here[np.arange(copies), part_of[other] * pieces + piece_of[other]] = 1
            kept += (flow[layer - 1].T if other < layer else flow[layer]) @ here
        for part in range(parts):
            members = np.flatnonzero(part_of[layer] == part)
            cost = -kept[members, part * pieces : (part + 1) * pieces]
            piece_of[layer, members] = transport(np.ascontiguousarray(cost), room)
    return part_of * pieces + piece_of


class Kept(NamedTuple):
    """Vectors between a copy and its neighbour layers' copies, by where those are.

    Attributes:
        flow: [L − 1, S, S] float32 from copy i of a layer to copy j of the next.
        back: [L − 1, S, S] float32 the same, transposed.
        on_device: [L, S, G] float32 vectors to and from the copies on each device.
        in_node: [L, S, N] float32 the same for nodes.
        node_of: [G] int64.
        near_s: Seconds per vector between devices of a node.
        far_s: Seconds per vector between nodes.
    """

    flow: np.ndarray
    back: np.ndarray
    on_device: np.ndarray
    in_node: np.ndarray
    node_of: np.ndarray
    near_s: float
    far_s: float


@compiled
def anneal_chain(  # noqa: PLR0913 - compiled code takes arrays, not objects
    device_of: np.ndarray,
    expert_of: np.ndarray,
    flow: np.ndarray,
    copy_s: np.ndarray,
    speed: np.ndarray,
    node_of: np.ndarray,
    near_s: float,
    far_s: float,
    proposals: int,
    hot_s: float,
    cold_s: float,
    state: np.ndarray,
) -> float:
    """Improve a placement by swaps of two copies in a layer; returns the change in seconds.

    Args:
        device_of: [L, S] int64 device of every copy, changed in place to the best found.
        expert_of: [L, S] int64 logical expert of every copy; no two of one share a device.
        flow: [L − 1, S, S] float32 vectors per step between copies of neighbouring layers.
        copy_s: [L, W, 2, S] float32 seconds that a copy adds, of its device and of the links.
        speed: [G] float64 relative speed of every device.
        node_of: [G] int64 node of every device.
        near_s: Seconds per vector between devices of a node.
        far_s: Seconds per vector between nodes.
        proposals: Swaps to try.
        hot_s: Temperature at the start.
        cold_s: Temperature at the end.
        state: Of the random numbers, changed in place.
    """
    layers, copies = device_of.shape
    devices = speed.shape[0]
    shelves = [fill_shelves(device_of[at], expert_of[at], devices) for at in range(layers)]
    busy = [add_up(copy_s[at], speed, device_of[at]) for at in range(layers)]
    kept = _kept(flow, device_of, node_of, near_s, far_s)
    best = device_of.copy()
    is_best = True
    total = lowest = 0.0
    cooling = (cold_s / hot_s) ** (1.0 / max(proposals, 1))
    temperature = hot_s
    for _ in range(proposals):
        temperature *= cooling
        layer = below(state, layers)
        i = below(state, copies)
        x = device_of[layer, i]
        # Half of the proposals go where most of the copy's flow is.
        y = _home(kept, layer, i, x) if below(state, 2) else below(state, devices)
        f = partner(shelves[layer], i, y, state)
        if f < 0:
            continue
        change = price_swap(busy[layer], i, f, x, y) - _saved_s(kept, layer, i, f, x, y)
        if not accepts(change, temperature, state):
            continue
        if is_best and change > 0:
            best[:] = device_of
            is_best = False
        total += change
        take_swap(busy[layer], i, f, x, y)
        exchange(shelves[layer], i, f)
        _move(kept, layer, i, f, x, y)
        if total < lowest - 1e-9 * cold_s:
            lowest = total
            is_best = True
    if not is_best:
        device_of[:] = best
    return lowest


@compiled
def _kept(
    flow: np.ndarray, device_of: np.ndarray, node_of: np.ndarray, near_s: float, far_s: float
) -> Kept:
    layers, copies = device_of.shape
    back = np.empty((layers - 1, copies, copies), np.float32)
    on_device = np.zeros((layers, copies, node_of.shape[0]), np.float32)
    in_node = np.zeros((layers, copies, node_of.max() + 1), np.float32)
    for layer in range(layers - 1):
        for i in range(copies):
            for j in range(copies):
                vectors = flow[layer, i, j]
                here, there = device_of[layer, i], device_of[layer + 1, j]
                back[layer, j, i] = vectors
                on_device[layer, i, there] += vectors
                on_device[layer + 1, j, here] += vectors
                in_node[layer, i, node_of[there]] += vectors
                in_node[layer + 1, j, node_of[here]] += vectors
    return Kept(flow, back, on_device, in_node, node_of, near_s, far_s)


@compiled
def _home(kept: Kept, layer: int, i: int, x: int) -> int:
    """The device on which copy i, now on x, would save most."""
    best, most = x, -1.0
    for device in range(kept.node_of.shape[0]):
        saved = kept.near_s * kept.on_device[layer, i, device]
        saved += (kept.far_s - kept.near_s) * kept.in_node[layer, i, kept.node_of[device]]
        if saved > most:
            best, most = device, saved
    return best


@compiled
def _saved_s(kept: Kept, layer: int, i: int, f: int, x: int, y: int) -> float:
    """Seconds of travel that swapping i on x and f on y saves."""
    near, far = kept.on_device[layer], kept.in_node[layer]
    home, away = kept.node_of[x], kept.node_of[y]
    on_device = near[i, y] - near[i, x] + near[f, x] - near[f, y]
    in_node = far[i, away] - far[i, home] + far[f, home] - far[f, away]
    return kept.near_s * float(on_device) + (kept.far_s - kept.near_s) * float(in_node)


@compiled
def _move(kept: Kept, layer: int, i: int, f: int, x: int, y: int) -> None:
    """Tell the neighbour layers that i is on y now, and f on x."""
    home, away = kept.node_of[x], kept.node_of[y]
    for neighbour in (layer - 1, layer + 1):
        if neighbour < 0 or neighbour >= kept.on_device.shape[0]:
            continue
        vectors = kept.back[neighbour] if neighbour < layer else kept.flow[layer]
        near, far = kept.on_device[neighbour], kept.in_node[neighbour]
        for j in range(vectors.shape[0]):
            moved = vectors[i, j] - vectors[f, j]
            near[j, x] -= moved
            near[j, y] += moved
            far[j, home] -= moved
            far[j, away] += moved
