"""Computing the points that a store lacks, in worker processes.

Points travel in chunks, and every chunk is in the store before it counts as done. A worker that
dies takes its pool with it: the chunks that were under way are then tried point by point in a
process of their own, and a point that kills that one too is a failed point.
"""

from __future__ import annotations

import json
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

from moesim.sweep.store import Store

__all__ = ["compute", "peak_worker_bytes"]

Point = tuple[str, dict[str, Any]]
"""Key and options."""

Run = Callable[[dict[str, Any]], dict[str, Any]]
"""Computes one point; returns plain data, errors included, and raises nothing."""

MOST_IN_CHUNK = 64
AHEAD = 3
"""Chunks per worker that are handed out before they are needed."""


def compute(run: Run, points: Sequence[Point], store: Store, jobs: int) -> Iterator[int]:
    """Compute points into the store; yields how many more are done, chunk by chunk.

    Args:
        run: Picklable.
        points: That the store lacks.
        store: Receives results.
        jobs: Worker processes; 0 computes in this process.
    """
    size = max(1, min(MOST_IN_CHUNK, len(points) // (8 * max(jobs, 1))))
    chunks = [points[start : start + size] for start in range(0, len(points), size)]
    if jobs == 0:
        for chunk in chunks:
            store.put(_run_chunk(run, chunk))
            yield len(chunk)
        return
    broken: list[Sequence[Point]] = []
    for chunk, results in _in_pool(run, chunks, jobs):
        if results is None:
            broken.append(chunk)
        else:
            store.put(results)
            yield len(chunk)
    for key, options in (point for chunk in broken for point in chunk):
        for _, results in _in_pool(run, [[(key, options)]], 1):
            store.put(results if results is not None else [(key, _died())])
            yield 1


def _died() -> str:
    error = {
        "type": "WorkerDied",
        "message": "the process that computed this point was killed; memory may have run out",
        "exit_code": 5,
    }
    return json.dumps({"ok": False, "error": error})


def _in_pool(
    run: Run, chunks: list[Sequence[Point]], jobs: int
) -> Iterator[tuple[Sequence[Point], list[tuple[str, str]] | None]]:
    """Every chunk with its results; None for those that a dead worker took along."""
    # Forked workers would share locks of threads that numerical libraries may have started.
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_ignore_interrupts)
    waiting = deque(chunks)
    running: dict[Future[list[tuple[str, str]]], Sequence[Point]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < AHEAD * jobs:
                chunk = waiting.popleft()
                try:
                    running[pool.submit(_run_chunk, run, chunk)] = chunk
                except BrokenProcessPool:
                    yield chunk, None
            for done in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                chunk = running.pop(done)
                try:
                    results = done.result()
                except BrokenProcessPool:
                    yield chunk, None
                else:
                    yield chunk, results
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle


def _run_chunk(run: Run, chunk: Sequence[Point]) -> list[tuple[str, str]]:
    return [(key, json.dumps(run(options), allow_nan=False)) for key, options in chunk]


def peak_worker_bytes(run: Run, point: Point, store: Store) -> int:
    """Memory that one worker needs, from computing one point into the store."""
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=_ignore_interrupts) as pool:
        try:
            results, peak = pool.submit(_run_measured, run, point).result()
        except BrokenProcessPool:
            store.put([(point[0], _died())])
            return 0
    store.put(results)
    return peak


def _run_measured(run: Run, point: Point) -> tuple[list[tuple[str, str]], int]:
    import resource

    results = _run_chunk(run, [point])
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts KiB, on macOS bytes
    return results, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
