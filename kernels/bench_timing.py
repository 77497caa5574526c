"""Timing single calls: on a GPU by events around a graph, on a CPU by the thread's own clock.

GPU: the call is captured in a CUDA graph, so that launches cost what they cost in a server, and
falls back to plain launches where it cannot be captured. Before every call a buffer larger than
the L2 is written: nothing is found there, and the time of launching hides behind the writing.

CPU: one thread, and the time that it ran on a processor, so that other programs do not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from moesim.errors import UsageError

__all__ = ["Clock", "CpuTimer", "CudaTimer", "Timed", "Timer", "cpu_clock"]

Clock = Literal["wall", "thread-cpu", "cuda-event"]

FLUSH_CACHES, LEAST_FLUSH_BYTES = 4, 2**28
"""Bytes written before a call: so many sizes of the L2, and enough to hide a launch behind."""
WARM_UPS = 3

Prepare = Callable[[], Callable[[], Any]]
"""Makes a call ready; what it returns is the call itself."""


def cpu_clock(kind: Clock) -> Callable[[], float]:
    """Seconds of a clock.

    ``thread-cpu`` counts the time that this thread ran on a processor, so that other programs on
    a busy machine do not count; it says nothing about work in other threads.
    """
    if kind == "wall":
        return time.perf_counter
    if not hasattr(time, "CLOCK_THREAD_CPUTIME_ID"):
        raise UsageError("this system has no clock per thread\nfix: use --clock wall")
    clock_id = time.CLOCK_THREAD_CPUTIME_ID
    return lambda: time.clock_gettime(clock_id)


class Timed(Protocol):
    """A call that is ready to be timed."""

    clock: str

    def sample_s(self) -> float:
        """Seconds of one call."""
        ...


class Timer(Protocol):
    """What times calls on a device."""

    def begin_case(self) -> None:
        """Told before the calls of a case are made ready."""
        ...

    def ready(self, prepare: Prepare, *, graph: bool = True) -> Timed:
        """Make a call ready: compile it, warm it up, capture it where ``graph`` allows."""
        ...


@dataclass
class _CpuTimed:
    prepare: Prepare
    now: Callable[[], float]
    clock: str

    def sample_s(self) -> float:
        call = self.prepare()
        start_s = self.now()
        call()
        return self.now() - start_s


class CpuTimer:
    """One thread of a CPU.

    Args:
        torch: The module; its threads are set to 1.
        clock: ``thread-cpu`` or ``wall``.
    """

    def __init__(self, torch: Any, clock: Clock = "thread-cpu") -> None:
        torch.set_num_threads(1)
        self._now, self._clock = cpu_clock(clock), clock

    def begin_case(self) -> None:
        """Nothing to do."""

    def ready(self, prepare: Prepare, *, graph: bool = True) -> Timed:
        """Run once untimed; every sample then prepares anew, which takes the next weights."""
        prepare()()
        return _CpuTimed(prepare, self._now, self._clock)


@dataclass
class _CudaTimed:
    torch: Any
    call: Callable[[], Any]
    flush: Any
    clock: str
    keeps: Any = None  # what a graph reads and does not own

    def sample_s(self) -> float:
        events = self.torch.cuda.Event
        start, end = events(enable_timing=True), events(enable_timing=True)
        self.flush.zero_()
        start.record()
        self.call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3


class CudaTimer:
    """The current GPU.

    Args:
        torch: The module.
    """

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        cache = int(torch.cuda.get_device_properties(0).L2_cache_size)
        self.flush_bytes = max(LEAST_FLUSH_BYTES, FLUSH_CACHES * cache)
        self._flush = torch.empty(self.flush_bytes, dtype=torch.int8, device="cuda")
        self.begin_case()

    def begin_case(self) -> None:
        """Begin a pool of memory for the graphs of one case.

        They run one at a time and nobody reads their results, so that they may share it; but a
        pool cannot be used again once all its graphs are gone.
        """
        self._pool = self._torch.cuda.graph_pool_handle()

    def ready(self, prepare: Prepare, *, graph: bool = True) -> Timed:
        """Warm up on a side stream, as a capture needs, and capture."""
        torch = self._torch
        call = prepare()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                call()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        if not graph:
            return _CudaTimed(torch, call, self._flush, "cuda-event")
        captured = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(captured, pool=self._pool):
                call()
        except RuntimeError:  # it waits for the device, which a graph cannot hold
            torch.cuda.synchronize()
            return _CudaTimed(torch, call, self._flush, "cuda-event")
        captured.replay()
        torch.cuda.synchronize()
        return _CudaTimed(torch, captured.replay, self._flush, "cuda-graph", keeps=call)
