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
  the right side is convex in u and is lowered by subgradient steps (B. T. Polyak, 1969) towards a
  level below the best bound so far; the level comes nearer where steps gain nothing.

  With u = 0 this is the bound by projected singular values. It is loose where some experts are
  hot: their eigenvectors sit on a few experts, which no partition can do and a u forbids.

:func:`kept_at_most` finds all eigenvalues in every step and is the reference for
:func:`kept_at_most_fast`, which follows the leading eigenvectors from step to step. Those are too
short to bound anything, but u need not come from anything exact: its bound is computed in the end.

Rounding is answered by adding the largest error of a symmetric eigenvalue solver.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

__all__ = [
    "DEVICE_SHARE",
    "ITERATIONS",
    "kept_at_most",
    "kept_at_most_fast",
    "kept_by_entries",
    "travel_at_least",
]

ITERATIONS = 40
"""Subgradient steps by default; the first dozen gain most."""

PATIENCE = 3
"""Steps without gain after which the level is brought nearer, to half its distance."""

GUARD = 4
"""Eigenvectors followed besides those that count, so that these converge."""

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
    steps = _Steps(len(flow), parts, total, total / parts if aim is None else aim)
    for step in range(iterations + 1):
        matrix = _shifted(flow, steps.shift)
        values, vectors = np.linalg.eigh(matrix)
        least = min(least, _by_eigenvalues(values, steps.shift, matrix, parts, total))
        if step == iterations or not steps.take(values[1 - parts :], vectors[:, 1 - parts :]):
            break
    return least


def kept_at_most_fast(
    flow: np.ndarray, parts: int, *, iterations: int = ITERATIONS, aim: float | None = None
) -> float:
    """As :func:`kept_at_most`, with eigenvectors followed by one step of LOBPCG each time.

    A. V. Knyazev, "Toward the optimal preconditioned eigensolver", SIAM J. Sci. Comput. 23 (2001),
    without a preconditioner, twice per subgradient step. They start as the singular vectors of the
    flow, which are exact for u = 0. What is returned is bounded by all eigenvalues for the best u.
    Few parts of many experts gain most: 4 parts of 256 take a fifth of the time.
    """
    experts = len(flow)
    followed = parts - 1 + GUARD
    if parts == 1 or experts % parts or 3 * followed > experts:
        return kept_at_most(flow, parts, iterations=iterations, aim=aim)
    total = float(flow.sum())
    if total == 0:
        return total
    steps = _Steps(experts, parts, total, total / parts if aim is None else aim)
    left, _, right = np.linalg.svd(_shifted(flow, steps.shift)[:experts, experts:])
    vectors = np.vstack((left[:, :followed], right[:followed].T)) / np.sqrt(2)
    direction = np.empty((2 * experts, 0))
    for step in range(iterations + 1):
        for _ in range(2):
            found, values = _sharper(flow, steps.shift, vectors, direction)
            direction = found - vectors @ (vectors.T @ found)
            vectors = found
        if not steps.take(values[: parts - 1], vectors[:, : parts - 1]) or step == iterations:
            break
    matrix = _shifted(flow, steps.best_shift)
    values = np.linalg.eigvalsh(matrix)
    by_eigenvalues = _by_eigenvalues(values, steps.best_shift, matrix, parts, total)
    return min(total, kept_by_entries(flow, parts), by_eigenvalues)


@dataclass
class _Steps:
    """Subgradient steps towards a u with a low bound.

    Attributes:
        experts: E.
        parts: p.
        total: Flow in all.
        aim: Flow that no bound goes below.
        shift: [2 E] u.
        best_shift: [2 E] u of the lowest bound so far.
        lowest: That bound, from the eigenvalues that it was given.
    """

    experts: int
    parts: int
    total: float
    aim: float
    shift: np.ndarray = field(init=False)
    best_shift: np.ndarray = field(init=False)
    lowest: float = np.inf
    _below: float = 0.0
    _without_gain: int = 0

    def __post_init__(self) -> None:
        self.shift = self.best_shift = np.zeros(2 * self.experts)

    def take(self, values: np.ndarray, vectors: np.ndarray) -> bool:
        """Take a step; whether there may be something to gain from a further one.

        Args:
            values: [p − 1] largest eigenvalues at ``shift``.
            vectors: [2 E, p − 1] their vectors.
        """
        size, spread = self.experts // self.parts, 1 - 1 / self.parts
        bound = self.total / self.parts + size * float(np.maximum(values, 0).sum())
        bound -= spread * float(self.shift.sum()) / 2
        if np.isinf(self.lowest):
            self._below = (bound - self.aim) / 2
        if bound < self.lowest - 1e-3 * self._below:
            self.lowest, self.best_shift = bound, self.shift
            self._without_gain = 0
        else:
            self._without_gain += 1
        if self._without_gain == PATIENCE:
            self._below /= 2
            self._without_gain = 0
        slope = size * (vectors[:, values > 0] ** 2).sum(axis=1) - spread / 2
        length = float(slope @ slope)
        if bound <= self.aim or length == 0:
            return False
        level = max(self.aim, self.lowest - self._below)
        self.shift = self.shift - (bound - level) / length * slope
        return True


def _by_eigenvalues(
    values: np.ndarray, shift: np.ndarray, matrix: np.ndarray, parts: int, total: float
) -> float:
    """The bound for u = ``shift`` from all eigenvalues, ascending, of its matrix."""
    top = np.maximum(values[1 - parts :], 0)
    rounding = 4 * len(matrix) * np.finfo(float).eps * float(np.abs(matrix).sum(axis=1).max())
    size = len(matrix) // 2 // parts
    kept = total / parts + size * float((top + rounding).sum())
    return kept - (1 - 1 / parts) * float(shift.sum()) / 2


def _shifted(flow: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """P (A + D) P for D = diag(``shift``)."""
    experts = len(flow)
    pair = np.diag(shift)
    pair[:experts, experts:] = flow
    pair[experts:, :experts] = flow.T
    return _centred(pair, experts)


def _sharper(
    flow: np.ndarray, shift: np.ndarray, vectors: np.ndarray, direction: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Nearer to the leading eigenvectors, and their eigenvalues, largest first.

    Rayleigh-Ritz on the vectors, their residuals, and where they came from.
    """
    moved = _times(flow, shift, vectors)
    residual = moved - vectors * (vectors * moved).sum(axis=0)
    basis, _ = np.linalg.qr(np.hstack((vectors, residual, direction)))
    values, turn = np.linalg.eigh(basis.T @ _times(flow, shift, basis))
    kept = slice(None, -vectors.shape[1] - 1, -1)
    return basis @ turn[:, kept], values[kept]


def _times(flow: np.ndarray, shift: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """P (A + D) times vectors that have no mean over either layer."""
    experts = len(flow)
    result = shift[:, None] * vectors
    result[:experts] += flow @ vectors[experts:]
    result[experts:] += flow.T @ vectors[:experts]
    result[:experts] -= result[:experts].mean(axis=0)
    result[experts:] -= result[experts:].mean(axis=0)
    return result


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
        iterations: See :func:`kept_at_most_fast`.
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
            kept.append(kept_at_most_fast(flow, parts, iterations=steps, aim=aim))
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
