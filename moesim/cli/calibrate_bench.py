"""``moesim calibrate fit`` and ``evaluate`` on a file that ``moesim kernels bench`` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moesim.calibrate.fit_grouped import HeldOutKernels
    from moesim.operators.grouped_gemm import GroupedFits

__all__ = ["evaluate_bench", "fit_bench"]

EVALUATE_SCHEMA = "moesim.calibrate/1"
FIT_SCHEMA = "moesim.calibrate-fit/1"


def evaluate_bench(source: str | Path, seed: int) -> tuple[dict[str, Any], str]:
    """Score the cost model on a benchmark's file: every case is held out once.

    Returns:
        The result as data (``moesim.calibrate/1``) and as text.

    Raises:
        InputError: If the file is none, or holds too little.
    """
    from moesim.calibrate.fit_grouped import fit_work, held_out_kernels
    from moesim.calibrate.grouped_file import read_times

    document, times = read_times(source)
    scores = held_out_kernels(times, seed)
    coefficients = {
        kernel.name: fit_work(kernel.work, kernel.time_s, kernel.serial)[0] for kernel in times
    }
    result: dict[str, Any] = {
        "schema": EVALUATE_SCHEMA,
        "ok": True,
        "source": str(source),
        "operator": "grouped_gemm",
        "systems": [document["system"]],
        "split": "leave-case-out",
        "seed": seed,
        "residual": False,
        "cases": scores.cases,
        **scores.all.to_dict(),
        "by_regime": {name: part.to_dict() for name, part in scores.by_kernel.items()},
        "coefficients": {name: c.model_dump(mode="json") for name, c in coefficients.items()},
    }
    described = document["environment"]
    machine = described.get("gpu", described["processor"])
    return result, "\n".join(_score_lines(f"{machine}, clock {described.get('clock', '')}", scores))


def fit_bench(source: str | Path, out: Path) -> tuple[dict[str, Any], str]:
    """Fit every kernel of a benchmark's file and write ``SYSTEM.grouped-gemm.json``.

    Returns:
        The result as data (``moesim.calibrate-fit/1``) and as text.

    Raises:
        InputError: If the file is none, or holds too little.
    """
    from moesim.calibrate.grouped_file import fit_file
    from moesim.safe_io import write_json

    fits = fit_file(source)
    file = write_json(out / f"{fits.system}.grouped-gemm.json", fits.to_dict())
    result: dict[str, Any] = {
        "schema": FIT_SCHEMA,
        "ok": True,
        "operator": "grouped_gemm",
        "file": str(file),
        "rows": sum(fit.rows for fit in fits.fits),
        "fits": len(fits.fits),
        "on_bounds": {f"{f.kernel}/{f.op}": list(f.at_bound) for f in fits.fits if f.at_bound},
    }
    lines = [*_fit_lines(fits), "", f"written: {file}"]
    if fits.device == "cuda":
        lines.append(f"prices experts in plan, simulate and capacity: --cost {file}")
    return result, "\n".join(lines)


def _score_lines(machine: str, scores: HeldOutKernels) -> list[str]:
    lines = [
        f"{machine}: {scores.cases} cases, each held out once",
        f"{'kernel':<44}{'calls':>7}{'median':>9}{'p90':>9}{'MAPE':>9}",
    ]
    for name, part in (("all", scores.all), *scores.by_kernel.items()):
        values = (part.median_ape, part.p90_ape, part.mape)
        cells = "".join(f"{'-':>9}" if value is None else f"{value:>9.1%}" for value in values)
        lines.append(f"{name:<44}{part.rows:>7}{cells}")
    return lines


def _fit_lines(fits: GroupedFits) -> list[str]:
    from moesim.units import format_si

    lines = [
        f"{'kernel':<44}{'calls':>7}{'arithmetic':>16}{'weights':>12}{'per call':>11}"
        f"{'per expert':>12}{'tile':>6}{'p':>6}"
    ]
    for fit in fits.fits:
        c = fit.coefficients
        name = "/".join((fit.kernel, fit.op, fit.dtype))
        lines.append(
            f"{name:<44}{fit.rows:>7}{format_si(c.flop_per_s, 'FLOP/s'):>16}"
            f"{format_si(c.weight_bytes_per_s, 'B/s'):>12}{format_si(c.call_s, 's'):>11}"
            f"{format_si(c.expert_s, 's'):>12}{c.tile_rows:>6}{c.overlap_exponent:>6.2f}"
        )
        if fit.at_bound:
            lines.append(f"      on a bound: {', '.join(fit.at_bound)}")
    return lines
