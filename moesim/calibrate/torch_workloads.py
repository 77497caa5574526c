"""The workloads in torch: expert layers and copies, each call timed alone.

What a CPU measurement has to watch, and what is done here:

- Weights that were used a moment ago sit in a cache of tens of megabytes, and a model's do not.
  Every call takes the next weights of a pool larger than the last-level cache.
- Memory that is touched for the first time costs page faults. Pool and buffers are written once
  before anything is timed, and results go into them (``out=``).
- Denormal numbers are slow: the pool holds bf16 normals, whose pairs read as fp32 are normal too.
- fp16 has no fast kernel on a CPU; it is not offered.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from moesim.calibrate.measurements import Workload
from moesim.extras import require
from moesim.kernels.bench_timing import Clock, cpu_clock
from moesim.kernels.weight_pool import WeightPool

__all__ = [
    "Clock",
    "CpuWorkloads",
    "CudaWorkloads",
    "TritonWorkloads",
    "Workloads",
    "cpu_clock",
    "multiplies_int8",
    "torch_module",
]

INT8_SCALE = 1.0 / 127

LEAD_CYCLES = 4_000_000
"""Clock cycles (2 ms at 2 GHz) that a GPU waits before a timed call: longer than Python takes to
launch the call's kernels, so that their time is the device's and not the interpreter's."""


class Workloads(Protocol):
    """Something that can run a workload once and say how long it took."""

    def seconds(self, workload: Workload) -> float:
        """Run once, timed."""
        ...


def torch_module() -> Any:
    """Torch, imported when it is needed.

    Raises:
        MissingExtraError: If it is not installed.
    """
    return require("torch", "kernels", "calibrate measure")


def multiplies_int8(torch: Any) -> bool:
    """Whether torch multiplies 8-bit matrices on this CPU."""
    ones = torch.ones(32, 32, dtype=torch.int8)
    try:
        return bool((torch._int_mm(ones, ones) == 32).all())
    except (AttributeError, NotImplementedError, RuntimeError):
        return False


def _torch_dtypes(torch: Any) -> dict[str, Any]:
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}


def _most(workloads: Sequence[Workload], size: Callable[[Workload], int]) -> int:
    return max((size(w) for w in workloads if w.kind == "experts"), default=1)


