"""EPLB: DeepSeek's expert-parallel load balancer, with the published results.

Source of the algorithm: https://github.com/deepseek-ai/EPLB, commit d52c72d (MIT licence):

1. pack the routing groups onto the nodes, evenly loaded, equally many per node;
2. inside every node give the spare slots to the experts whose copies are loaded most;
3. inside every node pack the copies onto the devices, evenly loaded, equally many per device.

*Packing* takes the items from heavy to light; each goes to the lightest pack with room left. The
*hierarchical* policy is that; the *global* policy is the same with one group and one node. EPLB
knows neither device speeds nor communication, and it may put two copies of an expert on a device.

Every slot agrees with what the published code gives (``python -m tests.benchmarks.eplb``). That
code computes in torch float32, so the arithmetic here is float32 in the same order, down to the
order in which torch adds up a row and in which its unstable sort leaves ties (introsort.py).
The order of ties is that of torch 2.13 on Linux; a torch whose ``sort`` breaks ties differently
gives other slots to experts of *equal* load, in both codes of equal quality.

Axes: X rows = layers × nodes, the rest as in problem.py.
"""

from __future__ import annotations

import numpy as np

from moesim.errors import InfeasibleError
from moesim.planners.introsort import STABLE_UP_TO, descending_order
from moesim.planners.problem import PlacementProblem
from moesim.planners.replicate import replicate

__all__ = ["eplb", "eplb_global", "eplb_hierarchical", "keeps_groups", "rebalance"]

_VECTOR = 8
"""float32 lanes of the AVX2 kernel that torch adds up with (on AVX-512 machines too)."""
_CHUNK = 16
"""Terms that torch adds up before it moves the partial sum one level up."""


def eplb(problem: PlacementProblem) -> np.ndarray:
    """The published entry point: hierarchical if the nodes divide the routing groups, else global.

    Returns:
        [L, S] int32 physical_to_logical.
    """
    if problem.routing_groups % problem.nodes == 0:
        return eplb_hierarchical(problem)
    return eplb_global(problem)


def keeps_groups(problem: PlacementProblem) -> bool:
    """Whether whole routing groups can be spread evenly over the nodes."""
    groups = problem.routing_groups
    return groups % problem.nodes == 0 and problem.experts % groups == 0


def eplb_hierarchical(problem: PlacementProblem) -> np.ndarray:
    """EPLB that keeps every routing group on one node.

    Returns:
        [L, S] int32 physical_to_logical.

    Raises:
        InfeasibleError: If the groups do not divide by the nodes, or the experts by the groups.
    """
    groups, nodes = problem.routing_groups, problem.nodes
    if not keeps_groups(problem):
        raise InfeasibleError(
            f"hierarchical EPLB keeps routing groups whole: {problem.experts} experts in {groups} "
            f"groups cannot be split evenly over {nodes} nodes\n"
            "fix: use --planner eplb-global"
        )
    return rebalance(problem.loads, problem.slots, groups, nodes, problem.devices)


def eplb_global(problem: PlacementProblem) -> np.ndarray:
    """EPLB that ignores groups and nodes.

    Returns:
        [L, S] int32 physical_to_logical.
    """
    return rebalance(problem.loads, problem.slots, 1, 1, problem.devices)


