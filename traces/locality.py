"""Local routing consistency of a trace: the segment routing best performance, SRP.

Do the experts that a token uses stay in use for the tokens that follow? A segment router decides
once per expert and window of m consecutive tokens whether the expert is on for all of them. SRP is
the best F1 score that such a router can have against the real, token-wise routing (Not All Models
Suit Expert Offloading, arXiv 2505.16056, section 2.2 and appendix C). All overlapping windows
within a sequence count, and the router's threshold on the uses in a window is shared by the whole
group of experts that SRP is asked for: one expert, a layer, or all layers of a model.

So one histogram per group is enough: how many (expert, window) pairs have j uses, j = 0 … m.
Histograms of groups add up. Axes: L MoE layers, G groups of sequences, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moesim.compiled import compiled
from moesim.errors import UsageError
from moesim.traces.bundle import Trace
from moesim.traces.chunks import check_arrays, read_ids, release, token_slices
from moesim.traces.distinct import distinct_ids
from moesim.traces.sequences import Sequences, trace_sequences

__all__ = ["SegmentRouting", "segment_counts", "segment_routing"]


@dataclass(frozen=True)
class SegmentRouting:
    """What the best segment router reaches.

    Attributes:
        srp: F1 score of the best segment router, 0 … 1; NaN if there is no window.
        size_ratio: Experts that it keeps on per expert that is used (ρ̂: mean over windows).
        threshold: Uses in a window from which an expert is on.
    """

    srp: np.ndarray
    size_ratio: np.ndarray
    threshold: np.ndarray


def segment_routing(counts: np.ndarray) -> SegmentRouting:
    """SRP of groups of experts from their histograms.

    Args:
        counts: [..., m + 1] integers, (expert, window) pairs with 0 … m uses.
    """
    window = counts.shape[-1] - 1
    uses = np.arange(window + 1)
    matches = np.cumsum((counts * uses)[..., ::-1], axis=-1)[..., ::-1]
    chosen = window * np.cumsum(counts[..., ::-1], axis=-1)[..., ::-1]
    active = matches[..., :1]
    with np.errstate(invalid="ignore", divide="ignore"):
        score = 2 * matches / (chosen + active)
        best = np.where(np.isnan(score), -1, score).argmax(axis=-1)[..., None]
        ratio = np.take_along_axis(chosen, best, -1) / active
    return SegmentRouting(np.take_along_axis(score, best, -1)[..., 0], ratio[..., 0], best[..., 0])


def segment_counts(
    trace: Trace,
    windows: Sequence[int],
    *,
    sequences: Sequences | None = None,
    groups: np.ndarray | None = None,
    by_expert: bool = False,
    pool_layers: bool = False,
) -> list[np.ndarray]:
    """How often experts are used j times in a window of m consecutive tokens of a sequence.

    Args:
        trace: The trace; it is read layer by layer.
        windows: [W] lengths m in tokens.
        sequences: Its sequences; its requests by default.
        groups: [R] int64 group of each sequence, from 0; all are one group by default.
        by_expert: Whether to keep the experts of a layer apart.
        pool_layers: Whether to add up all layers, as if there were one.

    Returns:
        For every window, [L, G, m + 1] int64, or [L, G, E, m + 1] with ``by_expert``.

    Raises:
        InputError: If an id is not below E.
        UsageError: If a window is shorter than one token.
    """
    if not windows or min(windows) < 1:
        raise UsageError(f"windows must be at least 1 token long; found {list(windows)}")
    check_arrays(trace)
    if sequences is None:
        sequences = trace_sequences(trace)
    if groups is None:
        groups = np.zeros(sequences.count, np.int64)
    layers, experts = trace.manifest.layers, trace.manifest.experts
    group_count = int(groups.max(initial=0)) + 1
    rows = experts if by_expert else 1
    kept = 1 if pool_layers else layers
    result = [np.zeros((kept, group_count, rows, m + 1), np.int64) for m in windows]
    starts = None
    for layer in range(layers):
        ids, starts = _token_ids(trace, layer, sequences, starts)
        for m, counts in zip(windows, result, strict=True):
            table = counts[0 if pool_layers else layer]
            _segment_counts(ids, starts, sequences.bounds, groups, m, experts, table)
        release(trace.routing[layer])
    return result if by_expert else [counts[:, :, 0] for counts in result]


def _token_ids(
    trace: Trace, layer: int, sequences: Sequences, starts: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """[N] ids of the tokens in the order of the sequences, and [T + 1] where each token begins."""
    for tokens in token_slices(trace):
        read_ids(trace, layer, tokens)
    ids = trace.routing[layer] if sequences.order is None else trace.routing[layer, sequences.order]
    top_k = trace.manifest.top_k
    if trace.valid_k is not None:
        valid = trace.valid_k[layer]
        valid = valid if sequences.order is None else valid[sequences.order]
        ids = ids[np.arange(top_k) < valid[:, None]]
        starts = np.concatenate([[0], np.cumsum(valid, dtype=np.int64)])
    elif starts is None or starts[-1] != ids.size:
        starts = np.arange(0, ids.size + 1, top_k)
    flat = np.require(ids, requirements=["C", "A"]).view(np.ndarray).reshape(-1)
    flat.flags.writeable = False
    return distinct_ids(flat, starts, trace.manifest.experts)


@compiled
def _segment_counts(
    ids: np.ndarray,
    starts: np.ndarray,
    bounds: np.ndarray,
    groups: np.ndarray,
    window: int,
    experts: int,
    counts: np.ndarray,
) -> None:
    # An expert's uses stay the same from one window to the next unless the token that leaves or the
    # one that enters uses it. So a pair is not counted window by window but when its number of uses
    # changes, for all windows since the last change: 2 K updates per token instead of E.
    by_expert = counts.shape[1] > 1
    uses, since = np.empty(experts, np.int64), np.empty(experts, np.int64)
    for sequence in range(bounds.size - 1):
        begin = bounds[sequence]
        number = bounds[sequence + 1] - begin - window + 1
        if number < 1:
            continue
        table = counts[groups[sequence]]
        uses[:] = 0
        since[:] = 0
        for i in range(starts[begin], starts[begin + window]):
            uses[ids[i]] += 1
        for w in range(1, number):
            for i in range(starts[begin + w - 1], starts[begin + w]):
                e = ids[i]
                table[e if by_expert else 0, uses[e]] += w - since[e]
                uses[e] -= 1
                since[e] = w
            for i in range(starts[begin + w + window - 1], starts[begin + w + window]):
                e = ids[i]
                table[e if by_expert else 0, uses[e]] += w - since[e]
                uses[e] += 1
                since[e] = w
        for e in range(experts):
            table[e if by_expert else 0, uses[e]] += number - since[e]
