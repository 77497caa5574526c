"""``moesim simulate serving``: requests over time on replicas of an engine."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.choices import FITTED, DispatchOption, OverlapOption, TransformOption, cost_option
from moesim.cli.console import Console, JsonOption, QuietOption, ResultOutOption, SeedOption

if TYPE_CHECKING:
    from moesim.serving.metrics import Distribution
    from moesim.serving.request import ServingRequest
    from moesim.serving.run import Serving

__all__ = ["serving"]


class ServingEngineOption(StrEnum):
    """Whose policy and kernels."""

    SGLANG = "sglang"
    TRTLLM = "trtllm"
    TRTLLM_MAX_UTILIZATION = "trtllm-max-utilization"
    VLLM = "vllm"


class RouterOption(StrEnum):
    """How requests find a replica."""

    LEAST_LOADED = "least-loaded"
    ROUND_ROBIN = "round-robin"


_LOAD, _LAYOUT, _ENGINE = "Load", "Replicas and layout", "Engine"


def serving(
    model: Annotated[str, typer.Option(help="Registry name, config.json or folder with one.")],
    cluster: Annotated[
        str, typer.Option(help="Devices of one replica, like 8xh200_sxm, or YAML; all are used.")
    ],
    concurrency: Annotated[
        int | None,
        typer.Option(help="Closed loop: requests in flight.", rich_help_panel=_LOAD),
    ] = None,
    rps: Annotated[
        float | None,
        typer.Option(help="Open loop: requests per second.", rich_help_panel=_LOAD),
    ] = None,
    requests_file: Annotated[
        Path | None,
        typer.Option(
            help="Recorded requests: Azure CSV, Mooncake JSON lines, or a CSV with arrival_s, "
            "input_tokens, output_tokens.",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option(
            help="How many [10 per slot; 2000 in an open loop; all of a file].",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    isl: Annotated[int, typer.Option(help="Nominal input tokens.", rich_help_panel=_LOAD)] = 1024,
    osl: Annotated[int, typer.Option(help="Nominal output tokens.", rich_help_panel=_LOAD)] = 1024,
    lengths: Annotated[
        str,
        typer.Option(
            help="constant, uniform:LOW (share of nominal) or lognormal:CV.",
            rich_help_panel=_LOAD,
        ),
    ] = "uniform:0.8",
    burstiness: Annotated[
        float,
        typer.Option(
            help="Gamma shape of gaps in an open loop; 1 is Poisson, less is burstier.",
            rich_help_panel=_LOAD,
        ),
    ] = 1.0,
    speed: Annotated[
        float, typer.Option(help="Play a recording so much faster.", rich_help_panel=_LOAD)
    ] = 1.0,
    prefix_hit: Annotated[
        float, typer.Option(help="Share of prompts found in the cache.", rich_help_panel=_LOAD)
    ] = 0.0,
    warmup: Annotated[
        int, typer.Option(help="First requests that do not count.", rich_help_panel=_LOAD)
    ] = 0,
    ttft: Annotated[
        float | None,
        typer.Option(help="Goodput: longest time to first token, s.", rich_help_panel=_LOAD),
    ] = None,
    tpot: Annotated[
        float | None,
        typer.Option(help="Goodput: longest time per output token, s.", rich_help_panel=_LOAD),
    ] = None,
    replicas: Annotated[
        int,
        typer.Option(help="Replicas; decode workers, if others prefill.", rich_help_panel=_LAYOUT),
    ] = 1,
    router: Annotated[
        RouterOption, typer.Option(help="How requests find one.", rich_help_panel=_LAYOUT)
    ] = RouterOption.LEAST_LOADED,
    tp: Annotated[
        int | None,
        typer.Option(
            help="Devices that share attention heads [all without --dp].",
            rich_help_panel=_LAYOUT,
        ),
    ] = None,
    dp: Annotated[
        int | None,
        typer.Option(help="Attention groups with own sequences.", rich_help_panel=_LAYOUT),
    ] = None,
    ep: Annotated[
        int | None,
        typer.Option(
            help="Devices that share the experts [1; all with --dp].", rich_help_panel=_LAYOUT
        ),
    ] = None,
    moe_tp: Annotated[
        int | None, typer.Option(help="Devices that share an expert.", rich_help_panel=_LAYOUT)
    ] = None,
    pp: Annotated[int, typer.Option(help="Pipeline stages.", rich_help_panel=_LAYOUT)] = 1,
    dispatch: Annotated[
        DispatchOption | None,
        typer.Option(
            help="How tokens reach experts [what the layout and engine suggest].",
            rich_help_panel=_LAYOUT,
        ),
    ] = None,
    redundant: Annotated[
        int,
        typer.Option(
            help="Expert slots beyond one per expert, over the devices of a worker.",
            rich_help_panel=_LAYOUT,
        ),
    ] = 0,
    prefill_workers: Annotated[
        int | None,
        typer.Option(
            help="Workers that prefill alone; the replicas then decode.", rich_help_panel=_LAYOUT
        ),
    ] = None,
    prefill_cluster: Annotated[
        str | None,
        typer.Option(help="Devices of one of those [--cluster].", rich_help_panel=_LAYOUT),
    ] = None,
    prefill_tp: Annotated[
        int | None, typer.Option(help="As --tp, of those.", rich_help_panel=_LAYOUT)
    ] = None,
    prefill_dp: Annotated[
        int | None, typer.Option(help="As --dp, of those.", rich_help_panel=_LAYOUT)
    ] = None,
    prefill_ep: Annotated[
        int | None, typer.Option(help="As --ep, of those.", rich_help_panel=_LAYOUT)
    ] = None,
    prefill_pp: Annotated[
        int, typer.Option(help="As --pp, of those.", rich_help_panel=_LAYOUT)
    ] = 1,
    transfer: Annotated[
        str | None,
        typer.Option(
            help="Rate at which one sends caches, like '400 GB/s' [its network cards].",
            rich_help_panel=_LAYOUT,
        ),
    ] = None,
    engine: Annotated[
        ServingEngineOption, typer.Option(help="Whose policy and kernels.", rich_help_panel=_ENGINE)
    ] = ServingEngineOption.SGLANG,
    token_budget: Annotated[
        int | None,
        typer.Option(
            help="Most new tokens of a step and group [the engine's default].",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    max_sequences: Annotated[
        int | None,
        typer.Option(help="Most requests at work in a group [same].", rich_help_panel=_ENGINE),
    ] = None,
    block_tokens: Annotated[
        int | None, typer.Option(help="Tokens per KV block [same].", rich_help_panel=_ENGINE)
    ] = None,
    memory_share: Annotated[
        float | None,
        typer.Option(help="Share of memory that may be used [same].", rich_help_panel=_ENGINE),
    ] = None,
    mixed_chunk: Annotated[
        bool,
        typer.Option(
            "--mixed-chunk", help="SGLang: decode tokens ride along.", rich_help_panel=_ENGINE
        ),
    ] = False,
    draft_tokens: Annotated[
        int,
        typer.Option(
            help="Drafts per sequence and step, which the model's MTP layers make.",
            rich_help_panel=_ENGINE,
        ),
    ] = 0,
    acceptance: Annotated[
        float,
        typer.Option(
            help="Probability that a draft is accepted if those before it were.",
            rich_help_panel=_ENGINE,
        ),
    ] = 0.0,
    overlap: Annotated[
        OverlapOption,
        typer.Option(
            help="Two-batch and the like, on top of what measured engines overlap anyway.",
            rich_help_panel=_ENGINE,
        ),
    ] = OverlapOption.NONE,
    cost: Annotated[str, cost_option(_ENGINE)] = FITTED,
    gemm_dtype: Annotated[
        str | None,
        typer.Option(
            help="Of projections and dense layers [the model's own].", rich_help_panel=_ENGINE
        ),
    ] = None,
    expert_dtype: Annotated[
        str | None,
        typer.Option(help="Of routed experts [the model's own].", rich_help_panel=_ENGINE),
    ] = None,
    kv_dtype: Annotated[
        str | None, typer.Option(help="Of the cache [bfloat16].", rich_help_panel=_ENGINE)
    ] = None,
    routing: Annotated[
        str,
        typer.Option(help="balanced, uniform, zipf:S or power-law:A.", rich_help_panel=_ENGINE),
    ] = "uniform",
    trace_out: Annotated[
        Path | None, typer.Option(help="File for a timeline that ui.perfetto.dev opens.")
    ] = None,
    transform: TransformOption = None,
    seed: SeedOption = 0,
    out: ResultOutOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Simulate serving: latencies and throughput of requests on replicas of an engine."""
    from moesim.cost_model import cost_model
    from moesim.errors import UsageError
    from moesim.serving.metrics import Targets
    from moesim.serving.request import LoadRequest, PoolRequest, ServingRequest
    from moesim.serving.run import run_serving

    console = Console(as_json=as_json, quiet=quiet, out=out)
    prefill = None
    if prefill_workers is not None:
        prefill = PoolRequest(
            prefill_cluster or cluster,
            prefill_workers,
            tp=prefill_tp,
            dp=prefill_dp,
            ep=prefill_ep,
            pp=prefill_pp,
        )
    elif prefill_cluster or prefill_tp or prefill_dp or prefill_ep or prefill_pp != 1:
        raise UsageError(
            "--prefill-cluster, -tp, -dp, -ep and -pp describe prefill workers\n"
            "fix: pass --prefill-workers with them"
        )
    policy = {
        "token_budget": token_budget,
        "max_sequences": max_sequences,
        "block_tokens": block_tokens,
        "memory_share": memory_share,
        "mixed_chunk": mixed_chunk or None,
    }
    request = ServingRequest(
        model=model,
        pool=PoolRequest(
            cluster,
            replicas,
            tp=tp,
            dp=dp,
            ep=ep,
            moe_tp=moe_tp,
            pp=pp,
            dispatch=None if dispatch is None else dispatch.value,
            redundant=redundant,
        ),
        prefill=prefill,
        load=LoadRequest(
            concurrency=concurrency,
            rps=rps,
            file=requests_file,
            speed=speed,
            requests=requests,
            isl=isl,
            osl=osl,
            lengths=lengths,
            burstiness=burstiness,
            hit_ratio=prefix_hit,
        ),
        router=router.value,
        transfer=transfer,
        engine=engine.value,
        policy=policy,
        draft_tokens=draft_tokens,
        overlap=overlap.value,
        acceptance=acceptance,
        cost=cost_model(cost),
        gemm_dtype=gemm_dtype,
        expert_dtype=expert_dtype,
        kv_dtype=kv_dtype,
        routing=routing,
        targets=Targets(ttft, tpot),
        warmup=warmup,
        transforms=tuple(transform or ()),
        seed=seed,
    )
    with console.progress("step times of the model") as step:
        found = run_serving(request, step)
    if trace_out is not None:
        from moesim.serving.timeline import MOST_STEPS, write_timeline

        console.say(f"written: {write_timeline(trace_out, found.schedule)}")
        if found.schedule.steps > MOST_STEPS:
            console.say(f"the timeline holds the first {MOST_STEPS:,} steps")
    console.result(_to_json(request, found), lambda: _show(request, found))


