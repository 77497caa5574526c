"""Tasks in a pool of processes on this machine."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any, TypeVar

from moesim.environment import available_memory_bytes

__all__ = ["ProcessExecutor"]

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 3
"""Tasks per worker that are handed out before they are needed."""


class ProcessExecutor(AbstractContextManager["ProcessExecutor"]):
    """See :class:`~moesim.executors.protocol.Executor`.

    Args:
        workers: Processes at most; each is started when there is a task for it, and kept.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._close(stop=kind is not None)

    def map(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[tuple[int, R | None]]:
        """See :class:`~moesim.executors.protocol.Executor`; a dead worker takes the pool along."""
        waiting = deque(enumerate(tasks))
        running: dict[Future[R], int] = {}
        while waiting or running:
            while waiting and len(running) < AHEAD * self.workers:
                index, task = waiting.popleft()
                running[self._submit(function, task)] = index
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                index = running.pop(done)
                try:
                    result: R | None = done.result()
                except BrokenProcessPool:
                    result = None
                yield index, result

    def limit(self, workers: int) -> None:
        """Use that many workers from now on."""
        if workers < self.workers:
            self._close(stop=False)  # a pool cannot be made smaller
            self.workers = workers

    def free_bytes(self) -> int | None:
        """Memory that can be had without swapping."""
        return available_memory_bytes()

    def _submit(self, function: Callable[[T], R], task: T) -> Future[R]:
        try:
            return self._started().submit(function, task)
        except BrokenProcessPool:
            self._close(stop=False)
            return self._started().submit(function, task)

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # Forked workers would share locks of threads that numerical libraries may have started.
            self._pool = ProcessPoolExecutor(self.workers, get_context("spawn"), initializer=_begin)
        return self._pool

    def _close(self, *, stop: bool) -> None:
        pool, self._pool = self._pool, None
        if pool is None:
            return
        if stop:
            processes: dict[int, Any] = dict(pool._processes or {})
            for process in processes.values():
                process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


def _begin() -> None:
    """In a new worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for tasks for ever, with all of its memory."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
