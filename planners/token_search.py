"""Search within a layer where tokens come from their rank and return to it.

Layers are independent then. In prefill a token travels once to every node and once to every device
that holds some of its experts, so experts that are used together belong together: the cut of a
hypergraph whose edges are tokens, evaluated on sampled tokens. Pairs of copies are swapped by
simulated annealing (Kirkpatrick, Gelatt, Vecchi 1983) on the whole cost: the slowest device and the
busiest link.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moesim.compiled import compiled
from moesim.planners.compiled_random import below
from moesim.planners.shelves import Shelves, accepts, exchange, fill_shelves, partner
from moesim.planners.slowest_device import add_up, price_swap, take_swap

__all__ = ["anneal_layer", "link_seconds"]


@compiled
def link_seconds(
    node_hits: np.ndarray, device_hits: np.ndarray, node_of: np.ndarray, nic_s: float, port_s: float
) -> float:
    """Seconds of the busiest link, from the tokens that touch each node and device.

    Every device brings equally many tokens. A NIC of a node takes in the tokens of its peers in
    the other nodes that touch the node, and sends out its own once per other node they touch; a
    scale-up port takes in every token that touches its device, and the relays of a node send out
    one vector per device that a token touches.

    Args:
        node_hits: [N] tokens that use an expert of the node.
        device_hits: [G] tokens that use an expert of the device.
        node_of: [G].
        nic_s: Seconds of a NIC for one vector of every sampled token of a device.
        port_s: The same of a scale-up port.
    """
    nodes, devices = node_hits.shape[0], device_hits.shape[0]
    all_nodes, largest, least, widest = 0, 0, node_hits[0], 0
    in_node = np.zeros(nodes, np.int64)
    for device in range(devices):
        widest = max(widest, device_hits[device])
        in_node[node_of[device]] += device_hits[device]
    for node in range(nodes):
        all_nodes += node_hits[node]
        largest, least = max(largest, node_hits[node]), min(least, node_hits[node])
    nic = nic_s * max((nodes - 1) * largest, all_nodes - least)
    port = port_s * max(devices * widest, nodes * in_node.max())
    return max(nic, port)


class Touched(NamedTuple):
    """Sampled tokens and the places that their experts are on: sets of tokens, 64 to a word.

    Attributes:
        uses: [S, T/64] uint64 tokens that use a copy.
        node_of: [G] int64.
        device_one: [G, T/64] uint64 tokens that use a copy on the device.
        device_two: [G, T/64] uint64 tokens that use two or more.
        node_one: [N, T/64] uint64 the same for nodes.
        node_two: [N, T/64] uint64
        device_hits: [G] int64 tokens that use a copy on the device.
        node_hits: [N] int64 the same for nodes.
        new_device_hits: [G] after the swap counted last.
        new_node_hits: [N]
    """

    uses: np.ndarray
    node_of: np.ndarray
    device_one: np.ndarray
    device_two: np.ndarray
    node_one: np.ndarray
    node_two: np.ndarray
    device_hits: np.ndarray
    node_hits: np.ndarray
    new_device_hits: np.ndarray
    new_node_hits: np.ndarray


@compiled
def anneal_layer(  # noqa: PLR0913 - compiled code takes arrays, not objects
    device_of: np.ndarray,
    expert_of: np.ndarray,
    uses: np.ndarray,
    copy_s: np.ndarray,
    speed: np.ndarray,
    node_of: np.ndarray,
    nic_s: float,
    port_s: float,
    proposals: int,
    hot: float,
    cold: float,
    state: np.ndarray,
) -> float:
    """Improve a layer's placement by swaps of two copies; returns the change in seconds.

    Args:
        device_of: [S] int64 device of every copy, changed in place to the best found.
        expert_of: [S] int64 logical expert of every copy; no two of one share a device.
        uses: [S, T/64] uint64 sampled tokens that use a copy, 64 to a word; [S, 0] where links
            depend on the load alone.
        copy_s: [W, 2, S] float32 seconds that a copy adds, of its device and of the links.
        speed: [G] float64 relative speed of every device.
        node_of: [G] int64 node of every device.
        nic_s: See :func:`link_seconds`.
        port_s: See there.
        proposals: Swaps to try.
        hot: Temperature at the start, as a share of the layer's seconds.
        cold: At the end.
        state: Of the random numbers, changed in place.
    """
    copies, devices = device_of.shape[0], speed.shape[0]
    shelves = fill_shelves(device_of, expert_of, devices)
    busy = add_up(copy_s, speed, device_of)
    touched = _touched(uses, shelves, node_of)
    sampled = uses.shape[1] > 0
    links_s = link_seconds(touched.node_hits, touched.device_hits, node_of, nic_s, port_s)
    new_links_s = links_s
    level_s = busy.peak_s.mean() + links_s
    best = device_of.copy()
    is_best = True
    total = lowest = 0.0
    temperature = hot * level_s
    cooling = (cold / hot) ** (1.0 / max(proposals, 1))
    for _ in range(proposals):
        temperature *= cooling
        i = below(state, copies)
        x, y = device_of[i], below(state, devices)
        f = partner(shelves, i, y, state)
        if f < 0:
            continue
        change = price_swap(busy, i, f, x, y)
        if sampled:
            _count_swap(touched, i, f, x, y)
            new_links_s = link_seconds(
                touched.new_node_hits, touched.new_device_hits, node_of, nic_s, port_s
            )
            change += new_links_s - links_s
        if not accepts(change, temperature, state):
            continue
        if is_best and change > 0:
            best[:] = device_of
            is_best = False
        total += change
        take_swap(busy, i, f, x, y)
        exchange(shelves, i, f)
        if sampled:
            _touch_swap(touched, shelves, x, y)
            links_s = new_links_s
        if total < lowest - 1e-12 * level_s:
            lowest = total
            is_best = True
    if not is_best:
        device_of[:] = best
    return lowest


@compiled
def _touched(uses: np.ndarray, shelves: Shelves, node_of: np.ndarray) -> Touched:
    devices, nodes, words = node_of.shape[0], node_of.max() + 1, uses.shape[1]
    device_one = np.zeros((devices, words), np.uint64)
    node_one = np.zeros((nodes, words), np.uint64)
    touched = Touched(
        uses,
        node_of,
        device_one,
        np.zeros_like(device_one),
        node_one,
        np.zeros_like(node_one),
        np.zeros(devices, np.int64),
        np.zeros(nodes, np.int64),
        np.zeros(devices, np.int64),
        np.zeros(nodes, np.int64),
    )
    for device in range(devices):
        _see_device(touched, shelves, device)
        touched.device_hits[device] = _size(device_one[device])
    for node in range(nodes):
        _see_node(touched, shelves, node)
        touched.node_hits[node] = _size(node_one[node])
    return touched


@compiled
def _see_device(touched: Touched, shelves: Shelves, device: int) -> None:
    """Find the tokens that use the copies on a device."""
    one, two = touched.device_one[device], touched.device_two[device]
    one[:], two[:] = 0, 0
    for index in range(shelves.slot.shape[1]):
        _add(one, two, touched.uses[shelves.slot[device, index]])


@compiled
def _see_node(touched: Touched, shelves: Shelves, node: int) -> None:
    """Find the tokens that use the copies in a node."""
    one, two = touched.node_one[node], touched.node_two[node]
    one[:], two[:] = 0, 0
    for device in range(touched.node_of.shape[0]):
        if touched.node_of[device] == node:
            for index in range(shelves.slot.shape[1]):
                _add(one, two, touched.uses[shelves.slot[device, index]])


@compiled
def _add(one: np.ndarray, two: np.ndarray, tokens: np.ndarray) -> None:
    for word in range(tokens.shape[0]):
        two[word] |= one[word] & tokens[word]
        one[word] |= tokens[word]


@compiled
def _count_swap(touched: Touched, i: int, f: int, x: int, y: int) -> None:
    """Fill the new hits: copy i moves from device x to y, and copy f from y to x."""
    i_uses, f_uses = touched.uses[i], touched.uses[f]
    one, two, hits = touched.device_one, touched.device_two, touched.new_device_hits
    hits[:] = touched.device_hits
    hits[x] = _size_after(one[x], two[x], i_uses, f_uses)
    hits[y] = _size_after(one[y], two[y], f_uses, i_uses)
    home, away = touched.node_of[x], touched.node_of[y]
    one, two, hits = touched.node_one, touched.node_two, touched.new_node_hits
    hits[:] = touched.node_hits
    if home != away:
        hits[home] = _size_after(one[home], two[home], i_uses, f_uses)
        hits[away] = _size_after(one[away], two[away], f_uses, i_uses)


@compiled
def _touch_swap(touched: Touched, shelves: Shelves, x: int, y: int) -> None:
    """Do the swap that was counted last; the shelves have it already."""
    touched.device_hits[:] = touched.new_device_hits
    touched.node_hits[:] = touched.new_node_hits
    _see_device(touched, shelves, x)
    _see_device(touched, shelves, y)
    if touched.node_of[x] != touched.node_of[y]:
        _see_node(touched, shelves, touched.node_of[x])
        _see_node(touched, shelves, touched.node_of[y])


@compiled
def _size(tokens: np.ndarray) -> int:
    """Tokens in a set."""
    size = 0
    for word in tokens:
        size += _bits(word)
    return size


@compiled
def _size_after(one: np.ndarray, two: np.ndarray, leave: np.ndarray, come: np.ndarray) -> int:
    """Tokens that use a place after one of its copies left it and another came."""
    size = 0
    for word in range(one.shape[0]):
        stay = one[word] & ~(leave[word] & ~two[word])
        size += _bits(stay | come[word])
    return size


@compiled
def _bits(word: np.uint64) -> int:
    """Bits set in a word (H. S. Warren, "Hacker's Delight", §5-1); compilers know the pattern."""
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    pairs = np.uint64(0x3333333333333333)
    word = (word & pairs) + ((word >> np.uint64(2)) & pairs)
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))  # type: ignore[return-value]
