"""Our kernels held to one configuration at a time, and to the one that the cost model chooses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moesim.kernels.bench_cases import Case
from moesim.kernels.bench_kernels import OURS, Kernel, own_product

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moesim.kernels.config import Part

__all__ = ["CHOSEN", "configured_kernels"]

CHOSEN = "chosen"
"""Configuration of the entry that the cost model picked from the case's histogram."""


def configured_kernels(torch: Any, case: Case) -> list[Kernel]:
    """Every configuration of the table for this GPU, and the choice from the case's rows.

    The choice may share experts among two configurations, by their rows.
    """
    from moesim.kernels.choose import choose, shape_of
    from moesim.kernels.config import Part
    from moesim.kernels.config_table import default_table
    from moesim.kernels.targets import chip_of, target_of

    device = torch.device("cuda")
    target = target_of(device).name
    out_dtype = torch.bfloat16
    dtype = torch.float8_e4m3fn if case.dtype == "fp8" else torch.bfloat16
    shape, name = shape_of(case.n, case.k, dtype, out_dtype, False)
    best = choose(case.rows, shape, name, target, chip=chip_of(device))[0]
    found = [_kernel(CHOSEN, best.parts)]
    for entry in default_table().of(target, name):
        found.append(_kernel(entry.config.name, (Part(entry.config),)))
    return found


def _kernel(config: str, parts: Sequence[Part]) -> Kernel:
    return Kernel(OURS, _takes, lambda operands: own_product(operands, parts), config)


def _takes(case: Case) -> str | None:
    return None if case.op == "grouped-gemm" else "one product only"
