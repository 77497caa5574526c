"""``moesim capacity``: the deployment that serves a load within latency targets."""

from __future__ import annotations

import shlex
import sys
import time
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.cli.choices import FITTED, TransformOption, cost_option
from moesim.cli.console import Console, JsonOption, OutOption, QuietOption, SeedOption

if TYPE_CHECKING:
    from moesim.capacity.search import Answer

__all__ = ["capacity"]

_LOAD, _TARGETS, _SPACE = "Load", "Targets", "What may be used"


class ObjectiveOption(StrEnum):
    """What the best has least of."""

    DEVICES = "devices"
    COST = "cost"
    ENERGY = "energy"
    THROUGHPUT = "throughput"


class ModeOption(StrEnum):
    """How prefill and decode share devices."""

    AGGREGATED = "aggregated"
    DISAGGREGATED = "disaggregated"
    BOTH = "both"


class ServingEngineOption(StrEnum):
    """Engines by their policies."""

    VLLM = "vllm"
    SGLANG = "sglang"
    TRTLLM = "trtllm"
    TRTLLM_MAX_UTILIZATION = "trtllm-max-utilization"


def capacity(
    model: Annotated[str, typer.Option(help="Registry name, config.json or folder with one.")],
    devices: Annotated[
        str, typer.Option(help="Devices to choose from, like h200_sxm,b200_sxm (moesim hw list).")
    ],
    max_devices: Annotated[int, typer.Option(help="Most devices.", rich_help_panel=_SPACE)] = 64,
    concurrency: Annotated[
        int | None, typer.Option(help="Requests in flight, all replicas.", rich_help_panel=_LOAD)
    ] = None,
    rps: Annotated[
        float | None,
        typer.Option(help="Requests per second instead, at random.", rich_help_panel=_LOAD),
    ] = None,
    isl: Annotated[int, typer.Option(help="Input tokens.", rich_help_panel=_LOAD)] = 1024,
    osl: Annotated[int, typer.Option(help="Output tokens.", rich_help_panel=_LOAD)] = 1024,
    lengths: Annotated[
        str,
        typer.Option(
            help="constant, uniform:LOW or lognormal:CV around those.", rich_help_panel=_LOAD
        ),
    ] = "constant",
    ttft: Annotated[
        float | None, typer.Option(help="Time to first token, seconds.", rich_help_panel=_TARGETS)
    ] = None,
    tpot: Annotated[
        float | None, typer.Option(help="Time per output token, seconds.", rich_help_panel=_TARGETS)
    ] = None,
    percentile: Annotated[
        int,
        typer.Option(
            help="Of requests that keep each target: 50, 90 or 99; 0 is the mean.",
            rich_help_panel=_TARGETS,
        ),
    ] = 0,
    objective: Annotated[
        ObjectiveOption, typer.Option(help="What is to be least.", rich_help_panel=_TARGETS)
    ] = ObjectiveOption.DEVICES,
    mode: Annotated[
        ModeOption,
        typer.Option(help="One pool, prefill and decode workers, or both.", rich_help_panel=_SPACE),
    ] = ModeOption.BOTH,
    engine: Annotated[
        ServingEngineOption,
        typer.Option(help="Whose policy and kernels.", rich_help_panel=_SPACE),
    ] = ServingEngineOption.SGLANG,
    kv_dtypes: Annotated[
        str, typer.Option(help="Formats of the cache, like bfloat16,fp8.", rich_help_panel=_SPACE)
    ] = "bfloat16",
    redundant: Annotated[
        str,
        typer.Option(
            help="Numbers of redundant expert slots to try, like 0,32.", rich_help_panel=_SPACE
        ),
    ] = "0",
    routing: Annotated[
        str,
        typer.Option(
            help="balanced, uniform, zipf:S or power-law:A [uniform].", rich_help_panel=_SPACE
        ),
    ] = "uniform",
    cost: Annotated[str, cost_option(_SPACE)] = FITTED,
    price: Annotated[
        list[str] | None,
        typer.Option(help="DEVICE=USD per device and hour.", rich_help_panel=_SPACE),
    ] = None,
    transform: TransformOption = None,
    seed: SeedOption = 0,
    out: OutOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find the fewest, cheapest or most efficient devices and the layout that serve a load."""
    from moesim.capacity.detail import detail
    from moesim.capacity.document import capacity_json
    from moesim.capacity.frontier import crossovers, frontier
    from moesim.capacity.question import MODES, Question
    from moesim.capacity.search import answer
    from moesim.capacity.why import runners_up
    from moesim.cost_model import cost_model
    from moesim.errors import InfeasibleError

    console = Console(as_json=as_json, quiet=quiet)
    question = Question(
        model=model,
        devices=_names("--devices", devices),
        max_devices=max_devices,
        concurrency=concurrency,
        rps=rps,
        isl=isl,
        osl=osl,
        lengths=lengths,
        ttft_s=ttft,
        tpot_s=tpot,
        percentile=percentile,
        objective=objective.value,
        modes=tuple(one for one in MODES if mode.value in (one, "both")),
        engine=engine.value,
        kv_dtypes=_names("--kv-dtypes", kv_dtypes),
        redundant=_counts(redundant),
        routing=routing,
        cost=cost_model(cost),
        prices=_prices(price or []),
        transforms=tuple(transform or ()),
        seed=seed,
    )
    start = time.perf_counter()
    found = answer(question, console.say)
    points = frontier(found)
    solve_s = time.perf_counter() - start
    if found.best is None:
        raise InfeasibleError(_nothing(found))
    more = detail(found.best, question)
    data = capacity_json(found, points, crossovers(found), runners_up(found), more, solve_s)
    if out is not None:
        from moesim.reports.capacity_report import write_capacity_report

        command = shlex.join(["moesim", *sys.argv[1:]])
        files = write_capacity_report(
            out, data, more, found.best.plan.candidate.machine.device.memory_bytes, command
        )
        data["files"] = {name: str(path) for name, path in files.items()}
    console.result(data, lambda: _show(data))


def _names(option: str, text: str) -> tuple[str, ...]:
    from moesim.errors import UsageError

    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise UsageError(f"{option} names nothing\nfix: pass one or more names, like a,b")
    return names


def _counts(text: str) -> tuple[int, ...]:
    from moesim.errors import UsageError

    names = _names("--redundant", text)
    if not all(name.isdigit() and len(name) < 6 for name in names):
        raise UsageError(f"--redundant {text!r} is no list of numbers\nfix: pass e.g. 0,32")
    return tuple(int(name) for name in names)


def _prices(given: list[str]) -> dict[str, float]:
    from moesim.errors import UsageError

    prices = {}
    for text in given:
        name, _, usd = text.partition("=")
        try:
            prices[name.strip()] = float(usd)
        except ValueError:
            raise UsageError(
                f"--price {text!r} is no price\nfix: pass e.g. --price h200_sxm=3.5"
            ) from None
    return prices


def _nothing(found: Answer) -> str:
    """Why no deployment will do, and what came nearest."""
    question = found.question
    limit = f"at most {question.max_devices} × {', '.join(question.devices)}"
    if not found.candidates:
        first = found.refused[-1] if found.refused else None
        reason = f": {first.name} {first.reason}" if first else ""
        return (
            f"{found.model.name} fits on no layout of {limit}{reason}\n"
            "fix: allow more devices, others, or narrower formats"
        )
    nearest = "none comes near"
    if found.missed:
        played = found.missed[0]
        nearest = f"nearest is {played.plan.name} with {played.miss(question)}"
    elif found.curves:
        fastest = min(float(curve.tpot_s.min()) for _, curve in found.curves)
        nearest = f"no layout decodes faster than {fastest * 1e3:.3g} ms per token"
    return (
        f"no deployment of {limit} keeps the targets: {nearest}\n"
        "fix: relax --ttft or --tpot, lower the load, or allow more --max-devices"
    )


def _show(data: dict[str, object]) -> None:
    from rich.console import Console as RichConsole

    from moesim.cli.capacity_terminal import show_capacity

    show_capacity(data, RichConsole())
