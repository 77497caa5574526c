"""Operators that can be fitted and scored, by name."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from moesim.errors import UsageError

__all__ = ["CALIBRATED", "calibrated_operator"]

CALIBRATED = {"moe": "moesim.calibrate.fit_moe:MoeOperator"}
"""Where the class of each operator lies; imported when it is asked for."""


def calibrated_operator(name: str) -> Any:
    """A fresh :class:`~moesim.calibrate.operator.CalibratedOperator`.

    Raises:
        UsageError: If there is none of that name.
    """
    if name not in CALIBRATED:
        raise UsageError(
            f"no fitted model of operator {name}\nfix: use one of {', '.join(CALIBRATED)}"
        )
    module, _, attribute = CALIBRATED[name].partition(":")
    return getattr(import_module(module), attribute)()
