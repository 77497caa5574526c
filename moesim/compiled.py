"""Loops that numba compiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

__all__ = ["compiled", "compiled_part"]

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


def compiled_part(function: _F) -> _F:
    """Compile a function that only compiled functions call: without an entry from Python.

    What leads in from Python takes up to half of the time that a small function needs to compile.
    """
    options = {"nogil": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    try:
        code: _F = numba.njit(**options, cache=True)(function)
    except RuntimeError:  # as above
        code = numba.njit(**options)(function)
    return code
