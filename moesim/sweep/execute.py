"""Computing the points that a store lacks, on any executor.

Points travel in chunks, and every chunk is in the store before it counts as done. Chunks that a
dead worker took along are tried again point by point, and a point that kills its worker then is a
failed point.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from moesim.environment import peak_memory_bytes
from moesim.executors.protocol import Executor
from moesim.sweep.store import Store

__all__ = ["compute", "peak_worker_bytes"]

Point = tuple[str, dict[str, Any]]
"""Key and options."""

Run = Callable[[dict[str, Any]], dict[str, Any]]
"""Computes one point; returns plain data, errors of the point included. Raising ends the sweep."""

MOST_IN_CHUNK = 64


def compute(run: Run, points: Sequence[Point], store: Store, executor: Executor) -> Iterator[int]:
    """Compute points into the store; yields how many more are done, chunk by chunk.

    Args:
        run: Picklable.
        points: That the store lacks.
        store: Receives results.
        executor: Computes them.
    """
    size = max(1, min(MOST_IN_CHUNK, len(points) // (8 * max(executor.workers, 1))))
    chunks = [points[start : start + size] for start in range(0, len(points), size)]
    function = partial(_run_chunk, run)
    broken: list[int] = []
    for index, results in executor.map(function, chunks):
        if results is None:
            broken.append(index)
        else:
            store.put(results)
            yield len(results)
    for point in (point for index in sorted(broken) for point in chunks[index]):
        for _, results in executor.map(function, [[point]]):
            store.put(results if results is not None else [(point[0], _died())])
            yield 1


def _died() -> str:
    error = {
        "type": "WorkerDied",
        "message": "the process that computed this point was killed; memory may have run out",
        "exit_code": 5,
    }
    return json.dumps({"ok": False, "error": error})


def _run_chunk(run: Run, chunk: Sequence[Point]) -> list[tuple[str, str]]:
    return [(key, json.dumps(run(options), allow_nan=False)) for key, options in chunk]


def peak_worker_bytes(run: Run, point: Point, store: Store, executor: Executor) -> int:
    """Memory that one worker needs, from computing one point into the store."""
    ((_, measured),) = executor.map(partial(_run_measured, run), [point])
    results, peak = measured if measured is not None else ([(point[0], _died())], 0)
    store.put(results)
    return peak


def _run_measured(run: Run, point: Point) -> tuple[list[tuple[str, str]], int]:
    return _run_chunk(run, [point]), peak_memory_bytes()
