"""Statistics of a trace on any executor: parts are counted in workers, their tables added up here.

A part is a trace of its own, of fewer layers and tokens, and goes through
:mod:`moesim.traces.statistics`; whole numbers add up to the same in any order, so that results are
those of that module to the bit. Workers map the trace's files themselves: none of them holds more
than a part, and on a cluster all nodes must see the folder under the same path.

Axes: as in :mod:`moesim.traces.statistics`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from moesim.errors import InputError, UsageError
from moesim.executors.protocol import Executor
from moesim.traces import statistics
from moesim.traces.bundle import Trace, open_trace
from moesim.traces.chunks import result_table

__all__ = ["coactivation", "loads", "transitions", "windowed_loads"]

PART_IDS = 2**25
"""Ids of one layer in a part: a worker maps 32 or 64 MiB at a time, and counts them in a moment."""

Statistic = Callable[[Trace], np.ndarray]


@dataclass(frozen=True)
class Part:
    """Rows ``layer … layer + layers − 1`` and tokens ``start … stop − 1`` of a trace."""

    layer: int
    layers: int
    start: int
    stop: int

    def of(self, trace: Trace) -> Trace:
        """The part as a trace."""
        rows, tokens = slice(self.layer, self.layer + self.layers), slice(self.start, self.stop)
        manifest = trace.manifest.model_copy(
            update={
                "layers": self.layers,
                "moe_layers": trace.manifest.moe_layers[rows],
                "tokens": self.stop - self.start,
            }
        )
        valid_k = None if trace.valid_k is None else trace.valid_k[rows, tokens]
        return Trace(manifest, trace.routing[rows, tokens], valid_k=valid_k)


def loads(trace: Trace, executor: Executor) -> np.ndarray:
    """[L, E] int64; see :func:`moesim.traces.statistics.loads`."""
    layers, experts = trace.manifest.layers, trace.manifest.experts
    result = np.zeros((layers, experts), np.int64)
    for part, table in _counted(trace, executor, statistics.loads, _parts(trace, layers, 1)):
        result[part.layer] += table[0]
    return result


def windowed_loads(trace: Trace, window_tokens: int, executor: Executor) -> np.ndarray:
    """[W, L, E] int64; see :func:`moesim.traces.statistics.windowed_loads`."""
    statistics.check_window(window_tokens)
    layers, experts = trace.manifest.layers, trace.manifest.experts
    windows = -(-trace.manifest.tokens // window_tokens)
    result = result_table((windows, layers, experts), "choose a larger window")
    count = partial(statistics.windowed_loads, window_tokens=window_tokens)
    parts = _parts(trace, layers, 1, multiple=window_tokens)
    for part, table in _counted(trace, executor, count, parts):
        first = part.start // window_tokens
        result[first : first + len(table), part.layer] = table[:, 0]
    return result


def transitions(trace: Trace, executor: Executor) -> np.ndarray:
    """[L − 1, E, E] int64; see :func:`moesim.traces.statistics.transitions`."""
    return _pairs(trace, executor, statistics.transitions, 2)


def coactivation(trace: Trace, executor: Executor) -> np.ndarray:
    """[L, E, E] int64; see :func:`moesim.traces.statistics.coactivation`."""
    return _pairs(trace, executor, statistics.coactivation, 1)


def _pairs(trace: Trace, executor: Executor, count: Statistic, layers: int) -> np.ndarray:
    """Tables of pairs of ids, each within so many layers."""
    rows, experts = trace.manifest.layers - layers + 1, trace.manifest.experts
    result = result_table((rows, experts, experts), "count pairs of models with fewer experts only")
    for part, table in _counted(trace, executor, count, _parts(trace, rows, layers)):
        result[part.layer] += table[0]
    return result


def _parts(trace: Trace, rows: int, layers: int, multiple: int = 1) -> list[Part]:
    """All tokens of every row, cut at multiples of so many tokens."""
    tokens, top_k = trace.manifest.tokens, trace.manifest.top_k
    step = max(1, PART_IDS // (top_k * multiple)) * multiple
    return [
        Part(row, layers, start, min(start + step, tokens))
        for row in range(rows)
        for start in range(0, tokens, step)
    ]


def _counted(
    trace: Trace, executor: Executor, count: Statistic, parts: list[Part]
) -> Iterator[tuple[Part, np.ndarray]]:
    """Every part with its table, as they come."""
    if trace.path is None:
        raise UsageError(
            "a trace that was never written cannot be opened by workers\n"
            "fix: write it, or count it in this process"
        )
    work = partial(_count, str(trace.path.resolve()), count)
    try:
        for index, table in executor.map(work, parts):
            if table is None:  # its worker was killed, perhaps for memory; one part needs little
                table = count(parts[index].of(trace))
            yield parts[index], table
    except InputError:
        # A worker numbers layers and tokens of its part: the first bad id of all is found here.
        count(trace)
        raise


def _count(folder: str, count: Statistic, part: Part) -> np.ndarray:
    return count(part.of(open_trace(Path(folder))))