class CpuWorkloads:
    """Workloads on the CPU.

    Args:
        workloads: All that will be asked for, to size the buffers.
        pool_bytes: Size of the pool of weights.
        threads: Threads of the matrix library; set for the whole process.
        clock: What to time with.
    """

    kernel = "linear-loop"

    def __init__(
        self, workloads: Sequence[Workload], pool_bytes: int, threads: int, clock: Clock
    ) -> None:
        self._torch = torch_module()
        self._torch.set_num_threads(threads)
        self._clock = cpu_clock(clock)
        self._dtypes = _torch_dtypes(self._torch)
        self._pool = WeightPool(self._torch, pool_bytes, "cpu")
        largest_copy = max((w.moved_bytes for w in workloads), default=1)
        self._copy_target = self._torch.zeros(max(1, largest_copy), dtype=self._torch.int8)
        rows = _most(workloads, lambda w: max(w.expert_rows))
        self._input = self._zeros(_most(workloads, lambda w: sum(w.expert_rows) * w.hidden))
        self._output = self._zeros(_most(workloads, lambda w: max(w.expert_rows) * w.hidden))
        inter = _most(workloads, lambda w: w.inter)
        self._gate_up = self._zeros(2 * rows * inter)
        self._wide = self._zeros(2 * rows * inter)
        self._product = self._zeros(rows * inter)
        generator = self._torch.Generator().manual_seed(1)
        self._input.view(self._torch.bfloat16).normal_(0, 1, generator=generator)

    def _zeros(self, count: int) -> Any:
        """Room for ``count`` numbers of any type, written once."""
        return self._torch.zeros(count, dtype=self._torch.float32)

    def _view(self, buffer: Any, dtype: str, *shape: int) -> Any:
        """The start of a buffer as another type and shape."""
        kind = self._torch.int32 if dtype == "int32" else self._dtypes[dtype]
        count = 1
        for extent in shape:
            count *= extent
        return buffer.view(kind)[:count].view(*shape)

    def seconds(self, workload: Workload) -> float:
        """Run once, timed."""
        if workload.kind == "experts":
            return self._experts_s(workload)
        return self._moved_s(workload)

    def _moved_s(self, workload: Workload) -> float:
        source = self._pool.take(workload.moved_bytes, "int8")
        if workload.kind == "read":
            numbers = source.view(self._torch.float32)
            start_s = self._clock()
            numbers.sum()
            return self._clock() - start_s
        target = self._copy_target[: workload.moved_bytes]
        start_s = self._clock()
        target.copy_(source)
        return self._clock() - start_s

    def _experts_s(self, workload: Workload) -> float:
        dtype, hidden, inter = workload.dtype, workload.hidden, workload.inter
        run = self._int8_expert if dtype == "int8" else self._expert
        cached = workload.residency == "cache"
        experts = len(workload.expert_rows)
        weights = self._pool.take(experts * 3 * hidden * inter, dtype, again=cached)
        weights = weights.view(experts, 3 * inter, hidden)
        rows_in_all = sum(workload.expert_rows)
        states = self._view(self._input, dtype, rows_in_all, hidden)
        prepared = []
        start = 0
        for place, rows in enumerate(workload.expert_rows):
            matrices = weights[place]
            prepared.append(
                (
                    states[start : start + rows],
                    matrices[: 2 * inter].t(),
                    matrices[2 * inter :].view(hidden, inter).t(),
                )
            )
            start += rows
        if cached:
            for arguments in prepared:
                run(dtype, *arguments)
        start_s = self._clock()
        for arguments in prepared:
            run(dtype, *arguments)
        return self._clock() - start_s

    def _expert(self, dtype: str, states: Any, gate_up_weight: Any, down_weight: Any) -> None:
        """``down(silu(gate(x)) * up(x))``."""
        torch = self._torch
        rows, hidden = states.shape
        inter = down_weight.shape[0]
        both = torch.mm(
            states, gate_up_weight, out=self._view(self._gate_up, dtype, rows, 2 * inter)
        )
        gate = torch.nn.functional.silu(both[:, :inter], inplace=True)
        product = torch.mul(
            gate, both[:, inter:], out=self._view(self._product, dtype, rows, inter)
        )
        torch.mm(product, down_weight, out=self._view(self._output, dtype, rows, hidden))

    def _int8_expert(self, _: str, states: Any, gate_up_weight: Any, down_weight: Any) -> None:
        """The same with 8-bit weights and activations, 32-bit sums between."""
        torch = self._torch
        rows, hidden = states.shape
        inter = down_weight.shape[0]
        sums = self._view(self._gate_up, "int32", rows, 2 * inter)
        torch._int_mm(states, gate_up_weight, out=sums)
        both = torch.mul(sums, INT8_SCALE, out=self._view(self._wide, "fp32", rows, 2 * inter))
        gate = torch.nn.functional.silu(both[:, :inter], inplace=True)
        gate.mul_(both[:, inter:]).clamp_(-127, 127)
        product = self._view(self._product, "int8", rows, inter).copy_(gate)
        torch._int_mm(product, down_weight, out=self._view(self._output, "int32", rows, hidden))