def rebalance(loads: np.ndarray, slots: int, groups: int, nodes: int, devices: int) -> np.ndarray:
    """The three steps.

    Args:
        loads: [L, E] any real dtype; taken as float32.
        slots: S, a multiple of ``devices``.
        groups: Divides E, a multiple of ``nodes``.
        nodes: Divides ``devices``.
        devices: G.

    Returns:
        [L, S] int32 physical_to_logical.
    """
    loads = np.asarray(loads).astype(np.float32)
    layers, experts = loads.shape
    group_size = experts // groups
    per_node, groups_per_node = experts // nodes, groups // nodes

    group_node, group_place = _pack(_group_sums(loads, groups), nodes, None)
    new_group = group_node * groups_per_node + group_place
    new_id = (new_group[..., None] * group_size + np.arange(group_size)).reshape(layers, experts)
    old_id = _inverse(new_id)

    node_loads = np.take_along_axis(loads, old_id, 1).reshape(layers * nodes, per_node)
    slot_expert, count = replicate(node_loads, slots // nodes)
    slot_load = np.take_along_axis(node_loads / count.astype(np.float32), slot_expert, 1)

    device, place = _pack(slot_load, devices // nodes, slot_expert)
    order = _inverse(device * (slots // devices) + place)
    packed = np.take_along_axis(slot_expert, order, 1).reshape(layers, nodes, -1)
    packed += np.arange(nodes)[:, None] * per_node
    return np.take_along_axis(old_id, packed.reshape(layers, slots), 1).astype(np.int32)


def _pack(
    weights: np.ndarray, packs: int, labels: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Equally many items per pack, heavy items first, each into the lightest pack with room.

    Args:
        weights: [X, n] float32.
        packs: Divides n.
        labels: [X, n] items with equal labels are interchangeable; None if none are.

    Returns:
        pack: [X, n] int64 of every item.
        place: [X, n] int64 of every item in its pack.
    """
    rows, items = weights.shape
    room = items // packs
    if room == 1:
        return np.tile(np.arange(items), (rows, 1)), np.zeros((rows, items), np.int64)
    order = _descending(weights, labels)
    pack = np.empty((rows, items), np.int64)
    place = np.empty((rows, items), np.int64)
    pack_load = np.zeros((rows, packs), np.float32)  # infinite once a pack is full
    pack_items = np.zeros((rows, packs), np.int64)
    every = np.arange(rows)
    for step in range(items):
        item = order[:, step]
        lightest = pack_load.argmin(1)
        filled = pack_items[every, lightest]
        pack[every, item] = lightest
        place[every, item] = filled
        pack_items[every, lightest] = filled + 1
        load = pack_load[every, lightest] + weights[every, item]
        pack_load[every, lightest] = np.where(filled + 1 == room, np.float32(np.inf), load)
    return pack, place


def _descending(weights: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """[X, n] int64 indices from heavy to light, ties as torch's sort leaves them."""
    order = np.argsort(-weights, axis=1, kind="stable")
    if weights.shape[1] <= STABLE_UP_TO:
        return order
    ranked = np.take_along_axis(weights, order, 1)
    tied = ranked[:, 1:] == ranked[:, :-1]
    if labels is not None:
        # Swapping two copies of one expert changes nothing.
        names = np.take_along_axis(labels, order, 1)
        tied &= names[:, 1:] != names[:, :-1]
    for row in np.flatnonzero(tied.any(1)):
        order[row] = descending_order(weights[row])
    return order


def _inverse(permutation: np.ndarray) -> np.ndarray:
    result = np.empty_like(permutation)
    indices = np.broadcast_to(np.arange(permutation.shape[1]), permutation.shape)
    np.put_along_axis(result, permutation, indices, 1)
    return result


def _group_sums(loads: np.ndarray, groups: int) -> np.ndarray:
    """[L, groups] float32 load of every group, added up in the order that torch uses.

    torch sums a contiguous row in float32 over 8 lanes (if the row has as many elements), each
    over 4 interleaved partial sums, in chunks of 16: ``SumKernel.cpp`` (``cascade_sum``).
    Where loads are token counts below 2²⁴ every order gives the same sum.
    """
    terms = loads.reshape(len(loads), groups, -1)
    size = terms.shape[-1]
    if size < _VECTOR:
        return _interleaved_sum(terms[..., None])[..., 0]
    whole = size // _VECTOR * _VECTOR
    lanes = _interleaved_sum(terms[..., :whole].reshape(*terms.shape[:2], -1, _VECTOR))
    total = np.zeros(terms.shape[:2], np.float32)
    for rest in range(whole, size):
        total += terms[..., rest]
    for lane in range(_VECTOR):
        total += lanes[..., lane]
    return total


def _interleaved_sum(terms: np.ndarray) -> np.ndarray:
    """[..., n, lanes] to [..., lanes]: sum over n in four interleaved partial sums."""
    quads = terms.shape[-2] // 4
    partial = [_chunked_sum(terms[..., k : quads * 4 : 4, :]) for k in range(4)]
    for rest in range(quads * 4, terms.shape[-2]):
        partial[0] = partial[0] + terms[..., rest, :]
    total = partial[0]
    for part in partial[1:]:
        total = total + part
    return total


def _chunked_sum(terms: np.ndarray) -> np.ndarray:
    """[..., n, lanes] to [..., lanes]: chunks of 16 (torch has further levels from n = 256 on)."""
    size = terms.shape[-2]
    whole = size // _CHUNK * _CHUNK
    upper = np.zeros((*terms.shape[:-2], terms.shape[-1]), np.float32)
    for start in range(0, whole, _CHUNK):
        chunk = np.zeros_like(upper)
        for index in range(start, start + _CHUNK):
            chunk = chunk + terms[..., index, :]
        upper = upper + chunk
    lower = np.zeros_like(upper)
    for index in range(whole, size):
        lower = lower + terms[..., index, :]
    return lower + upper
