"""From a request for serving to its result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from moesim.cluster import Cluster, load_cluster
from moesim.errors import UsageError
from moesim.forward.expert_load import parse_distribution
from moesim.forward.formats import Formats, choose_formats
from moesim.forward.layout import Layout
from moesim.forward.machine import Machine
from moesim.forward.step_tables import StepTables, build_step_tables
from moesim.model import ModelSpec, load_model
from moesim.schema import Evidence, weakest
from moesim.serving.cache_sizes import cache_sizes
from moesim.serving.coefficients import (
    ServingCoefficients,
    step_coefficients,
)
from moesim.serving.deployment import Deployment, Pool, Transfer
from moesim.serving.energy import PoweredPool, ServedEnergy, served_energy
from moesim.serving.engines import find_engine
from moesim.serving.metrics import Metrics, measure
from moesim.serving.request import PoolRequest, ServingRequest
from moesim.serving.requests import Requests
from moesim.serving.schedule import Schedule
from moesim.serving.simulation import kv_blocks_per_lane, simulate_requests
from moesim.units import parse_quantity

__all__ = ["Serving", "run_serving"]


@dataclass(frozen=True, eq=False)
class Serving:
    """A run.

    Attributes:
        model: Its name.
        device: That of the replicas, or of the decode workers.
        devices: All of the deployment.
        layout: Of a replica, or of a decode worker.
        prefill_layout: Of a prefill worker.
        formats: Of weights and cache.
        deployment: Step times and policies.
        schedule: What happened.
        metrics: What came of it.
        ttft_interval_s: Ends of the 80 % interval of the mean time to first token.
        tpot_interval_s: The same of the mean time per output token; None without any.
        rate_interval_per_s: The same of generated tokens per second in a closed loop, where
            requests that take longer are fewer; None in an open one.
        evidence: The weakest that went in.
        coefficients: What step times rest on, in words.
        energy: Of the devices; None where nothing is known of their power.
    """

    model: str
    device: str
    devices: int
    layout: Layout
    prefill_layout: Layout | None
    formats: Formats
    deployment: Deployment
    schedule: Schedule
    metrics: Metrics
    ttft_interval_s: tuple[float, float]
    tpot_interval_s: tuple[float, float] | None
    rate_interval_per_s: tuple[float, float] | None
    evidence: Evidence
    coefficients: str
    energy: ServedEnergy | None


@dataclass(frozen=True, eq=False)
class _Workers:
    """Workers of one kind, looked up."""

    machine: Machine
    layout: Layout
    pool: Pool


def run_serving(request: ServingRequest, say: Callable[[str], None] = lambda _: None) -> Serving:
    """Look everything up, tabulate step times, simulate.

    Args:
        request: What to simulate.
        say: Told what happens next.

    Raises:
        UsageError: If options contradict each other or the model.
        InputError: If a file cannot be used, or is of another model.
        InfeasibleError: If a device's memory does not hold the model, or the cache a request.
    """
    request.check()
    requests = request.load.make(request.seed)
    model = load_model(request.model, transforms=request.transforms)
    own = _workers(request, request.pool, model, requests)
    first = None
    if request.prefill is not None:
        first = _workers(request, request.prefill, model, requests)
    transfer = None if first is None else _transfer(request, first)
    deployment = Deployment(own.pool, first.pool if first else None, transfer, request.router)
    say(f"{requests.count:,} requests")
    schedule = simulate_requests(deployment, requests)
    both = [first, own] if first else [own]
    blocks = np.concatenate([_blocks(workers.pool) for workers in both])
    fit = own.pool.coefficients
    metrics = measure(
        schedule,
        blocks,
        targets=request.targets,
        warmup=request.warmup,
        ttft_host_s=fit.request_host_s,
    )
    tables = [workers.pool.tables for workers in both]
    ttft_s = _interval(metrics.ttft.mean, fit, fit.ttft_band, tables[0])
    tpot_s = None
    if metrics.tpot is not None:
        tpot_s = _interval(metrics.tpot.mean, fit, fit.tpot_band, tables[-1])
    return Serving(
        model=model.name,
        device=own.machine.device.name,
        devices=sum(workers.layout.devices * workers.pool.workers for workers in both),
        layout=own.layout,
        prefill_layout=first.layout if first else None,
        formats=_formats(request, model, own.machine.cluster),
        deployment=deployment,
        schedule=schedule,
        metrics=metrics,
        ttft_interval_s=ttft_s,
        tpot_interval_s=tpot_s,
        rate_interval_per_s=_rates(metrics, ttft_s, tpot_s) if schedule.closed else None,
        evidence=weakest(*(table.evidence for table in tables), fit.evidence),
        coefficients=_in_words(fit),
        energy=_energy(request, model, both, schedule),
    )


def _energy(
    request: ServingRequest, model: ModelSpec, both: Sequence[_Workers], schedule: Schedule
) -> ServedEnergy | None:
    pools, before = [], 0
    for workers in both:
        pools.append(PoweredPool(workers.machine, workers.layout, workers.pool, before))
        before += workers.pool.workers
    formats = _formats(request, model, both[-1].machine.cluster)
    return served_energy(model, pools, schedule, formats, request.routing, request.seed)


def _workers(
    request: ServingRequest, wanted: PoolRequest, model: ModelSpec, requests: Requests
) -> _Workers:
    cluster = load_cluster(wanted.cluster)
    kernels = find_engine(request.engine).kernels
    machine = Machine(cluster, kernels, request.cost)
    spans = cluster.device.scale_up is not None and cluster.device.scale_up.spans_nodes
    layout = Layout.complete(
        cluster.devices,
        tp=wanted.tp,
        dp=wanted.dp,
        ep=wanted.ep,
        moe_tp=wanted.moe_tp,
        pp=wanted.pp,
        dispatch=wanted.dispatch,
        direct="nvlink" if spans and kernels == "trtllm" else "deepep",
        redundant=wanted.redundant,
    )
    layout.check(model)
    policy = find_engine(
        request.engine,
        memory_bytes=cluster.device.memory_bytes,
        groups=layout.dp,
        **request.policy,
    )
    tables = build_step_tables(
        model,
        machine,
        layout,
        _formats(request, model, cluster),
        parse_distribution(request.routing),
        max_tokens=policy.token_budget,
        seed=request.seed,
        drafts=0 if wanted is request.prefill else request.draft_tokens,
        overlap=request.overlap,
    )
    in_flight = requests.concurrency or requests.count
    each = -(-in_flight // (wanted.workers * layout.dp))
    kv_tokens, most = cache_sizes(tables, policy, each, f"{model.name} on {cluster.name}")
    pool = Pool(
        tables,
        policy.model_copy(update={"max_sequences": most}),
        kv_tokens,
        workers=wanted.workers,
        groups=layout.dp,
        lanes=layout.pp,
        draft_tokens=request.draft_tokens,
        tokens_per_step=request.tokens_per_step,
        coefficients=step_coefficients(request.cost, kernels, cluster.device),
    )
    return _Workers(machine, layout, pool)


def _formats(request: ServingRequest, model: ModelSpec, cluster: Cluster) -> Formats:
    return choose_formats(
        model,
        cluster.device,
        gemm=request.gemm_dtype,
        experts=request.expert_dtype,
        kv=request.kv_dtype,
    )


def _blocks(pool: Pool) -> np.ndarray:
    """[workers] blocks of all groups."""
    return np.full(pool.workers, kv_blocks_per_lane(pool) * pool.lanes * pool.groups)


def _transfer(request: ServingRequest, first: _Workers) -> Transfer:
    """Over the network cards of a prefill worker, each group over its own, unless a rate is given.

    A cache lies on the devices of all stages. Their lanes take turns at the cards: each has those
    of one stage to itself on average.
    """
    device, tables, layout = first.machine.device, first.pool.tables, first.layout
    if request.transfer is not None:
        of_worker = parse_quantity(request.transfer, "bytes_per_s", field="--transfer")
        rate = of_worker / (layout.dp * layout.pp)
    else:
        rate = 0.0 if device.nic is None else device.nic.bandwidth.si * layout.tp
    if rate <= 0:
        raise UsageError(
            f"nothing is known of a network card of {device.name}\n"
            "fix: pass --transfer with the rate at which a prefill worker sends caches"
        )
    latency_s = device.nic.latency.si if device.nic is not None else 0.0
    return Transfer(
        tables.cache_bytes_per_token * layout.tp * layout.pp,
        tables.state_bytes_per_sequence * layout.tp * layout.pp,
        rate,
        latency_s,
    )


def _interval(
    mean_s: float, fit: ServingCoefficients, band: tuple[float, float], tables: StepTables
) -> tuple[float, float]:
    """From residuals of measured runs where there are some, else from those of kernels."""
    low, high = (tables.lo, tables.hi) if fit.evidence == Evidence.ASSUMED else band
    return mean_s * low, mean_s * high


def _rates(
    metrics: Metrics, ttft_s: tuple[float, float], tpot_s: tuple[float, float] | None
) -> tuple[float, float]:
    """Ends of the rate: first tokens and the others late together, or early together."""
    others_s = metrics.e2e.mean - metrics.ttft.mean
    factors = (1.0, 1.0)
    if metrics.tpot is not None and tpot_s is not None:
        factors = (tpot_s[0] / metrics.tpot.mean, tpot_s[1] / metrics.tpot.mean)
    tokens = metrics.output_tokens_per_s * metrics.e2e.mean
    shortest_s, longest_s = (ttft_s[end] + others_s * factors[end] for end in (0, 1))
    return tokens / longest_s, tokens / shortest_s


def _in_words(fit: ServingCoefficients) -> str:
    if fit.evidence == Evidence.ASSUMED:
        return "of kernels alone, without host time"
    return f"fitted to measured runs of {fit.engine or 'all engines'} on {', '.join(fit.systems)}"
