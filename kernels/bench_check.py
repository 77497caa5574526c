"""Correctness on the device, before anything is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from moesim.kernels.bench_cases import Case
from moesim.kernels.bench_inputs import Source, reference
from moesim.kernels.bench_kernels import Kernel

__all__ = ["TOLERANCES", "check_cases", "check_kernel", "relative_error"]

TOLERANCES = {"bf16": 1e-2, "fp16": 2e-3, "fp32": 1e-4, "fp8": 6e-2}
"""Largest ‖out − float64‖ / ‖float64‖. bf16 rounds to 2⁻⁸, results land between 1e-3 and 1e-2;
fp8 e4m3 to 2⁻⁴ in both operands, which makes some 4e-2 of one product."""

Progress = Callable[[str], None]


def check_cases(device: str, dtype: str = "bf16") -> tuple[Case, ...]:
    """Small, and as unpleasant as real loads: empty experts, one row, one expert with most.

    Args:
        device: A GPU is checked in fp8 too.
        dtype: Of the others.
    """
    ragged = (0, 1, 37, 0, 200, 3, 0)
    many = (9000, 1, 0, 7000, 700) if device == "cuda" else (90, 1, 0, 70, 7)
    gemm = Case("check/ragged", "grouped-gemm", "check", "", dtype, 384, 512, ragged, "ragged")
    cases = [
        gemm,
        replace(gemm, name="check/even", rows=(16,) * 8, load="even"),
        replace(gemm, name="check/one-expert", rows=(0, 0, 129, 0), load="one"),
        # Several tiles for every program of a persistent kernel.
        replace(gemm, name="check/many-tiles", rows=many, load="ragged"),
        replace(gemm, name="check/experts", op="experts", n=512, inter=256),
        replace(gemm, name="check/dense", op="dense", rows=(256,)),
    ]
    if device == "cuda":
        cases.append(replace(gemm, name="check/fp8", dtype="fp8"))
        cases.append(replace(gemm, name="check/fp8-many-tiles", dtype="fp8", rows=many))
    return tuple(cases)


def check_kernel(
    torch: Any, kernel: Kernel, cases: Iterable[Case], source: Source, say: Progress
) -> list[dict[str, Any]]:
    """Run a kernel on every small case that it takes.

    Returns:
        One entry per case: kernel, configuration, case, error, tolerance, whether it holds, and
        what was raised if it did not run.
    """
    results = []
    for case in cases:
        if kernel.takes(case):
            continue
        say(f"checking {kernel.name} {kernel.config} on {case.name}")
        operands = source.first(case)
        entry: dict[str, Any] = {
            "kernel": kernel.name,
            "config": kernel.config,
            "case": case.name,
            "tolerance": TOLERANCES[case.dtype],
        }
        try:
            out = kernel.prepare(operands)()
            error = relative_error(torch, out, reference(torch, operands))
        except Exception as problem:  # a peer may fail in any way; the rest goes on
            entry |= {"error": None, "ok": False, "raised": _short(problem)}
        else:
            entry |= {"error": error, "ok": error is not None and error <= entry["tolerance"]}
        results.append(entry)
    return results


def relative_error(torch: Any, out: Any, wanted: Any) -> float | None:
    """‖out − wanted‖ / ‖wanted‖ in float64; None if anything is not finite."""
    difference = (out.double() - wanted.double()).norm() / wanted.double().norm()
    value = float(difference)
    return float(f"{value:.3g}") if torch.isfinite(difference) else None


def _short(problem: Exception) -> str:
    text = f"{type(problem).__name__}: {problem}".replace("\n", " ")
    return text[:300]
