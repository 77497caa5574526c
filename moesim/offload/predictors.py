"""Guesses of the next layers' experts: learned from a trace, or set by their published quality.

A prediction is an array ``[S, L, P]`` of expert ids per event, most wanted first, filled up with
−1. What counts is its recall (share of the active experts that were predicted), its over-fetch
(predicted experts beyond the number of active ones, per active one), and how many of its copies
land in time, which the replay counts. The three are not one "accuracy": Fate's 97 % are with extra
experts fetched, and ExpertFlow's 95 % are a recall on the union of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.compiled import compiled
from moesim.schema import Evidence

__all__ = [
    "PRESETS",
    "Preset",
    "Quality",
    "learn_transitions",
    "measure",
    "predict_by_paths",
    "predict_by_transitions",
    "predict_with_recall",
]


@dataclass(frozen=True)
class Preset:
    """A published predictor, by what it achieves.

    Attributes:
        recall: Share of the active experts that it names.
        over_fetch: Experts named beyond the number of active ones, per active one.
        lookahead: Layers that it sees ahead.
        source: Where the figures stand.
    """

    recall: float
    over_fetch: float
    lookahead: int
    source: str
    evidence: Evidence = Evidence.ASSUMED


PRESETS = {
    "fate-plain": Preset(
        0.788, 0.0, 1, "Fate (arXiv 2502.12224): top-k of the next layer's gate on this layer's "
        "gate input; its least accurate decode layer has 76.9 %",
    ),
    "fate": Preset(
        0.9715, 1.0, 1, "Fate (arXiv 2502.12224): with extra experts above the 75th percentile of "
        "the gate's confidence; how many those are is not stated, one per active expert is assumed",
    ),
    "gate-reuse": Preset(
        0.669, 0.0, 1, "ProMoE (arXiv 2410.22134): reuse of the gate on Qwen2-57B",
    ),
    "expertflow": Preset(
        0.95, 0.0, 1_000, "ExpertFlow (arXiv 2410.17954v2): routing path predictor, one pass "
        "before the model's; recall on the union of a batch, Qwen1.5-MoE",
    ),
    "hobbit": Preset(
        0.96, 0.0, 1, "HOBBIT: top-1 expert of Mixtral's next layer",
    ),
    "speculating-experts": Preset(
        0.90, 0.0, 1, "Speculating Experts: Qwen3-30B-A3B, after the first two layers",
    ),
}  # fmt: skip
"""By name; figures as quoted in secondary notes on these papers."""


@dataclass(frozen=True)
class Quality:
    """How good a prediction was.

    Attributes:
        recall: [L] predicted and active over active; NaN where a layer has no prediction.
        over_fetch: [L] predicted over active, less 1.
    """

    recall: np.ndarray
    over_fetch: np.ndarray

    @property
    def mean_recall(self) -> float:
        """Over the layers that have a prediction; 0 if none has."""
        known = self.recall[np.isfinite(self.recall)]
        return float(known.mean()) if known.size else 0.0


def measure(predicted: np.ndarray, tokens: np.ndarray) -> Quality:
    """Compare a prediction with what was active.

    Args:
        predicted: [S, L, P].
        tokens: [S, L, E].
    """
    named = _mask(predicted, tokens.shape[2])
    active = tokens > 0
    right = (named & active).sum(axis=(0, 2))
    needed, asked = active.sum(axis=(0, 2)), named.sum(axis=(0, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        recall = np.where(asked > 0, right / needed, np.nan)
        return Quality(recall, np.where(asked > 0, asked / needed - 1.0, np.nan))


def predict_with_recall(
    tokens: np.ndarray, recall: float | np.ndarray, over_fetch: float, seed: int
) -> np.ndarray:
    """A predictor of stated quality: each active expert is named with probability ``recall``.

    The other names are experts that are not active, drawn by how often they are; names come in
    random order.

    Args:
        tokens: [S, L, E].
        recall: Of all layers, or [L].
        over_fetch: See :class:`Preset`.
        seed: Same seed, same prediction.

    Returns:
        [S, L, P].
    """
    rng = np.random.default_rng(seed)
    active = tokens > 0
    share = active.mean(axis=0) + 1e-9
    right = active & (rng.random(tokens.shape) < np.asarray(recall, float).reshape(-1, 1))
    wrong = np.log(share) + rng.gumbel(size=tokens.shape)
    order = np.where(right, np.inf, np.where(active, -np.inf, wrong))
    ranked = np.argsort(-order, axis=2, kind="stable")
    asked = np.rint(active.sum(axis=2) * (1 + over_fetch)).astype(int)
    asked = np.maximum(asked, right.sum(axis=2))
    free = np.isfinite(order) | right  # an active expert that was missed is not named after all
    asked = np.minimum(asked, free.sum(axis=2))
    width = max(1, int(asked.max()))
    names = np.where(np.arange(width) < asked[..., None], ranked[..., :width], -1)
    shuffle = np.where(names >= 0, rng.random(names.shape), 2.0).argsort(axis=2)
    return np.take_along_axis(names, shuffle, axis=2)


def learn_transitions(tokens: np.ndarray) -> np.ndarray:
    """How often an expert follows one of the layer before, over steps.

    Args:
        tokens: [S, L, E] of the steps to learn from.

    Returns:
        [L, E, E] expected share of row l's active experts given one of layer l − 1; layer 0
        follows the last layer of the step before.
    """
    active = (tokens > 0).astype(np.float32)
    _, layers, experts = active.shape
    learned = np.empty((layers, experts, experts))
    for layer in range(layers):
        before = active[:-1, -1] if layer == 0 else active[:, layer - 1]
        after = active[1:, 0] if layer == 0 else active[:, layer]
        pairs = before.T @ after
        # One pseudo-count of the marginal share keeps experts that were never seen in play.
        marginal = after.mean(axis=0) if len(after) else np.full(experts, 1 / experts)
        seen = before.sum(axis=0)[:, None]
        learned[layer] = (pairs + marginal) / (seen + 1.0)
    return learned


def predict_by_transitions(
    tokens: np.ndarray, learned: np.ndarray, over_fetch: float
) -> np.ndarray:
    """Name the experts that most often follow the active ones.

    Args:
        tokens: [S, L, E] of the steps to predict; a layer is predicted from the one before.
        learned: Of :func:`learn_transitions`, from other steps.
        over_fetch: See :class:`Preset`; the number of active experts is taken from the layer
            before.

    Returns:
        [S, L, P].
    """
    active = tokens > 0
    before = np.roll(active, 1, axis=1)
    before[1:, 0] = active[:-1, -1]
    before[0, 0] = False
    score = np.einsum("sle,lef->slf", before.astype(np.float32), learned.astype(np.float32))
    return _highest(score, before.sum(axis=2), over_fetch)


def predict_by_paths(
    tokens: np.ndarray, stored: np.ndarray, nearest: int, over_fetch: float
) -> np.ndarray:
    """Name what comes next on the stored activation paths most like the step so far.

    The likeness is the cosine over the layers that have been seen (activation paths as in
    MoE-Infinity, arXiv 2401.14361, here per step).

    Args:
        tokens: [S, L, E] of the steps to predict; layer 0 is not.
        stored: [N, L, E] of the steps to learn from.
        nearest: How many paths vote.
        over_fetch: See :class:`Preset`.

    Returns:
        [S, L, P].
    """
    score = np.zeros(tokens.shape, np.float32)
    _vote((tokens > 0).astype(np.float32), (stored > 0).astype(np.float32), nearest, score)
    asked = np.roll((tokens > 0).sum(axis=2), 1, axis=1)
    asked[:, 0] = 0
    return _highest(score, asked, over_fetch)


@compiled
def _vote(active: np.ndarray, stored: np.ndarray, nearest: int, score: np.ndarray) -> None:
    paths = stored.shape[0]
    for step in range(active.shape[0]):
        both, own = np.zeros(paths), np.full(paths, 1e-9)
        for layer in range(active.shape[1] - 1):
            for path in range(paths):
                for expert in range(active.shape[2]):
                    if stored[path, layer, expert] > 0:
                        own[path] += 1
                        both[path] += active[step, layer, expert]
            likeness = both / np.sqrt(own)
            for _ in range(min(nearest, paths)):
                best = np.argmax(likeness)
                for expert in range(active.shape[2]):
                    score[step, layer + 1, expert] += (
                        likeness[best] * stored[best, layer + 1, expert]
                    )
                likeness[best] = -1.0


def _highest(score: np.ndarray, expected: np.ndarray, over_fetch: float) -> np.ndarray:
    """The highest scores of each event, as many as expected and the extra."""
    asked = np.minimum(np.rint(expected * (1 + over_fetch)).astype(int), score.shape[2])
    width = max(1, int(asked.max()))
    ranked = np.argsort(-score, axis=2, kind="stable")[..., :width]
    return np.where(np.arange(width) < asked[..., None], ranked, -1)


def _mask(predicted: np.ndarray, experts: int) -> np.ndarray:
    named = np.zeros((*predicted.shape[:2], experts + 1), bool)
    np.put_along_axis(named, np.where(predicted < 0, experts, predicted), 1, axis=2)
    return named[..., :experts]
