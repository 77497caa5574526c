"""Boosted regression trees in numpy: what physics leaves over, learned from few thousand rows.

Trees are complete and shallow, grown level by level on quantile bins (Friedman 2001; histograms as
in Ke et al. 2017), with squared loss. Outside the range of its training rows a correction is 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Trees", "boost"]

DEPTH = 4
BINS = 32
RATE = 0.1
LEAF_ROWS = 15.0
"""Weight of the pull of a leaf towards 0, in rows."""


@dataclass(frozen=True)
class Trees:
    """Fitted trees.

    Attributes:
        feature: ``[trees, 2^depth - 1]`` which feature each inner node asks for.
        threshold: Same shape; a row goes right above it.
        value: ``[trees, 2^depth]`` what each leaf adds.
        low: ``[features]`` least value of the training rows.
        high: Largest.
    """

    feature: np.ndarray
    threshold: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Σ over trees, ``[rows]``; 0 for rows outside the training range.

        Args:
            features: ``[features, rows]``.
        """
        rows = np.arange(features.shape[1])
        total = np.zeros(len(rows))
        inner = self.feature.shape[1]
        for feature, threshold, value in zip(self.feature, self.threshold, self.value, strict=True):
            node = np.zeros(len(rows), np.int64)
            while node.size and node[0] < inner:
                node = 2 * node + 1 + (features[feature[node], rows] > threshold[node])
            total += value[node - inner]
        inside = (features >= self.low[:, None]) & (features <= self.high[:, None])
        return np.where(inside.all(axis=0), total, 0.0)


def boost(features: np.ndarray, target: np.ndarray, trees: int) -> Trees:
    """Fit trees to a target.

    Args:
        features: ``[features, rows]``.
        target: ``[rows]``.
        trees: How many.
    """
    probes = np.linspace(0, 1, BINS + 1)[1:-1]
    edges = [np.unique(np.quantile(feature, probes)) for feature in features]
    pairs = zip(edges, features, strict=True)
    codes = np.stack([np.searchsorted(edge, feature) for edge, feature in pairs])
    left = np.asarray(target, float).copy()
    grown = []
    for _ in range(trees):
        feature, cut, value, leaf = _grow(codes, left)
        left -= value[leaf]
        # Nodes that found no cut send every row left.
        bounds = [
            edges[f][c] if c < len(edges[f]) else np.inf for f, c in zip(feature, cut, strict=True)
        ]
        grown.append((feature, np.array(bounds), value))
    feature, threshold, value = (np.stack(part) for part in zip(*grown, strict=True))
    return Trees(feature, threshold, value, features.min(axis=1), features.max(axis=1))


def _grow(
    codes: np.ndarray, target: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One tree: features and cuts of its inner nodes, values of its leaves, leaf of each row."""
    rows = np.arange(codes.shape[1])
    node = np.zeros(len(rows), np.int64)
    features, cuts = [], []
    for level in range(DEPTH):
        best = [_cuts(node * BINS + code, target, 2**level) for code in codes]
        gains = np.stack([gain for gain, _ in best])
        feature = gains.argmax(axis=0)
        nodes = np.arange(2**level)
        cut = np.stack([place for _, place in best])[feature, nodes]
        cut = np.where(gains[feature, nodes] > 0, cut, BINS)
        features.append(feature)
        cuts.append(cut)
        node = 2 * node + (codes[feature[node], rows] > cut[node])
    sums = np.bincount(node, target, 2**DEPTH)
    value = RATE * sums / (np.bincount(node, minlength=2**DEPTH) + LEAF_ROWS)
    return np.concatenate(features), np.concatenate(cuts), value, node


def _cuts(cells: np.ndarray, target: np.ndarray, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Best gain of each node along one feature, and after which bin to cut, ``[nodes]`` each."""
    sums = np.bincount(cells, target, nodes * BINS).reshape(nodes, BINS).cumsum(axis=1)
    counts = np.bincount(cells, minlength=nodes * BINS).reshape(nodes, BINS).cumsum(axis=1)
    total, count = sums[:, -1:], counts[:, -1:]
    gain = sums**2 / (counts + LEAF_ROWS) + (total - sums) ** 2 / (count - counts + LEAF_ROWS)
    gain = gain[:, :-1] - total**2 / (count + LEAF_ROWS)
    place = gain.argmax(axis=1)
    return gain[np.arange(nodes), place], place
