"""How much flow between two layers can stay where it is? An upper bound for every placement.

Layer l's experts and those of layer l + 1 are each split into p equal parts of s = E / p experts,
and ``flow[i, j]`` stays if expert i and expert j are in parts of the same number. With X and Y the
[E, p] membership matrices the kept flow is tr(Xᵀ F Y). Two arguments bound it:

* **Largest entries.** An expert's flow that stays goes to at most s experts of the other layer.
* **Eigenvalues.** Z = [X; Y] has rows of norm 1, and after its column means are taken away (P) its
  columns span p − 1 dimensions with weight 2s. So for every diagonal matrix D = diag(u)

      tr(Xᵀ F Y) ≤ ΣF / p + s · Σ_{k<p} max(0, λ_k(P (A + D) P)) − (1 − 1/p) Σu / 2,

  where A = [0 F; Fᵀ 0] and λ_k are the largest eigenvalues: W. E. Donath and A. J. Hoffman, "Lower
  bounds for the partitioning of graphs", IBM J. Res. Dev. 17 (1973), for two layers and with the
  projection of F. Rendl and H. Wolkowicz, Math. Programming 53 (1992). Every u gives a valid bound;
  the right side is convex in u and is lowered by subgradient steps (B. T. Polyak, 1969).

  With u = 0 this is the bound by projected singular values. It is loose where some experts are
  hot: their eigenvectors sit on a few experts, which no partition can do and a u forbids.

Rounding is answered by adding the largest error of a symmetric eigenvalue solver.
"""

from __future__ import annotations

import numpy as np

__all__ = ["kept_at_most", "kept_by_entries", "travel_at_least"]

ITERATIONS = 40
"""Subgradient steps by default; the first dozen gain most."""

DEVICE_SHARE = 4
"""Where there are several nodes, bounds on devices get iterations / 4: their links are fast."""


def kept_at_most(
    flow: np.ndarray, parts: int, *, iterations: int = ITERATIONS, aim: float | None = None
) -> float:
    """Flow between two layers that stays in its part, at most.

    Args:
        flow: [E, E] float64 ≥ 0 from expert i of a layer to expert j of the next.
        parts: p, divides E; the parts are of equal size.
        iterations: Subgradient steps; 0 leaves u at 0.
        aim: Flow that a known placement keeps, which no bound can go below: it sets the length
            of the steps (not the validity). None for what a random placement keeps.

    Returns:
        In units of ``flow``.

    Raises:
        ValueError: If the experts do not divide by the parts.
    """
    experts = len(flow)
    if flow.shape != (experts, experts) or experts % parts:
        raise ValueError(f"flow {flow.shape} does not split into {parts} equal parts")
    total = float(flow.sum())
    if parts == 1 or total == 0:
        return total
    least = min(total, kept_by_entries(flow, parts))
    size = experts // parts
    target = total / parts if aim is None else aim
    pair = np.zeros((2 * experts, 2 * experts))
    pair[:experts, experts:] = flow
    pair[experts:, :experts] = flow.T
    shift = np.zeros(2 * experts)
    spread = 1 - 1 / parts
    for step in range(iterations + 1):
        matrix = _centred(pair + np.diag(shift), experts)
        values, vectors = np.linalg.eigh(matrix)
        top = np.maximum(values[1 - parts :], 0)
        rounding = 4 * len(matrix) * np.finfo(float).eps * float(np.abs(matrix).sum(1).max())
        bound = total / parts + size * (top + rounding).sum() - spread * shift.sum() / 2
        least = min(least, float(bound))
        if step == iterations or bound <= target:
            break
        used = (vectors[:, 1 - parts :] ** 2)[:, values[1 - parts :] > 0].sum(axis=1)
        slope = size * used - spread / 2
        length = float(slope @ slope)
        if length == 0:
            break
        shift -= (bound - target) / length * slope
    return least


def kept_by_entries(flow: np.ndarray, parts: int) -> float:
    """Flow that stays, at most, if every expert keeps its s largest entries."""
    size = len(flow) // parts
    return min(float(np.sort(side, axis=1)[:, -size:].sum()) for side in (flow, flow.T))


def travel_at_least(
    transitions: np.ndarray,
    devices: int,
    nodes: int,
    near: float,
    far: float,
    *,
    iterations: int = ITERATIONS,
    device_of: np.ndarray | None = None,
) -> np.ndarray:
    """Cost of travel between neighbouring layers, at least, for every placement without copies.

    Args:
        transitions: [L − 1, E, E] flow.
        devices: G, divides E.
        nodes: N, divides G; consecutive devices share a node.
        near: Cost of a unit of flow between devices of a node.
        far: Cost between nodes, ≥ ``near``.
        iterations: See :func:`kept_at_most`.
        device_of: [L, E] device of every expert in a known placement; tightens the bound faster.

    Returns:
        [L − 1] in units of flow times cost.
    """
    found = np.zeros(len(transitions))
    for layer, flow in enumerate(transitions):
        kept = []
        fewer = iterations // (DEVICE_SHARE if nodes > 1 else 1)
        for parts, steps in ((nodes, iterations), (devices, fewer)):
            aim = None
            if device_of is not None:
                part = device_of[layer : layer + 2] * parts // devices
                aim = float(flow[part[0][:, None] == part[1]].sum())
            kept.append(kept_at_most(flow, parts, iterations=steps, aim=aim))
        in_node, on_device = kept[0], min(kept)
        found[layer] = far * flow.sum() - (far - near) * in_node - near * on_device
    return found


def _centred(matrix: np.ndarray, experts: int) -> np.ndarray:
    """P M P, where P takes the mean of each layer's half away."""
    halves = matrix.reshape(2, experts, -1)
    rows = (halves - halves.mean(axis=1, keepdims=True)).reshape(matrix.shape)
    columns = rows.reshape(-1, 2, experts)
    result: np.ndarray = (columns - columns.mean(axis=2, keepdims=True)).reshape(matrix.shape)
    return (result + result.T) / 2
