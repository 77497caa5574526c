"""Expert layers that were slower than their own parts: runs whose kernel was not tuned.

Splitting a layer bounds its time from both sides, whatever the kernel is:

- a rank that holds a part of the experts (or of every expert's width) needs no longer than the
  rank that holds all of it;
- k such parts, one after the other, need no less than the whole.

A series of TensorRT-LLM 1.3.0rc20 on Hopper breaks both, six times: its runs fell back on a slow
tactic for some (shape, tensor, expert) splits on all their tokens, on H100 and H200 alike, so that
no comparison between systems finds them.
"""

from __future__ import annotations

import numpy as np

from moesim.calibrate.frame import Frame

__all__ = ["SERIES_FACTOR", "slower_than_parts"]

SERIES_FACTOR = 2.0
"""A series whose median point breaks a bound this far was not measured tuned: the factor of the
other rules. On H100 and H200 no series of the other engines comes as high; at 1.75 three would."""
WAYS = (2, 4, 8)
"""How many parts are compared."""


def slower_than_parts(frame: Frame) -> np.ndarray:
    """How many times a row's series is beyond its bounds, ``[rows]``; 0 where it keeps them.

    Args:
        frame: Rows with ``moe_tp`` and ``moe_ep``, all latencies positive.
    """
    splits = ("moe_tp", "moe_ep", "latency_s", "power_w", "power_limit_w", "device")
    same = [name for name in frame.columns if name not in splits]
    keys = frame.groups(same)
    series = frame.groups([*(name for name in same if name != "tokens"), "moe_tp", "moe_ep"])
    width, ranks = frame["moe_tp"].astype(np.int64), frame["moe_ep"].astype(np.int64)
    scale = int(max(width.max(initial=1), ranks.max(initial=1))) * max(WAYS) + 1
    own = (keys * scale + width) * scale + ranks
    order = np.argsort(own)
    log_s = np.log(frame["latency_s"])
    worst = np.zeros(len(frame))
    for ways in WAYS:
        for across, over in ((ways, 1), (1, ways)):
            finer = (keys * scale + width * across) * scale + ranks * over
            places = np.minimum(np.searchsorted(own[order], finer), len(own) - 1)
            part = order[places]
            whole = np.flatnonzero(own[part] == finer)
            part = part[whole]
            excess = log_s[part] - log_s[whole]
            np.maximum.at(worst, part, excess)
            np.maximum.at(worst, whole, -excess - np.log(ways))
    medians = _medians(worst, series)[series]
    return np.where(medians > np.log(SERIES_FACTOR), np.exp(medians), 0.0)


def _medians(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Lower median by dense group."""
    order = np.lexsort((values, groups))
    counts = np.bincount(groups)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return values[order[starts + (counts - 1) // 2]]
