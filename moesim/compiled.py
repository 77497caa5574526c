"""Loops that numba compiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

__all__ = ["compiled"]

_F = TypeVar("_F", bound=Callable[..., Any])


def compiled(function: _F) -> _F:
    """Compile a function on first use, and keep the machine code on disk where that is possible.

    The compiled function lets go of Python's global lock, so that threads run side by side.
    """
    try:
        code: _F = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba: "no locator available": package and cache folder are read-only
        code = numba.njit(nogil=True)(function)
    return code
