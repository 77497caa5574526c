"""``moesim calibrate measure``: time expert layers and memory on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.console import Console, JsonOption, OutOption, QuietOption, SeedOption

if TYPE_CHECKING:
    from moesim.calibrate.measurements import Measurements
    from moesim.calibrate.score_cpu import HeldOut
    from moesim.operators.cpu_experts import CpuExpertProfile

__all__ = ["evaluate_measurements", "fit_measurements", "measure"]

SCHEMA = "moesim.calibrate-measure/1"
EVALUATE_SCHEMA = "moesim.calibrate/1"
FIT_SCHEMA = "moesim.calibrate-fit/1"
FILE_NAME = "measurements.json"


def measure(
    device: Annotated[str, typer.Option(help="What to measure: cpu or cuda.")] = "cpu",
    minutes: Annotated[float, typer.Option(help="Time for all of it.")] = 3.0,
    threads: Annotated[
        int | None,
        typer.Option(help="Threads; without it all, or on a busy machine one.", min=1),
    ] = None,
    clock: Annotated[
        str | None,
        typer.Option(help="wall, or thread-cpu (with one thread the usual one)."),
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="Name of the machine in files; its processor's without it.")
    ] = None,
    out: OutOption = None,
    profile: Annotated[
        Path | None,
        typer.Option(help="File that receives the fitted coefficients (moesim.cpu-experts/1)."),
    ] = None,
    device_profile: Annotated[
        Path | None,
        typer.Option(help="File that receives a device profile with the measured rates (JSON)."),
    ] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Time grouped expert layers, memory reads and copies here, and say how well a fit predicts.

    The measurements go to measurements.json here, or where --out says. Ctrl-C keeps what was
    measured so far. On a busy machine one thread is timed by its own processor time.
    """
    from moesim.calibrate.measure import MeasureOptions
    from moesim.calibrate.measure import measure as run_measurement
    from moesim.safe_io import write_json

    console = Console(as_json=as_json, quiet=quiet)
    target = _target(out)
    options = MeasureOptions(
        device=device,
        minutes=minutes,
        seed=seed,
        threads=threads,
        clock=_clock(clock),
        system=system,
        command=" ".join(["moesim", *sys.argv[1:]]),
    )
    with console.progress("measuring") as step:
        measured = run_measurement(options, lambda share, text: step(f"{share:.0%} {text}"))
    write_json(target, measured.to_dict())
    console.say(f"written: {target} ({len(measured.points)} points)")
    for note in measured.notes:
        console.say(note)
    if measured.interrupted:
        raise typer.Exit(130)
    with console.progress("fitting") as step:
        result, text, fitted = _scored(measured, target, seed, step, console)
        for file, document in _documents(measured, fitted, profile, device_profile):
            console.say(f"written: {write_json(file, document)}")
    console.result(result, text)


def evaluate_measurements(source: str | Path, seed: int) -> tuple[dict[str, Any], str]:
    """Score the cost model on a measurements file: every shape is held out once.

    Returns:
        The result as data (``moesim.calibrate/1``, with the roofline's errors) and as text.

    Raises:
        InputError: If the file is none, or holds too little.
    """
    from moesim.calibrate.fit_cpu import CPU_EXPERTS
    from moesim.calibrate.measurements import Measurements
    from moesim.calibrate.score_cpu import held_out, repeat_noise

    table = CPU_EXPERTS.load(source)
    measured = Measurements.load(source)
    scores = held_out(measured, seed)
    fits = CPU_EXPERTS.fit(table, table.frame["latency_s"] > 0)
    result: dict[str, Any] = {
        "schema": EVALUATE_SCHEMA,
        "ok": True,
        "source": str(source),
        "operator": CPU_EXPERTS.name,
        "systems": [measured.system],
        "split": "leave-shape-out",
        "seed": seed,
        "residual": False,
        **scores.to_dict(),
        "noise": repeat_noise(measured),
        "coefficients": {name: fit.model_dump(mode="json") for name, fit in fits.items()},
    }
    return result, "\n".join(_score_lines(scores))


