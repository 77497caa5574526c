"""Operators that can be fitted and scored, by name."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from moesim.errors import UsageError

__all__ = ["CALIBRATED", "calibrated_operator"]

CALIBRATED = {
    "moe": "moesim.calibrate.fit_moe:MoeOperator",
    "gemm": "moesim.calibrate.fit_gemm:GemmOperator",
    "context_attention": "moesim.calibrate.fit_attention:ATTENTION",
    "generation_attention": "moesim.calibrate.fit_attention:ATTENTION",
    "context_mla": "moesim.calibrate.fit_mla:MLA",
    "generation_mla": "moesim.calibrate.fit_mla:MLA",
    "context_mla_module": "moesim.calibrate.fit_mla:MLA",
    "generation_mla_module": "moesim.calibrate.fit_mla:MLA",
    "wideep_context_mla": "moesim.calibrate.fit_mla:MLA",
    "wideep_generation_mla": "moesim.calibrate.fit_mla:MLA",
    "mla_bmm": "moesim.calibrate.fit_mla:MLA",
    "collective": "moesim.calibrate.fit_comm:COMM",
    "custom_allreduce": "moesim.calibrate.fit_comm:COMM",
    "deepep_normal": "moesim.calibrate.fit_comm:COMM",
    "deepep_low_latency": "moesim.calibrate.fit_comm:COMM",
    "moe_all_to_all": "moesim.calibrate.fit_comm:COMM",
    "trtllm_alltoall": "moesim.calibrate.fit_comm:COMM",
    "cpu_experts": "moesim.calibrate.fit_cpu:CpuExperts",
}
"""Where each operator's class, or the operators that it is one of, lie; imported when asked for."""


def calibrated_operator(name: str, *, residual: bool = False) -> Any:
    """A :class:`~moesim.calibrate.operator.CalibratedOperator`.

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
    found = getattr(import_module(module), attribute)
    if not residual:
        if isinstance(found, tuple):
            return next(operator for operator in found if operator.name == name)
        return found()
    if not getattr(found, "has_residual", False):
        raise UsageError(f"{name} has no learned residual\nfix: use --no-residual")
    return found(residual=True)
