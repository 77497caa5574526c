"""ExpertFlow's token scheduler: requests that want the same experts go into the same batch.

Two batches are put together and divided anew by k-means on the Hamming similarity of their
activations, ``1 − d / (L · E)``, with both parts of equal size, so that fewer experts are active in
each (arXiv 2410.17954v2, section 4.2).
"""

from __future__ import annotations

import numpy as np

__all__ = ["active_experts", "divide", "scheduling_gain"]

ROUNDS = 10
"""Of k-means; it settles within a few."""


def divide(active: np.ndarray) -> np.ndarray:
    """Divide requests into two batches of equal size.

    Args:
        active: [R, L·E] bool, the experts that each request uses (or is predicted to use).

    Returns:
        [R] bool, the second batch; the first has one more if R is odd.
    """
    bits = active.astype(np.float32)
    count = len(bits)
    # The two requests that are least alike begin.
    distance = bits.sum(axis=1)[:, None] + bits.sum(axis=1)[None, :] - 2 * bits @ bits.T
    first, second = np.unravel_index(int(distance.argmax()), distance.shape)
    centres = np.stack([bits[first], bits[second]])
    best, best_active = np.arange(count) >= -(-count // 2), np.inf
    for _ in range(ROUNDS):
        # Hamming distance to a mean of bits: its expectation over the members.
        far = bits.sum(axis=1)[:, None] + centres.sum(axis=1)[None, :] - 2 * bits @ centres.T
        order = np.argsort(far[:, 0] - far[:, 1], kind="stable")
        chosen = np.zeros(count, bool)
        chosen[order[-(-count // 2) :]] = True
        total = active_experts(active, chosen)
        if total >= best_active:
            break
        best, best_active = chosen, total
        centres = np.stack([bits[~chosen].mean(axis=0), bits[chosen].mean(axis=0)])
    return best


def active_experts(active: np.ndarray, second: np.ndarray) -> int:
    """Experts of both batches together, each counted once per batch."""
    return int(active[~second].any(axis=0).sum() + active[second].any(axis=0).sum())


def scheduling_gain(active: np.ndarray, batch: int) -> float:
    """How many fewer experts two neighbouring batches use, as the ratio of before to after.

    Args:
        active: [R, L·E] bool, by request in their order.
        batch: Requests of a batch.
    """
    before = after = 0
    for begin in range(0, len(active) - 2 * batch + 1, 2 * batch):
        both = active[begin : begin + 2 * batch]
        as_they_come = np.arange(2 * batch) >= batch
        before += active_experts(both, as_they_come)
        after += min(active_experts(both, as_they_come), active_experts(both, divide(both)))
    return before / after if after else 1.0
