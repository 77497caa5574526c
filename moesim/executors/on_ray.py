"""Tasks on Ray (https://docs.ray.io): a cluster, or one that is started on this machine."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from threading import Event, current_thread, main_thread
from typing import Any, TypeVar

from moesim.environment import usable_processors
from moesim.errors import InputError, UsageError
from moesim.extras import require

__all__ = ["RayExecutor"]

T = TypeVar("T")
R = TypeVar("R")

LOOPBACK = {"127.0.0.1", "localhost", "[::1]"}
LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Unless 0, Ray replaces a loopback address by an outward one and listens to everybody."""

KNOCK_S = 10.0

HELD_S = 0.5
"""Until Ctrl-C is noticed, at most."""

OBJECT_STORE_BYTES = 128 * 2**20
"""Shared memory of a Ray started here; tasks and results are small (Ray's least is 75 MiB)."""


class RayExecutor(AbstractContextManager["RayExecutor"]):
    """See :class:`~moesim.executors.protocol.Executor`.

    A Ray that is started here listens on loopback only, shows no dashboard, tells its makers
    nothing, and ends with the executor. A cluster is left as it was found, and so is a Ray that
    this process was connected to already. Nodes of a cluster need the same moesim, and see files
    of tasks under the same paths.

    Args:
        workers: Tasks at once; one per processor of the cluster if not given.
        address: Of a running cluster.

    Raises:
        MissingExtraError: If Ray is not installed.
        UsageError: If there is no such cluster, or Ray cannot start.
        InputError: While computing, if the cluster fails.
    """

    def __init__(self, workers: int | None, address: str | None) -> None:
        # Both are read when Ray is imported, and by every process that it starts.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if address is None or _host(address) in LOOPBACK:
            os.environ.setdefault(LOOPBACK_ONLY, "0")
        self._ray: Any = require("ray", "ray", "--executor ray")
        self._address = address
        self._found = address is None and bool(self._ray.is_initialized())
        if not self._found:
            self._connect(workers, address)
        self.workers = workers or max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        # A worker that was killed may have been killed by its task: it is not tried again here.
        self._call = self._ray.remote(max_retries=0, num_cpus=1)(_call)
        self._running: dict[Any, int] = {}

    def __exit__(self, *error: object) -> None:
        for reference in self._running if self._found or self._address else ():
            with suppress(Exception):  # it may be done, or the cluster gone
                self._ray.cancel(reference, force=True)
        if not self._found:
            self._ray.shutdown()

    def map(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[tuple[int, R | None]]:
        """See :class:`~moesim.executors.protocol.Executor`; a dead worker takes its task along."""
        shared = self._ray.put(function)
        folder = str(Path.cwd())
        waiting = iter(enumerate(tasks))
        with _held_interrupts() as interrupted:
            while not interrupted.is_set():
                # One task per worker: more would be computed at once where a cluster has room.
                while len(self._running) < self.workers and (item := next(waiting, None)):
                    index, task = item
                    self._running[self._call.remote(shared, task, folder)] = index
                if not self._running:
                    return
                done, _ = self._ray.wait(list(self._running), num_returns=1, timeout=HELD_S)
                for reference in done:
                    index = self._running.pop(reference)
                    yield index, self._result(reference)
        raise KeyboardInterrupt

    def limit(self, workers: int) -> None:
        """Use that many workers from now on."""
        self.workers = min(self.workers, workers)

    def free_bytes(self) -> int | None:
        """Memory that the nodes offer to tasks."""
        offered = self._ray.available_resources().get("memory")
        return None if offered is None else int(offered)

    def _connect(self, workers: int | None, address: str | None) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address is None:
            options |= {
                "address": "local",
                "num_cpus": workers or usable_processors(),
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE_BYTES,
                "_node_ip_address": "127.0.0.1",
            }
        else:
            options["address"] = address
        try:
            if address is not None:
                _knock(address)
            self._ray.init(**options)
        except Exception as error:  # of many kinds, and every one of them ends here
            place = "on this machine" if address is None else f"at {address!r}"
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise UsageError(
                f"Ray cannot be used {place}: {reason}\n"
                "fix: pass the --address of a running cluster (see: ray status), or none to start "
                "Ray here, or --executor process"
            ) from error

    def _result(self, reference: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.RayTaskError as error:
            cause = getattr(error, "cause", None)
            raise (cause if isinstance(cause, Exception) else error) from None
        except (
            errors.WorkerCrashedError,
            errors.OutOfMemoryError,
            errors.NodeDiedError,
            errors.ObjectLostError,
        ):
            return None
        except errors.RayError as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise InputError(
                f"Ray cannot go on: {reason}",
                fix="see what became of the cluster (ray status), then start again where you were",
            ) from error


@contextmanager
def _held_interrupts() -> Iterator[Event]:
    """Sets an event at Ctrl-C: an exception in the midst of Ray's own threads can end the process.

    Python handles signals in its main thread alone; elsewhere nothing is held.
    """
    interrupted = Event()
    if current_thread() is not main_thread():
        yield interrupted
        return
    before = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _knock(address: str) -> None:
    """Fail at once where nobody listens: Ray itself tries for minutes."""
    host, port = _host(address), address.rpartition(":")[2]
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()


def _host(address: str) -> str:
    return address.removeprefix("ray://").rpartition(":")[0]


def _call(function: Callable[[T], R], task: T, folder: str) -> R:
    """In a worker: relative paths of tasks start where the sweep was started, if it is there."""
    if Path(folder).is_dir():
        os.chdir(folder)
    return function(task)
