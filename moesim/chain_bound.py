"""A lower bound on the all-to-alls of a step whose tokens travel from expert to expert.

Between two layers a link is at least as busy as the flow that must leave devices (nodes) over all
that the devices' (nodes') links can carry. How much must leave is bounded in two ways:

* **Per batch, by the largest entries** of the flow between the two layers' experts: the tokens of
  an expert that stay go to at most as many experts of the next layer as its device has slots.
* **Over all batches together, by eigenvalues** (kept_flow.py), which is far tighter where affinity
  is diffuse. One placement serves all batches, so the mean flow keeps as much as the batches do on
  average; and as the seconds of an all-to-all are convex in what the busiest link carries, their
  mean is at least the seconds of the mean. (Convex except where nothing at all travels, which the
  first bound must rule out.)

The second takes tenths of a second per pair of layers. As many pairs are tightened, evenly spread
over the layers, as the time given affords by the size of the problem, not by the clock: the bound
does not depend on how fast the machine is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moesim.kept_flow import DEVICE_SHARE, ITERATIONS, kept_at_most_fast
from moesim.link_cost import Direction
from moesim.link_cuts import device_cuts, node_cuts
from moesim.placement import Placement
from moesim.step import StepEvaluator
from moesim.workload import Batches

__all__ = ["chain_lower_bound_s"]

PAIR_S = 0.25
"""Seconds, roughly, for a pair of layers with 256 experts on 4 nodes; measured on one core of a
server. Eigenvalues take time by the cube of the experts."""


class Place(NamedTuple):
    """Devices or nodes, as places that tokens leave.

    Attributes:
        parts: How many there are.
        equal: Whether they hold equally many experts.
        room: Experts of the largest.
        bytes_per_s: That can leave all of them together.
    """

    parts: int
    equal: bool
    room: int
    bytes_per_s: float


def chain_lower_bound_s(
    evaluator: StepEvaluator, slots: int, *, tighten_s: float, known: Placement | None = None
) -> float:
    """Σ seconds of the transitions over batches and pairs of layers that no placement beats.

    Args:
        evaluator: Batches, cluster and links.
        slots: S, physical slots per layer.
        tighten_s: Seconds for eigenvalues, roughly.
        known: A placement to come near to; the bound is valid with any.
    """
    batches, way = evaluator.batches, evaluator.link_cost.dispatch
    if batches.valid_k is not None or slots > batches.experts or batches.layers == 1:
        # The tokens of a copied expert split over devices, and short rows change the shares.
        return 0.0
    places = _places(evaluator, slots)
    pairs = batches.layers - 1
    affordable = int(min(tighten_s / PAIR_S / (batches.experts / 256) ** 3, pairs))
    chosen = {int(at) for at in np.linspace(0, pairs - 1, affordable)}
    convex = min(way.flow_overlap, way.latency_overlap) >= 1
    seconds = 0.0
    for layer in range(pairs):
        flows = [_vectors(batches, batch, layer) for batch in range(batches.count)]
        each = np.array([_by_entries_s(way, flow, places) for flow in flows])
        pair_s = float(way.seconds(each).sum())
        if convex and layer in chosen and each.min() > 0:
            mean = np.mean(flows, axis=0)
            busiest = np.array(_by_eigenvalues_s(way, mean, places, layer, known))
            pair_s = max(pair_s, float(way.seconds(busiest)) * batches.count)
        seconds += pair_s
    return seconds


def _places(evaluator: StepEvaluator, slots: int) -> list[Place]:
    """Devices, and nodes if there are several."""
    cluster, links = evaluator.cluster, evaluator.link_cost.dispatch.links
    per_device = slots // cluster.devices
    everywhere = float(device_cuts(cluster, links).sum())
    places = [Place(cluster.devices, True, per_device, everywhere)]
    members = np.bincount(cluster.domain_of_device)
    if len(members) > 1:
        everywhere = float(node_cuts(cluster, links).sum())
        room = per_device * int(members.max())
        places.append(
            Place(len(members), bool((members == room // per_device).all()), room, everywhere)
        )
    return places


def _by_entries_s(way: Direction, flow: np.ndarray, places: list[Place]) -> float:
    """Seconds that some link is busy, at least, by the largest entries."""
    busiest = 0.0
    for place in places:
        sides = (flow, flow.T)
        leaving = max(float(np.sort(side, axis=1)[:, : -place.room].sum()) for side in sides)
        busiest = max(busiest, leaving / place.bytes_per_s)
    return busiest * way.vector_bytes


def _by_eigenvalues_s(
    way: Direction, flow: np.ndarray, places: list[Place], layer: int, known: Placement | None
) -> float:
    """The same by eigenvalues, for parts of equal size."""
    busiest, total = 0.0, float(flow.sum())
    for place in reversed(places):  # nodes first: their links are slower, and may settle it
        if not place.equal or total / place.bytes_per_s <= busiest:
            continue
        aim = None
        if known is not None:
            here, there = (_part_of(known, at, place.parts) for at in (layer, layer + 1))
            aim = float(flow[here[:, None] == there].sum())
        fewer = len(places) > 1 and place is places[0]
        iterations = ITERATIONS // (DEVICE_SHARE if fewer else 1)
        kept = kept_at_most_fast(flow, place.parts, iterations=iterations, aim=aim)
        busiest = max(busiest, (total - kept) / place.bytes_per_s)
    return busiest * way.vector_bytes


def _part_of(placement: Placement, layer: int, parts: int) -> np.ndarray:
    """[E] part of every expert, of equal runs of consecutive devices."""
    row = placement.physical_to_logical[layer]
    found = np.empty(placement.experts, np.int64)
    found[row] = np.arange(len(row)) // (len(row) // parts)
    return found


def _vectors(batches: Batches, batch: int, layer: int) -> np.ndarray:
    """[E, E] vectors from experts of a layer to those of the next."""
    source, target = batches.routing[batch, layer], batches.routing[batch, layer + 1]
    pairs = source[:, :, None].astype(np.int64) * batches.experts + target[:, None, :]
    counts = np.bincount(pairs.ravel(), minlength=batches.experts**2)
    return counts.reshape(batches.experts, batches.experts) / batches.top_k
