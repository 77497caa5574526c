"""Triton, or a stand-in where it is not installed; and how kernels run in this process.

Triton has no wheel for every system. The references and the cost functions need none of it, so the
modules that hold them import Triton from here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from moesim.errors import MissingExtraError, UsageError

try:
    import triton
    import triton.language as tl
except ModuleNotFoundError as error:
    if error.name != "triton":
        raise
    triton = None
    tl = None

__all__ = ["HAS_TRITON", "INTERPRETED", "constexpr", "jit", "runs_triton", "tl", "triton"]

HAS_TRITON = triton is not None

INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on")
"""Whether kernels run in Triton's interpreter, which is decided when they are decorated."""


class _Missing:
    """A kernel that cannot be launched because there is no Triton."""

    def __getitem__(self, grid: object) -> Callable[..., Any]:
        raise MissingExtraError("triton", "kernels", "running this kernel")


def jit(*varying: str) -> Callable[[Callable[..., Any]], Any]:
    """``triton.jit``, or an object that says that Triton is missing when it is launched.

    Args:
        varying: Whole-number arguments that differ from call to call. Triton compiles a kernel
            anew where others turn into 1 or stop being multiples of 16; these do not count.
    """
    if not HAS_TRITON:
        return lambda function: _Missing()
    return lambda function: triton.jit(function, do_not_specialize=list(varying))


def constexpr(value: Any) -> Any:
    """``tl.constexpr``, for a number that kernels name as a global."""
    return tl.constexpr(value) if HAS_TRITON else value


def runs_triton(*tensors: torch.Tensor | None) -> bool:
    """Whether an op on these tensors launches its Triton kernel.

    It does on a GPU, and everywhere under ``TRITON_INTERPRET=1``. On a CPU it runs plain torch.

    Raises:
        UsageError: If the tensors are not all on one device.
    """
    devices = {tensor.device for tensor in tensors if tensor is not None}
    if len(devices) != 1:
        names = ", ".join(sorted(str(device) for device in devices))
        raise UsageError(f"the arguments of one op lie on {names}\nfix: move them to one device")
    return INTERPRETED or devices.pop().type == "cuda"
