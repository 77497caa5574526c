"""``moesim simulate pim``: continuous batching on devices with a processor near the memory."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.console import Console, JsonOption, QuietOption, ResultOutOption, SeedOption
from moesim.errors import UsageError

if TYPE_CHECKING:
    from moesim.pim.closed_loop import LoopResult

__all__ = ["pim"]

WAYS = {
    "main": "the main processor alone",
    "choose": "attention and experts on the faster one",
    "split": "experts divided between both",
    "split-et": "the same, experts cut over all devices",
}


def pim(
    model: Annotated[str, typer.Option(help="Registry name, config.json or folder.")],
    cluster: Annotated[
        str, typer.Option(help="Like 4xduplex, 4xduplex_bank_pim or 4xduplex_bankgroup_pim.")
    ] = "4xduplex",
    isl: Annotated[int, typer.Option(help="Mean prompt tokens.", min=1)] = 1024,
    osl: Annotated[int, typer.Option(help="Mean answer tokens.", min=2)] = 1024,
    batch: Annotated[int, typer.Option(help="Most requests at once.", min=1)] = 32,
    rps: Annotated[
        float | None, typer.Option(help="Poisson arrivals per second; else a closed loop.")
    ] = None,
    seed: SeedOption = 0,
    out: ResultOutOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Serve requests with and without the second processor, and compare.

    Operations per byte decide where a call runs; co-processing divides experts by a split table,
    and keeps both processors out of one memory space at a time (Duplex, arXiv 2409.01141).
    """
    import moesim
    from moesim.cluster import load_cluster
    from moesim.model import load_model
    from moesim.pim.closed_loop import run_loop
    from moesim.pim.processors import break_even_op_per_byte, processors_of
    from moesim.pim.systems import system_pricer

    if rps is not None and rps <= 0:
        raise UsageError(f"--rps must be above 0; found {rps}\nfix: pass --rps 4")
    console = Console(as_json=as_json, quiet=quiet, out=out)
    spec, place = load_model(model, dense=True), load_cluster(cluster)
    main, near = processors_of(place.device)
    found: dict[str, LoopResult] = {}
    with console.progress("serving") as say:
        for way in WAYS:
            say(WAYS[way])
            pricer = system_pricer(spec, place, way, seed=seed)
            found[way] = run_loop(pricer, isl, osl, batch, arrivals_per_s=rps, seed=seed)
    data: dict[str, Any] = {
        "schema": "moesim.simulate/1",
        "ok": True,
        "simulation": "pim",
        "model": spec.name,
        "cluster": cluster,
        "near_processor": near.name,
        "break_even_op_per_byte": break_even_op_per_byte(main, near),
        "isl": isl,
        "osl": osl,
        "batch": batch,
        "rps": rps,
        "ways": {way: asdict(result) for way, result in found.items()},
        "evidence": "spec",
        "seed": seed,
        "version": moesim.__version__,
    }
    console.result(data, _text(data, found))


def _text(data: dict[str, Any], found: dict[str, LoopResult]) -> str:
    base = found["main"]
    lines = [
        f"{data['model']} on {data['cluster']}, {data['isl']} tokens in and {data['osl']} out, "
        f"batch {data['batch']}; {data['near_processor']} is faster below "
        f"{data['break_even_op_per_byte']:.3g} Op/B",
        f"{'':<40}{'tokens/s':>10}{'gain':>8}{'TBT p50':>10}{'TBT p99':>10}{'J/token':>9}",
    ]
    for way, one in found.items():
        lines.append(
            f"{WAYS[way]:<40}{one.tokens_per_s:>10,.0f}"
            f"{one.tokens_per_s / base.tokens_per_s:>7.2f}×"
            f"{1e3 * one.tbt_p50_s:>7.2f} ms{1e3 * one.tbt_p99_s:>7.1f} ms"
            f"{one.joules_per_token:>9.3g}"
        )
    return "\n".join(lines)