def fit_measurements(source: str | Path, out: Path, seed: int = 0) -> tuple[dict[str, Any], str]:
    """Fit a measurements file and write ``SYSTEM.cpu-experts.json`` and the device profile.

    Returns:
        The result as data (``moesim.calibrate-fit/1``) and as text.

    Raises:
        InputError: If the file is none, or holds too little.
    """
    from moesim.calibrate.cpu_device import measured_device
    from moesim.calibrate.fit_cpu import CPU_EXPERTS
    from moesim.calibrate.measurements import Measurements
    from moesim.calibrate.score_cpu import fit_profile, held_out
    from moesim.safe_io import write_json

    rows = len(CPU_EXPERTS.load(source).frame)
    measured = Measurements.load(source)
    profile = fit_profile(measured, held_out(measured, seed))
    file = write_json(out / f"{profile.system}.cpu-experts.json", profile.to_dict())
    device = measured_device(measured, profile)
    device_file = write_json(out / f"{device.name}.json", device.to_dict())
    result: dict[str, Any] = {
        "schema": FIT_SCHEMA,
        "ok": True,
        "operator": CPU_EXPERTS.name,
        "file": str(file),
        "device_file": str(device_file),
        "rows": rows,
        "rows_dropped": sum(1 for point in measured.points if point.noisy is not None),
        "fits": len(profile.fits),
        "on_bounds": {f.coefficients.dtype: list(f.at_bound) for f in profile.fits if f.at_bound},
    }
    return result, "\n".join([*_fit_lines(profile), "", f"written: {file}, {device_file}"])


def _target(out: Path | None) -> Path:
    """The file to write, checked before minutes are spent on measuring."""
    from moesim.errors import InputError

    target = out or Path()
    if target.suffix != ".json":
        target = target / FILE_NAME
    nearest = target.parent
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir() or not os.access(nearest, os.W_OK) or target.is_dir():
        raise InputError("cannot be written", file=target, fix="choose another --out")
    return target


def _clock(name: str | None) -> Any:
    from moesim.errors import UsageError

    if name not in (None, "wall", "thread-cpu", "cuda-event"):
        raise UsageError(f"unknown clock {name}\nfix: use --clock wall or thread-cpu")
    return name


def _scored(
    measured: Measurements, target: Path, seed: int, step: Any, console: Console
) -> tuple[dict[str, Any], str, CpuExpertProfile | None]:
    """The result as data and as text, and the fit; without these where points are too few."""
    from moesim.calibrate.score_cpu import fit_profile, held_out, repeat_noise
    from moesim.errors import InputError, MissingExtraError

    noise = repeat_noise(measured)
    profile, scores = None, None
    if measured.device == "cpu":
        try:
            profile = fit_profile(measured)
            step("predicting held-out shapes")
            scores = held_out(measured, seed)
            profile = profile.model_copy(update={"intervals": scores.intervals})
        except (InputError, MissingExtraError) as error:
            console.say(f"not scored: {error}")
    rates = {
        kind: measured.bandwidth_bytes_per_s(kind)
        for kind in ("read", "copy", "host-to-device", "device-to-host")
    }
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "ok": True,
        "file": str(target),
        "system": measured.system,
        "device": measured.device,
        "environment": measured.environment.model_dump(mode="json"),
        "planned": measured.planned,
        "rounds": measured.rounds,
        "slow_rounds": list(measured.slow_rounds),
        "noise": noise,
        "bytes_per_s": {kind: rate for kind, rate in rates.items() if rate is not None},
        "held_out": None if scores is None else scores.to_dict(),
        "fits": [] if profile is None else [fit.model_dump(mode="json") for fit in profile.fits],
        "notes": list(measured.notes),
    }
    return result, _text(measured, noise, rates, profile, scores), profile


