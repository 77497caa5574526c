"""Operands of a benchmark case: random, on the device, weights from memory rather than a cache.

A GPU's L2 is flushed before every timed call, so one set of weights serves. On a CPU there is no
flush: every call takes the next weights of a pool larger than the last-level cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from moesim.kernels.bench_cases import ELEMENT_BYTES, Case
from moesim.kernels.bench_timing import CpuTimer
from moesim.kernels.weight_pool import WeightPool

__all__ = ["DTYPES", "Operands", "Source", "fast_dtype", "pool_size", "reference"]

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp8": "float8_e4m3fn"}
"""Names of number types in torch."""


@dataclass
class Operands:
    """What one call of a grouped GEMM or an expert layer reads.

    Attributes:
        case: Whose operands they are.
        x: [rows, k] sorted by expert; bfloat16 where the case is in fp8.
        w: [experts, n, k]; for an expert layer [experts, 2 · inter, k], gate above up.
        down: [experts, n, inter] of an expert layer, else None.
        counts: [experts] int32 on the device.
        ends: [experts] int32 cumulative counts on the device.
        timing_only: Whether the numbers may lie in any order: random weights need not be brought
            into a kernel's own layout to be timed.
    """

    case: Case
    x: Any
    w: Any
    down: Any
    counts: Any
    ends: Any
    timing_only: bool = False


class Source:
    """Makes operands on one device.

    Args:
        torch: The module.
        device: ``cuda`` or ``cpu``.
        seed: Of all numbers.
        pool_bytes: Size of a CPU's pool of weights.
    """

    def __init__(self, torch: Any, device: str, seed: int, pool_bytes: int = 0) -> None:
        self._torch = torch
        self._device = device
        self._generator = torch.Generator(device=device).manual_seed(seed)
        self._pool = WeightPool(torch, pool_bytes, device) if pool_bytes else None

    def first(self, case: Case, *, timing_only: bool = False) -> Operands:
        """Fresh operands of a case."""
        torch = self._torch
        counts = torch.tensor(case.rows, dtype=torch.int32, device=self._device)
        # Normal numbers: a GPU runs zeros and narrow ranges faster than real data.
        x = self._normal(sum(case.rows), case.k, scale=1.0, dtype=_activation(case))
        ends = counts.cumsum(0).to(torch.int32)
        operands = Operands(case, x, None, None, counts, ends, timing_only)
        return self.renewed(operands)

    def renewed(self, operands: Operands) -> Operands:
        """The same with the pool's next weights; without a pool, new ones if there are none."""
        case, experts = operands.case, len(operands.case.rows)
        wide = 2 * case.inter if case.op == "experts" else case.n
        if self._pool is not None:
            count = experts * wide * case.k
            both = self._pool.take(count + experts * case.n * case.inter, case.dtype)
            operands.w = both[:count].view(experts, wide, case.k)
            operands.down = both[count:].view(experts, case.n, case.inter) if case.inter else None
        elif operands.w is None:
            kind = _activation(case)
            operands.w = self._normal(experts * wide, case.k, scale=case.k**-0.5, dtype=kind)
            operands.w = operands.w.view(experts, wide, case.k)
            if case.inter:
                rows, scale = experts * case.n, case.inter**-0.5
                down = self._normal(rows, case.inter, scale=scale, dtype=kind)
                operands.down = down.view(experts, case.n, case.inter)
        return operands

    def _normal(self, rows: int, columns: int, *, scale: float, dtype: str) -> Any:
        torch = self._torch
        kind = getattr(torch, DTYPES[dtype])
        out = torch.empty(rows, columns, dtype=kind, device=self._device)
        out.normal_(0, scale, generator=self._generator)
        return out


def pool_size(cases: tuple[Case, ...], cache_bytes: int | None, most_bytes: int) -> int:
    """Bytes of a pool above the cache that holds any case's weights twice, if memory allows."""
    largest = max((_stored_bytes(case) for case in cases), default=0)
    wanted = max(2 * largest, 4 * (cache_bytes or 2**25), 2**28)
    return max(min(wanted, most_bytes), largest) // 4096 * 4096 + 4096


def _stored_bytes(case: Case) -> int:
    per_expert = 3 * case.k * case.inter if case.op == "experts" else case.n * case.k
    return 0 if case.op == "copy" else len(case.rows) * per_expert * ELEMENT_BYTES[case.dtype]


def fast_dtype(torch: Any) -> str:
    """bf16, or fp32 on a CPU that multiplies bf16 more slowly: one without instructions for it."""
    best_s = {}
    for name in ("bf16", "fp32"):
        square = torch.ones(256, 256, dtype=getattr(torch, DTYPES[name]))
        timed = CpuTimer(torch).ready(partial(_squared, square))
        best_s[name] = min(timed.sample_s() for _ in range(5))
    return min(best_s, key=lambda name: best_s[name])


def _squared(square: Any) -> Callable[[], Any]:
    return lambda: square @ square


def _activation(case: Case) -> str:
    """fp8 operands are made from bfloat16 by the kernels that take them."""
    return "bf16" if case.dtype == "fp8" else case.dtype


def reference(torch: Any, operands: Operands) -> Any:
    """The result in float64, [rows, n]."""
    case = operands.case
    out = torch.zeros(sum(case.rows), case.n, dtype=torch.float64, device=operands.x.device)
    start = 0
    for expert, count in enumerate(case.rows):
        part = slice(start, start + count)
        start += count
        if not count:
            continue
        y = operands.x[part].double() @ operands.w[expert].double().T
        if case.op == "experts":
            y = torch.nn.functional.silu(y[:, : case.inter]) * y[:, case.inter :]
            y = y @ operands.down[expert].double().T
        out[part] = y
    return out
