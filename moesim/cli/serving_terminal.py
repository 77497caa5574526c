"""What ``moesim simulate serving`` prints: the headline, latencies, and how busy everything is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from moesim.cli.words import Words
from moesim.cost_model import cost_in_words
from moesim.model import load_model
from moesim.reports.text import percent
from moesim.serving.engines import find_engine
from moesim.units import format_seconds

if TYPE_CHECKING:
    from rich.console import Console

    from moesim.serving.request import ServingRequest
    from moesim.serving.run import Serving

__all__ = ["show_serving"]

_QUIET = "dim"


def show_serving(request: ServingRequest, found: Serving, console: Console) -> None:
    """Print a run for a person.

    Args:
        request: What was asked.
        found: The answer.
        console: Where to.
    """
    words = Words(console)
    metrics, pool = found.metrics, found.deployment.pool
    kernels = find_engine(request.engine).kernels
    model = load_model(request.model, dense=True, transforms=request.transforms)
    priced_by = cost_in_words(request.cost, model, found.formats.experts, kernels)
    console.print(words.paragraph(_headline(found), "bold"))
    console.print(words.paragraph(f"{_place(request, found)}; {_load(request, found)}."))
    console.print(
        words.paragraph(
            f"Cost {priced_by} (evidence {found.evidence}), engine {request.engine}, step times "
            f"{found.coefficients}; projections {found.formats.gemm}, experts "
            f"{found.formats.experts}, cache {found.formats.kv}; routing {request.routing}, "
            f"overlap {request.overlap}." + _drafts(request),
            _QUIET,
        )
    )
    console.print(_latencies(found, words))
    console.print(
        words.paragraph(
            f"{metrics.requests_per_s:.3g} requests/s; with prompts "
            f"{metrics.output_tokens_per_s + metrics.input_tokens_per_s:,.0f} tokens/s."
            + _goodput(request, found)
            + _energy(found)
        )
    )
    console.print(
        words.paragraph(
            f"{metrics.steps:,} steps, busy {percent(metrics.busy_share)} of the time, "
            f"{metrics.mean_decode_sequences:.0f} sequences in a step that decodes; "
            f"{metrics.waiting_mean:.1f} requests in queues on average, {metrics.waiting_max} at "
            f"most."
        )
    )
    preempted = f"; {metrics.preemptions:,} preemptions" if metrics.preemptions else ""
    console.print(
        words.paragraph(
            f"KV cache of {pool.kv_tokens * pool.groups * pool.workers:,} tokens: "
            f"{percent(metrics.kv_share_mean)} held on average, "
            f"{percent(metrics.kv_share_max)} at most{preempted}."
        )
    )


def _drafts(request: ServingRequest) -> str:
    if not request.draft_tokens:
        return ""
    return (
        f" {request.draft_tokens} drafts per step, {request.tokens_per_step:.2f} tokens; drafted "
        "by the model's own layers, or in no time where it has none."
    )


def _headline(found: Serving) -> str:
    metrics = found.metrics
    first = f"first token after {format_seconds(metrics.ttft.mean)}"
    first += f" ({_ends(found.ttft_interval_s)})"
    each = ""
    if metrics.tpot is not None and found.tpot_interval_s is not None:
        each = f", then one per {format_seconds(metrics.tpot.mean)}"
        each += f" ({_ends(found.tpot_interval_s)})"
    rate = metrics.output_tokens_per_s
    rates = f"{rate:,.0f} tokens/s, {rate / found.devices:,.0f} per device"
    return f"{found.model}: {rates}; {first}{each}"


def _ends(interval_s: tuple[float, float]) -> str:
    return " … ".join(format_seconds(end) for end in interval_s)


def _place(request: ServingRequest, found: Serving) -> str:
    text = f"{request.pool.workers} × {request.pool.cluster}, {found.layout}"
    if request.prefill is not None:
        text = (
            f"{request.prefill.workers} × {request.prefill.cluster}, {found.prefill_layout}, "
            f"prefill for {text}"
        )
    return text


def _load(request: ServingRequest, found: Serving) -> str:
    run, load = found.schedule, request.load
    if load.concurrency is not None:
        comes = f"{load.concurrency:,} in flight"
    elif load.rps is not None:
        comes = f"{load.rps:g} per second"
    else:
        comes = f"as recorded in {load.file}"
    return (
        f"{run.requests:,} requests, {comes}, with {run.input_tokens.mean():,.0f} tokens in and "
        f"{run.output_tokens.mean():,.0f} out on average"
    )


def _energy(found: Serving) -> str:
    energy = found.energy
    if energy is None:
        return " Nothing is known of the devices' power."
    ends = f"{energy.lo_j_per_token:.3g} … {energy.hi_j_per_token:.3g}"
    return (
        f" {energy.j_per_token:.3g} J per output token ({ends}), {energy.device_w:,.0f} W a device."
    )


def _goodput(request: ServingRequest, found: Serving) -> str:
    targets, metrics = request.targets, found.metrics
    if targets.ttft_s is None and targets.tpot_s is None:
        return ""
    limits = " and ".join(
        f"{name} ≤ {format_seconds(limit)}"
        for name, limit in (("TTFT", targets.ttft_s), ("TPOT", targets.tpot_s))
        if limit is not None
    )
    return (
        f" Of all, {percent(metrics.good_share)} keep {limits}: "
        f"{metrics.good_requests_per_s:.3g} good requests/s."
    )


def _latencies(found: Serving, words: Words) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for index, name in enumerate(("latency", "mean", "p50", "p90", "p99", "max")):
        table.add_column(words(name, _QUIET), justify="right" if index else "left", no_wrap=True)
    metrics = found.metrics
    for name, latency in (
        ("time to first token", metrics.ttft),
        ("of it in the queue", metrics.queue),
        ("per output token", metrics.tpot),
        ("between tokens", metrics.itl),
        ("whole request", metrics.e2e),
    ):
        if latency is None:
            continue
        times = (latency.mean, latency.p50, latency.p90, latency.p99, latency.max)
        cells = (name, *(format_seconds(time, pad=True) for time in times))
        table.add_row(*map(words, cells))
    return table
