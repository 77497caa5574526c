"""Weights that come from memory: a pool larger than the last-level cache, handed out in turn."""

from __future__ import annotations

from typing import Any

__all__ = ["WeightPool"]

ALIGN_BYTES = 64


class WeightPool:
    """Random weights in a row.

    All are written once, so that no page is touched for the first time while something is timed.
    Values are bf16 normals: denormal numbers are slow, and pairs of these read as fp32 are normal
    numbers too.

    Args:
        torch: The module.
        pool_bytes: Size; above the cache.
        device: Where it lies.
    """

    def __init__(self, torch: Any, pool_bytes: int, device: str) -> None:
        self._dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
        generator = torch.Generator(device=device).manual_seed(0)
        block = torch.empty(2**20, dtype=torch.float32, device=device)
        block = block.normal_(0, 0.05, generator=generator).to(torch.bfloat16)
        self._data = torch.empty(pool_bytes // 2, dtype=torch.bfloat16, device=device)
        for start in range(0, len(self._data), len(block)):
            part = self._data[start : start + len(block)]
            part.copy_(block[: len(part)])
        self._bytes = self._data.view(torch.int8)
        self._cursor = 0

    def take(self, count: int, dtype: str, *, again: bool = False) -> Any:
        """The next ``count`` numbers, from the start where the pool ends; or those at its start."""
        kind = self._dtypes[dtype]
        size = count * kind.itemsize
        start = 0 if again or self._cursor + size > len(self._bytes) else self._cursor
        if not again:
            self._cursor = -(-(start + size) // ALIGN_BYTES) * ALIGN_BYTES
        return self._bytes[start : start + size].view(kind)