class CudaWorkloads:
    """Workloads on a GPU: torch's grouped matrix product for all experts at once.

    Args:
        workloads: All that will be asked for, to size the buffers.
        pool_bytes: Size of the pool of weights; above the L2 cache.
        device: ``cuda``; the CPU serves to check the results.
    """

    kernel = "torch-grouped-mm"

    def __init__(
        self, workloads: Sequence[Workload], pool_bytes: int, device: str = "cuda"
    ) -> None:
        self._torch = torch_module()
        self._dtypes = _torch_dtypes(self._torch)
        self._device = device
        self._pool = WeightPool(self._torch, pool_bytes, device)
        largest_copy = max((w.moved_bytes for w in workloads), default=1)
        on_device = {"dtype": self._torch.int8, "device": device}
        self._copy_target = self._torch.zeros(max(1, largest_copy), **on_device)
        self._host = self._torch.zeros(
            max(1, largest_copy), dtype=self._torch.int8, pin_memory=device == "cuda"
        )

    def seconds(self, workload: Workload) -> float:
        """Run once, timed by events on the device."""
        run = self.experts(workload) if workload.kind == "experts" else self._moved(workload)
        if self._device != "cuda":
            start_s = time.perf_counter()
            run()
            return time.perf_counter() - start_s
        events = self._torch.cuda.Event
        start, end = events(enable_timing=True), events(enable_timing=True)
        self._torch.cuda.synchronize()
        self._torch.cuda._sleep(LEAD_CYCLES)
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3

    def _moved(self, workload: Workload) -> Callable[[], Any]:
        size = workload.moved_bytes
        host, target = self._host[:size], self._copy_target[:size]
        source = self._pool.take(size, "int8")
        match workload.kind:
            case "read":
                numbers = source.view(self._torch.float32)
                return lambda: numbers.sum()
            case "host-to-device":
                return lambda: target.copy_(host, non_blocking=True)
            case "device-to-host":
                return lambda: host.copy_(target, non_blocking=True)
            case _:
                return lambda: target.copy_(source)

    def experts(self, workload: Workload) -> Callable[[], Any]:
        """The expert layer as a function without arguments that returns ``[rows, hidden]``."""
        torch = self._torch
        hidden, inter, experts = workload.hidden, workload.inter, len(workload.expert_rows)
        rows = sum(workload.expert_rows)
        count = experts * 3 * hidden * inter
        weights = self._pool.take(count, workload.dtype, again=workload.residency == "cache")
        split = experts * 2 * hidden * inter
        gate_up = weights[:split].view(experts, 2 * inter, hidden).transpose(1, 2)
        down = weights[split:].view(experts, hidden, inter).transpose(1, 2)
        # Random numbers: uniform ones draw less power, and a GPU then clocks higher.
        states = torch.randn(rows, hidden, device=self._device).to(self._dtypes[workload.dtype])
        ends = torch.tensor(workload.expert_rows, device=self._device).cumsum(0).to(torch.int32)

        def layer() -> Any:
            both = torch._grouped_mm(states, gate_up, offs=ends)
            product = torch.nn.functional.silu(both[:, :inter]) * both[:, inter:]
            return torch._grouped_mm(product, down, offs=ends)

        return layer


class TritonWorkloads(CudaWorkloads):
    """Workloads on a GPU with the project's own kernels; on a CPU these run a loop of products."""

    kernel = "moesim"

    def experts(self, workload: Workload) -> Callable[[], Any]:
        """The expert layer as a function without arguments that returns ``[rows, hidden]``."""
        from moesim.kernels.experts import ExpertWeights, expert_ffn

        torch = self._torch
        hidden, inter, experts = workload.hidden, workload.inter, len(workload.expert_rows)
        count = experts * 3 * hidden * inter
        weights = self._pool.take(count, workload.dtype, again=workload.residency == "cache")
        split = experts * 2 * hidden * inter
        layer = ExpertWeights(
            weights[:split].view(experts, 2 * inter, hidden),
            weights[split:].view(experts, hidden, inter),
        )
        rows = sum(workload.expert_rows)
        states = torch.randn(rows, hidden, device=self._device).to(self._dtypes[workload.dtype])
        counts = torch.tensor(workload.expert_rows, device=self._device, dtype=torch.int32)
        return lambda: expert_ffn(states, layer, counts)
