"""The one interface of executors, its simplest form, and the choice among them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from enum import StrEnum
from typing import Protocol, TypeVar

from moesim.environment import available_memory_bytes, usable_processors
from moesim.errors import UsageError

__all__ = ["Executor", "ExecutorName", "SerialExecutor", "open_executor"]

T = TypeVar("T")
R = TypeVar("R")


class ExecutorName(StrEnum):
    """Where tasks are computed."""

    PROCESS = "process"
    SERIAL = "serial"
    RAY = "ray"


class Executor(AbstractContextManager["Executor"], Protocol):
    """Computes tasks until it is left; leaving by an exception stops what is under way.

    Attributes:
        workers: Processes at most; 0 computes in this process.
    """

    workers: int

    def map(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[tuple[int, R | None]]:
        """Index of a task and its result, in the order in which they come.

        Args:
            function: Picklable, and never returns None. What it raises ends the iteration.
            tasks: Picklable.

        Returns:
            Every index once; None as the result of a task whose worker was killed, which takes
            along those that were handed to it or its pool and had not been computed.
        """

    def limit(self, workers: int) -> None:
        """Use that many workers from now on, which are no more than before."""

    def free_bytes(self) -> int | None:
        """Memory that all workers together can have, None where it is unknown."""


class SerialExecutor(AbstractContextManager["SerialExecutor"]):
    """One task after the other, in this process."""

    workers = 0

    def __exit__(self, *error: object) -> None:
        """Nothing is left behind."""

    def map(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[tuple[int, R | None]]:
        """See :class:`Executor`."""
        for index, task in enumerate(tasks):
            yield index, function(task)

    def limit(self, workers: int) -> None:
        """There is nothing to limit."""

    def free_bytes(self) -> int | None:
        """Memory that can be had without swapping."""
        return available_memory_bytes()


def open_executor(
    name: ExecutorName, workers: int | None = None, address: str | None = None
) -> Executor:
    """An executor, to be used in a ``with`` statement.

    Args:
        name: Which one.
        workers: At least 1; one per usable processor, or per processor of a Ray cluster, if not
            given.
        address: Of a running Ray cluster (``auto``, ``HOST:PORT``, ``ray://HOST:PORT``); Ray is
            started on this machine if not given.

    Raises:
        UsageError: If an address is given to another executor than Ray.
        MissingExtraError: If Ray is asked for and not installed.
    """
    if address is not None and name is not ExecutorName.RAY:
        raise UsageError(
            f"--address is that of a Ray cluster, and the executor is {name}\n"
            "fix: pass --executor ray, or leave --address out"
        )
    if name is ExecutorName.SERIAL:
        return SerialExecutor()
    if name is ExecutorName.RAY:
        from moesim.executors.on_ray import RayExecutor

        return RayExecutor(workers, address)
    from moesim.executors.process import ProcessExecutor

    return ProcessExecutor(workers or usable_processors())
