"""Planners that group experts by affinity and look at loads only for the spare slots.

* ``exflow``: experts of neighbouring layers whose tokens follow one another. J. Yao et al.,
  "Exploiting Inter-Layer Expert Affinity for Accelerating Mixture-of-Experts Model Inference",
  arXiv:2401.08383: an integer program maximises the tokens that stay, first in their node, then on
  their device, with equally many experts everywhere. Solved layer by layer, each exactly while its
  neighbours stand still, back and forth (chain_search.propagate); the published program is given
  to a general solver, all layers at once, and does not scale to 256 experts.
* ``grace``: experts of one layer that tokens use together. Y. Han et al., "GRACE-MoE",
  arXiv:2509.25041: spectral clustering into nodes, then into devices within each. Its groups may
  differ a little in size, which engines cannot load; here they are equal (size deviation 0). Its
  copies and its routing to the nearest one are not part of a placement: spare slots go by load.
"""

from __future__ import annotations

import numpy as np

from moesim.planners.affinity import copies_by_load, pair_counts, to_table
from moesim.planners.chain_search import propagate
from moesim.planners.problem import PlacementProblem
from moesim.planners.transport import transport

__all__ = ["equal_clusters", "exflow", "grace"]

SWEEPS = 4
"""Passes over all layers; as in the joint planner's start."""

ROUNDS = 12
"""Of assigning copies to centres and moving the centres; most layers settle sooner."""


def exflow(problem: PlacementProblem) -> np.ndarray:
    """Keep tokens where their last expert was. Without transitions, layers are independent.

    Returns:
        [L, S] int32 physical_to_logical.
    """
    expert, count = copies_by_load(problem)
    flow = np.empty((problem.layers - 1, problem.slots, problem.slots))
    for layer in range(problem.layers - 1):
        if problem.transitions is None:
            pairs = np.outer(problem.loads[layer], problem.loads[layer + 1])
        else:
            pairs = problem.transitions[layer]
        split = count[layer][:, None] * count[layer + 1]
        flow[layer] = pairs[expert[layer][:, None], expert[layer + 1]] / split
        flow[layer] /= max(float(flow[layer].sum()), 1e-300)
    rng = np.random.default_rng(problem.seed)
    device_of = propagate(flow, problem.devices, problem.nodes, sweeps=SWEEPS, rng=rng)
    return to_table(expert, device_of)


def grace(problem: PlacementProblem) -> np.ndarray:
    """Group experts that are used together: nodes first, devices within them.

    Returns:
        [L, S] int32 physical_to_logical.
    """
    expert, count = copies_by_load(problem)
    device_of = np.empty_like(expert)
    per_node = problem.devices // problem.nodes
    for layer in range(problem.layers):
        pairs = pair_counts(problem, layer)[expert[layer][:, None], expert[layer]]
        pairs = pairs / (count[layer][:, None] * count[layer])
        node = equal_clusters(pairs, problem.nodes)
        for number in range(problem.nodes):
            members = np.flatnonzero(node == number)
            inside = equal_clusters(pairs[np.ix_(members, members)], per_node)
            device_of[layer, members] = number * per_node + inside
    return to_table(expert, device_of)


def equal_clusters(affinity: np.ndarray, clusters: int) -> np.ndarray:
    """Spectral clustering into equal parts.

    The rows of the leading eigenvectors of D^(-1/2) W D^(-1/2), scaled to length 1 (A. Ng,
    M. Jordan, Y. Weiss, NIPS 2001), to centres with room for equally many (a transportation
    problem instead of k-means' nearest centre). The first centres are far from one another.

    Args:
        affinity: [n, n] ≥ 0, symmetric.
        clusters: Divides n.

    Returns:
        [n] int64 cluster of every item.
    """
    items = len(affinity)
    if clusters in (1, items):
        return np.arange(items) if clusters == items else np.zeros(items, np.int64)
    scale = 1 / np.sqrt(np.maximum(affinity.sum(axis=1), 1e-300))
    weights = affinity * scale[:, None] * scale
    rows = np.linalg.eigh((weights + weights.T) / 2)[1][:, -clusters:]
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
    centres = _far_apart(rows, clusters)
    room = np.full(clusters, items // clusters, np.int64)
    found = np.full(items, -1, np.int64)
    for _ in range(ROUNDS):
        before = found
        found = transport(np.ascontiguousarray(-rows @ centres.T), room)
        if (found == before).all():
            break
        centres = np.stack([rows[found == cluster].mean(axis=0) for cluster in range(clusters)])
    return found


def _far_apart(rows: np.ndarray, clusters: int) -> np.ndarray:
    """[clusters, d] rows, each the farthest from those before it; the first is the first row."""
    chosen = [0]
    nearest = ((rows - rows[0]) ** 2).sum(axis=1)
    while len(chosen) < clusters:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, ((rows - rows[chosen[-1]]) ** 2).sum(axis=1))
    return rows[chosen]
