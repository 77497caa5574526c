"""``moesim trace stats``: what a trace says about its workload."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.console import Console, JsonOption, NoSeedOption, OutOption, QuietOption
from moesim.cli.executor_options import AddressOption, JobsOption
from moesim.executors.protocol import ExecutorName

if TYPE_CHECKING:
    import numpy as np

    from moesim.traces.bundle import Trace

__all__ = ["stats"]


def stats(
    trace: Annotated[
        Path | None, typer.Argument(help="Trace folder; the bundled sample if not given.")
    ] = None,
    window_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens per window when looking for drift.")
    ] = 4096,
    threads: Annotated[int, typer.Option(min=1, help="Layers counted at once.")] = 1,
    executor: Annotated[
        ExecutorName, typer.Option(help="This process alone, worker processes, or Ray.")
    ] = ExecutorName.SERIAL,
    address: AddressOption = None,
    jobs: JobsOption = None,
    as_json: JsonOption = False,
    seed: NoSeedOption = 0,
    out: OutOption = None,
    quiet: QuietOption = False,
) -> None:
    """Loads, imbalance, drift and inter-layer affinity of a trace.

    With --out, the full tables are written there as .npy files and the summary as statistics.json.
    """
    from moesim.errors import UsageError
    from moesim.executors.protocol import open_executor
    from moesim.safe_io import write_json, write_npy
    from moesim.traces import spread, statistics
    from moesim.traces.bundle import open_trace, sample_path

    if executor is not ExecutorName.SERIAL and threads > 1:
        raise UsageError(
            f"--threads are of this process, and --executor {executor} computes in others\n"
            "fix: pass --jobs instead of --threads"
        )
    console = Console(as_json=as_json, quiet=quiet)
    opened = open_trace(sample_path() if trace is None else trace)
    with open_executor(executor, jobs, address) as workers, console.progress("loads") as step:
        module: Any = spread if workers.workers else statistics
        how: dict[str, Any] = {"executor": workers} if workers.workers else {"threads": threads}
        tables = {"loads": module.loads(opened, **how)}
        step("loads by window")
        tables["windowed_loads"] = module.windowed_loads(opened, window_tokens, **how)
        step("transitions between layers")
        tables["transitions"] = module.transitions(opened, **how)
        if out is not None:
            step("co-activation")
            tables["coactivation"] = module.coactivation(opened, **how)
        step("domains")
        domains = _domain_loads(opened, console, threads)
    result = _summary(opened, window_tokens, tables, domains)
    if out is not None:
        files = {name: write_npy(out / f"{name}.npy", table) for name, table in tables.items()}
        files["statistics"] = out / "statistics.json"
        result["files"] = {name: str(file) for name, file in files.items()}
        write_json(files["statistics"], result)
    console.result(result, _text(result))


def _domain_loads(trace: Trace, console: Console, threads: int) -> dict[str, np.ndarray]:
    from moesim.errors import MissingExtraError
    from moesim.traces.statistics import domain_loads

    try:
        return domain_loads(trace, threads=threads)
    except MissingExtraError as error:
        console.say(f"domains are left out: {error}")
        return {}


def _summary(
    trace: Trace,
    window_tokens: int,
    tables: dict[str, np.ndarray],
    domains: dict[str, np.ndarray],
) -> dict[str, Any]:
    import numpy as np

    from moesim.traces.statistics import drift, imbalance, mutual_information

    manifest, loads = trace.manifest, tables["loads"]
    uneven, moves = imbalance(loads), drift(tables["windowed_loads"])
    has_steps = len(tables["windowed_loads"]) > 1
    assignments = int(loads.sum())

    def per_layer(values: np.ndarray) -> list[float]:
        return [float(value) for value in values]

    def over_windows(values: np.ndarray) -> list[float] | None:
        return per_layer(values.mean(axis=0)) if has_steps else None

    # Each domain against all tokens: two "windows", of which the second is everything.
    distances = {
        name: drift(np.stack([counts, loads])).total_variation[0].mean()
        for name, counts in domains.items()
    }
    return {
        "schema": "moesim.trace/1",
        "ok": True,
        "model": manifest.model,
        "layers": manifest.layers,
        "moe_layers": list(manifest.moe_layers),
        "tokens": manifest.tokens,
        "top_k": manifest.top_k,
        "experts": manifest.experts,
        "assignments": assignments,
        "ignored": trace.routing.size - assignments,
        "loads": loads.tolist(),
        "imbalance": {
            "mean_over_max": per_layer(uneven.mean_over_max),
            "max_over_mean": per_layer(uneven.max_over_mean),
            "imbalance_ratio": per_layer(uneven.imbalance_ratio),
            "gini": per_layer(uneven.gini),
        },
        "drift": {
            "window_tokens": window_tokens,
            "windows": len(tables["windowed_loads"]),
            "total_variation": over_windows(moves.total_variation),
            "jensen_shannon": over_windows(moves.jensen_shannon),
            "total_variation_from_whole": over_windows(moves.total_variation_from_whole),
            "jensen_shannon_from_whole": over_windows(moves.jensen_shannon_from_whole),
            "top": moves.top,
            "top_churn": over_windows(moves.top_churn),
        },
        "mutual_information_bits": per_layer(mutual_information(tables["transitions"])),
        "domains": {
            name: {
                "assignments": int(counts.sum()),
                "total_variation_from_whole": float(distances[name]),
            }
            for name, counts in domains.items()
        },
    }


def _text(result: dict[str, Any]) -> str:
    moves, uneven = result["drift"], result["imbalance"]
    lines = [
        f"{result['model']}: {result['layers']} MoE layers, {result['experts']} experts, "
        f"top-{result['top_k']}, {result['tokens']} tokens",
        f"{result['assignments']} token assignments, {result['ignored']} entries ignored",
        "",
        f"{'layer':>6} {'max/mean':>9} {'mean/max':>9} {'Gini':>6} "
        f"{'TV':>6} {'JS':>6} {'churn':>6} {'MI bits':>8}",
    ]
    for row, layer in enumerate(result["moe_layers"]):
        cells = [f"{layer:>6}", f"{uneven['max_over_mean'][row]:>9.2f}"]
        cells += [f"{uneven['mean_over_max'][row]:>9.3f}", f"{uneven['gini'][row]:>6.3f}"]
        for name in ("total_variation", "jensen_shannon", "top_churn"):
            cells.append("     –" if moves[name] is None else f"{moves[name][row]:>6.3f}")
        bits = result["mutual_information_bits"]
        cells.append(f"{bits[row]:>8.3f}" if row < len(bits) else "       –")
        lines.append(" ".join(cells))
    lines += [
        "",
        f"TV, JS, churn: mean total variation and Jensen–Shannon distance between consecutive "
        f"windows of {moves['window_tokens']} tokens",
        f"({moves['windows']} windows), and the part of the {moves['top']} most loaded experts "
        "that the next window's lack;",
        "MI: mutual information of the experts of a token in this layer and the next.",
    ]
    if result["domains"]:
        width = max(len(name) for name in result["domains"])
        lines += ["", f"{'domain':<{width}} {'assignments':>12}  TV from the whole trace"]
        lines += [
            f"{name:<{width}} {domain['assignments']:>12}  "
            f"{domain['total_variation_from_whole']:.3f}"
            for name, domain in result["domains"].items()
        ]
    if "files" in result:
        lines += ["", *(f"wrote {file}" for file in result["files"].values())]
    return "\n".join(lines)
