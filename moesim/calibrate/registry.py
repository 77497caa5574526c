"""Operators that can be fitted and scored, by name."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from moesim.errors import UsageError

__all__ = ["CALIBRATED", "calibrated_operator"]

CALIBRATED = {"moe": "moesim.calibrate.fit_moe:MoeOperator"}
"""Where the class of each operator lies; imported when it is asked for."""


def calibrated_operator(name: str, *, residual: bool = False) -> Any:
    """A fresh :class:`~moesim.calibrate.operator.CalibratedOperator`.

    Args:
        name: A key of ``CALIBRATED``.
        residual: Let it correct its physics by a learned residual; its class then has
            ``has_residual`` and takes ``residual=True``.

    Raises:
        UsageError: If there is none of that name, or it has no residual.
    """
    if name not in CALIBRATED:
        raise UsageError(
            f"no fitted model of operator {name}\nfix: use one of {', '.join(CALIBRATED)}"
        )
    module, _, attribute = CALIBRATED[name].partition(":")
    made = getattr(import_module(module), attribute)
    if not residual:
        return made()
    if not getattr(made, "has_residual", False):
        raise UsageError(f"{name} has no learned residual\nfix: use --no-residual")
    return made(residual=True)
