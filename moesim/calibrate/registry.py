"""Operators that can be fitted and scored, by name."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from moesim.calibrate.operators import OPERATORS
from moesim.calibrate.tables import open_catalogue
from moesim.errors import UsageError

__all__ = [
    "CALIBRATED",
    "calibrated_operator",
    "default_versions",
    "measured_operators",
]

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
    "scale_matrix": "moesim.calibrate.fit_elementwise:ElementwiseOperator",
    "compute_scale": "moesim.calibrate.fit_streaming:STREAMING",
    "gdn": "moesim.calibrate.fit_streaming:STREAMING",
    "kda": "moesim.calibrate.fit_streaming:STREAMING",
    "mamba2": "moesim.calibrate.fit_streaming:STREAMING",
    "hyper_connection": "moesim.calibrate.fit_streaming:STREAMING",
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


ALL_VERSIONS = ("deepep_normal", "deepep_low_latency")
"""Operators whose older tables hold what the newest lack: DeepEP over several nodes."""


def default_versions(name: str) -> str:
    """Versions that an operator is fitted to unless others are named: ``newest`` or ``all``."""
    return "all" if name in ALL_VERSIONS else "newest"


def measured_operators(
    source: str,
    names: list[str] | None,
    systems: list[str] | None = None,
    engines: list[str] | None = None,
) -> list[str]:
    """Operators to fit: those named, or all fitted ones of which the source has tables.

    Raises:
        UsageError: If one of those named is unknown, or the source has no tables of any.
    """
    tables = open_catalogue(source)
    for name in names or ():
        if name not in CALIBRATED:
            raise UsageError(
                f"no fitted model of operator {name}\nfix: use one of {', '.join(CALIBRATED)}"
            )
    if names:
        return names
    found = [
        name
        for name in CALIBRATED
        if OPERATORS[name].files and tables.select(OPERATORS[name].files, systems, engines)
    ]
    if not found:
        raise UsageError(
            f"{source} has no table of an operator that is fitted\nfix: see moesim calibrate tables"
        )
    return found
