"""What an op has to do at least: floating-point operations and bytes of device memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Work", "element_bytes"]


@dataclass(frozen=True)
class Work:
    """The least work of one op, whatever runs it.

    Attributes:
        flops: Floating-point operations that the result needs; a multiply-add counts two, and
            padding does not count.
        bytes: Bytes that must move: every input that is used read once, every output written once.
    """

    flops: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def least_s(self, flop_per_s: float, bytes_per_s: float) -> float:
        """The roofline's time: no implementation is faster than the larger of the two terms."""
        return max(self.flops / flop_per_s, self.bytes / bytes_per_s)


def element_bytes(dtype: torch.dtype) -> int:
    """Bytes of one element."""
    return torch.empty((), dtype=dtype, device="meta").element_size()