def _documents(
    measured: Measurements,
    fitted: CpuExpertProfile | None,
    profile: Path | None,
    device_profile: Path | None,
) -> list[tuple[Path, dict[str, Any]]]:
    """What the options ask to be written."""
    if profile is None and device_profile is None:
        return []
    from moesim.calibrate.cpu_device import measured_device
    from moesim.errors import PartialResultError

    if fitted is None:
        raise PartialResultError(
            "the measurements are saved, but nothing was fitted of them\n"
            "fix: measure a CPU, for longer, with the extra measured installed"
        )
    documents = [] if profile is None else [(profile, fitted.to_dict())]
    if device_profile is not None:
        documents.append((device_profile, measured_device(measured, fitted).to_dict()))
    return documents


def _text(
    measured: Measurements,
    noise: dict[str, float | int],
    rates: dict[str, float | None],
    profile: CpuExpertProfile | None,
    scores: HeldOut | None,
) -> str:
    """The result for people."""
    from moesim.units import format_si

    environment = measured.environment
    load = ", ".join(f"{value:.1f}" for value in environment.load_average) or "unknown"
    lines = [
        f"{environment.processor}: {environment.threads} of {environment.processors_usable} "
        f"processors, clock {environment.clock}, load {load}",
        f"{noise['points']} points of {measured.planned}, {measured.rounds} rounds; spread of "
        f"repeats {noise['iqr_over_median_median']:.1%} (median), "
        f"{noise['iqr_over_median_p90']:.1%} (p90); {noise['set_aside']} points set aside",
        ", ".join(f"{kind} {format_si(r, 'B/s')}" for kind, r in rates.items() if r is not None),
    ]
    if profile is not None:
        lines += ["", *_fit_lines(profile)]
    if scores is not None:
        lines += ["", *_score_lines(scores)]
    return "\n".join(lines)


def _fit_lines(profile: CpuExpertProfile) -> list[str]:
    """Coefficients as a table."""
    from moesim.units import format_si

    lines = [
        f"{'type':<6}{'points':>7}{'arithmetic':>16}{'few rows':>20}{'weights':>12}"
        f"{'packing':>12}{'per expert':>12}{'p':>6}"
    ]
    for fit in profile.fits:
        c = fit.coefficients
        packing = format_si(c.pack_bytes_per_s, "B/s") if c.pack_bytes_per_s else "-"
        few = f"≤{c.few_rows}: {format_si(c.few_rows_flop_per_s, 'FLOP/s')}"
        lines.append(
            f"{c.dtype:<6}{fit.rows:>7}{format_si(c.flop_per_s, 'FLOP/s'):>16}"
            f"{few if c.few_rows else '-':>20}{format_si(c.memory_bytes_per_s, 'B/s'):>12}"
            f"{packing:>12}{format_si(c.expert_s, 's'):>12}{c.overlap_exponent:>6.2f}"
        )
        if fit.at_bound:
            lines.append(f"      on a bound: {', '.join(fit.at_bound)}")
        if fit.undetermined:
            lines.append(f"      without influence on these points: {', '.join(fit.undetermined)}")
    return lines


def _score_lines(scores: HeldOut) -> list[str]:
    """Errors on held-out shapes as a table."""
    head = f"held out, {scores.shapes} shapes"
    lines = [f"{head:<36}{'median':>8}{'p90':>8}{'MAPE':>8}"]
    for name, part in (
        ("this fit", scores.ours),
        ("  with the points set aside", scores.ours_with_noisy),
        ("max-roofline, fitted alike", scores.roofline),
        *((f"  {name}", part) for name, part in scores.by_regime.items()),
    ):
        figures = (part.median_ape, part.p90_ape, part.mape)
        cells = "".join("       -" if value is None else f"{value:>8.1%}" for value in figures)
        lines.append(f"{name:<36}{cells}   {part.rows} points")
    if scores.ratio is not None:
        lines.append(f"median error over the roofline's: {scores.ratio:.2f}")
    if scores.ours.interval_coverage is not None:
        lines.append(f"80 % intervals hold {scores.ours.interval_coverage:.0%}")
    return lines