def _to_json(request: ServingRequest, found: Serving) -> dict[str, Any]:
    from dataclasses import asdict

    import moesim

    metrics, pool = found.metrics, found.deployment.pool
    policy = pool.policy.to_dict()
    policy.pop("graph_sizes")
    return {
        "schema": "moesim.simulate/1",
        "ok": True,
        "simulation": "serving",
        "model": found.model,
        "cluster": request.pool.cluster,
        "device": found.device,
        "devices": found.devices,
        "replicas": request.pool.workers,
        "prefill_workers": request.prefill.workers if request.prefill else 0,
        "layout": asdict(found.layout),
        "prefill_layout": asdict(found.prefill_layout) if found.prefill_layout else None,
        "engine": request.engine,
        "policy": policy,
        "cost": str(request.cost),
        "formats": asdict(found.formats),
        "routing": request.routing,
        "evidence": found.evidence.value,
        "coefficients": found.coefficients,
        "load": {
            "concurrency": request.load.concurrency,
            "rps": request.load.rps,
            "requests": metrics.requests,
            "input_tokens_mean": float(found.schedule.input_tokens.mean()),
            "output_tokens_mean": float(found.schedule.output_tokens.mean()),
        },
        "ttft_s": metrics.ttft.mean,
        "ttft_lo_s": found.ttft_interval_s[0],
        "ttft_hi_s": found.ttft_interval_s[1],
        "tpot_s": metrics.tpot.mean if metrics.tpot else None,
        "tpot_lo_s": found.tpot_interval_s[0] if found.tpot_interval_s else None,
        "tpot_hi_s": found.tpot_interval_s[1] if found.tpot_interval_s else None,
        "tokens_per_s": metrics.output_tokens_per_s,
        "tokens_per_s_lo": found.rate_interval_per_s[0] if found.rate_interval_per_s else None,
        "tokens_per_s_hi": found.rate_interval_per_s[1] if found.rate_interval_per_s else None,
        "tokens_per_s_per_device": metrics.output_tokens_per_s / found.devices,
        "tokens_per_s_per_user": metrics.tokens_per_s_per_user,
        "total_tokens_per_s": metrics.output_tokens_per_s + metrics.input_tokens_per_s,
        "requests_per_s": metrics.requests_per_s,
        "energy": asdict(found.energy) if found.energy else None,
        "good_share": metrics.good_share,
        "good_requests_per_s": metrics.good_requests_per_s,
        "duration_s": metrics.duration_s,
        "latencies_s": {
            name: _percentiles(latency)
            for name, latency in (
                ("ttft", metrics.ttft),
                ("tpot", metrics.tpot),
                ("itl", metrics.itl),
                ("e2e", metrics.e2e),
                ("queue", metrics.queue),
            )
        },
        "steps": metrics.steps,
        "mean_decode_sequences": metrics.mean_decode_sequences,
        "busy_share": metrics.busy_share,
        "waiting": {"mean": metrics.waiting_mean, "max": metrics.waiting_max},
        "running_mean": metrics.running_mean,
        "kv": {
            "tokens": pool.kv_tokens * pool.groups * pool.workers,
            "share_mean": metrics.kv_share_mean,
            "share_max": metrics.kv_share_max,
        },
        "preemptions": metrics.preemptions,
        "seed": request.seed,
        "version": moesim.__version__,
    }


def _percentiles(latency: Distribution | None) -> dict[str, float] | None:
    from dataclasses import asdict

    return None if latency is None else asdict(latency)


def _show(request: ServingRequest, found: Serving) -> None:
    from rich.console import Console as RichConsole

    from moesim.cli.serving_terminal import show_serving

    show_serving(request, found, RichConsole())
