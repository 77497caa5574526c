"""From a measured run to what its times are made of.

An aggregated run is simulated once: in a closed loop the order of steps does not depend on how long
they take, so mean TPOT and mean TTFT are weighted sums of step times, and those are sums of parts
(:func:`moesim.serving.features.step_features`). A run with prefill and decode workers is described
by one decode step of a worker and the prefill of one prompt, since most tables do not say how many
workers there were.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log

import numpy as np

from moesim.calibrate.serving_pools import run_pool
from moesim.calibrate.serving_rows import MeasuredRun
from moesim.errors import MoesimError
from moesim.forward.step_tables import COMPONENTS
from moesim.model import ModelSpec, load_model
from moesim.serving.costs import interpolate
from moesim.serving.deployment import Deployment, Pool
from moesim.serving.features import interpolate_plane, step_features
from moesim.serving.loads import closed_loop, parse_lengths
from moesim.serving.schedule import latency_weights
from moesim.serving.simulation import simulate_requests

__all__ = ["DESCRIPTORS", "HOST_PARTS", "TIME_PARTS", "RunParts", "describe_run"]

TIME_PARTS = (
    *(f"{name}.{kind}" for name in COMPONENTS for kind in ("decode", "prefill")),
    *("sampled", "decode_attention", "chunk_attention"),
)
"""Seconds of kernels, in decode-only steps and in steps with prefill."""

HOST_PARTS = ("steps.decode", "steps.prefill", "sequences", "tokens", "kernels")
"""Numbers that host time may be proportional to."""

DESCRIPTORS = (
    *("log concurrency", "log isl", "log osl", "log devices", "log ep", "attention dp"),
    *("log sequences per device", "share of prefill", "share of gemm", "share of experts"),
    *("share of collectives", "share of attention", "share of small kernels", "log tpot"),
    *("bits", "dense", "log ttft over tpot", "months", "split"),
    *("log layers", "log hidden size", "log experts", "log expert width"),
    *("log prefill devices", "log prefill groups", "log decode workers", "log lateness"),
)
"""What a residual may depend on: sizes of the run, and shares of the predicted time."""

SPLIT_DESCRIPTORS = 4
"""The last ones, of prefill and decode workers alone."""

LENGTHS = "uniform:0.8"
"""What the public harness draws (InferenceX, ``--random-range-ratio 0.8``)."""

REQUESTS_AT_MOST = 4096
"""Beyond so many requests their mean does not change by more than the noise of a run."""

LAST_MONTHS = 6.0
"""Months since the first measured run, where no date is stated."""

SHARE_SCALE = 3.0
"""Shares of time differ by tenths where logarithms differ by halves."""


@dataclass(frozen=True, eq=False)
class RunParts:
    """What a run's times are made of.

    Attributes:
        run: The run.
        tpot: [TIME_PARTS + HOST_PARTS] seconds, and numbers, per output token.
        ttft: The same until the first token.
        descriptors: [DESCRIPTORS].
        drafts: Whether the model has layers for speculative decoding.
        servers: Attention groups of all prefill workers; 0 with one pool.
        service_s: Seconds of kernels that one of them needs per prompt, in full steps.
    """

    run: MeasuredRun
    tpot: np.ndarray
    ttft: np.ndarray
    descriptors: np.ndarray
    drafts: bool
    servers: int = 0
    service_s: float = 0.0

    @property
    def kernels_s(self) -> float:
        """Seconds of kernels per output token."""
        return float(self.tpot[: len(TIME_PARTS)].sum())


def describe_run(run: MeasuredRun) -> RunParts | str:
    """The parts of a run's times, or why there are none."""
    try:
        model = load_model(run.model, dense=True)
        if run.mode == "disagg":
            return _split(run, model)
        if run.layout.rule == "total":
            pool = run_pool(run, model, run.layout)
            tpot, ttft = _one_step(run, pool), _one_prompt(run, pool)
            devices = run.layout.devices
        else:
            tpot, ttft = _simulated(run, run_pool(run, model, run.layout))
            devices = run.layout.devices
    except MoesimError as error:
        return str(error).split("\n")[0]
    descriptors = np.pad(_descriptors(run, model, tpot, ttft, devices), (0, SPLIT_DESCRIPTORS))
    return RunParts(run, tpot, ttft, descriptors, bool(model.mtp_layers))


def _simulated(run: MeasuredRun, pool: Pool) -> tuple[np.ndarray, np.ndarray]:
    count = min(10 * run.concurrency, max(REQUESTS_AT_MOST, 2 * run.concurrency))
    requests = closed_loop(run.concurrency, run.isl, run.osl, parse_lengths(LENGTHS), count=count)
    schedule = simulate_requests(Deployment(pool), requests)
    parts = step_features(schedule, pool)
    tpot, ttft = (_summed(parts, schedule.kind, w) for w in latency_weights(schedule))
    return tpot, ttft


def _summed(parts: dict[str, np.ndarray], kind: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[TIME_PARTS + HOST_PARTS] weighted sums over steps."""
    by_kind = {"decode": weights * (kind == 0), "prefill": weights * (kind == 1)}
    sums = [float(parts[name] @ by_kind[way]) for name in COMPONENTS for way in by_kind]
    sums += [float(parts[name] @ weights) for name in TIME_PARTS[-3:]]
    sums += [float(by_kind[way].sum()) for way in by_kind]
    sums += [float(parts[name] @ weights) for name in ("sequences", "tokens", "kernels")]
    return np.array(sums)


def _split(run: MeasuredRun, model: ModelSpec) -> RunParts:
    """Times of prefill and decode workers."""
    decode = run_pool(run, model, run.layout)
    first = run_pool(run, model, run.prefill or run.layout)
    tpot, ttft = _one_step(run, decode), _one_prompt(run, first)
    devices, run_of = decode.groups * run.layout.tp, run.prefill or run.layout
    servers = max(1, run.prefill_workers) * first.groups
    service_s = _service_s(run, first)
    through_s = run.concurrency * service_s / servers
    late = log(max(0.01, through_s / run.osl / tpot[: len(TIME_PARTS)].sum()))
    return RunParts(
        run,
        tpot,
        ttft,
        np.concatenate(
            [
                _descriptors(run, model, tpot, ttft, devices),
                [log(first.groups * run_of.tp), log(servers), log(max(1, run.workers)), late],
            ]
        ),
        bool(model.mtp_layers),
        servers,
        service_s,
    )


def _service_s(run: MeasuredRun, pool: Pool) -> float:
    """Seconds of kernels per prompt where steps are full of prompts."""
    tables, budget = pool.tables, pool.policy.token_budget
    prompts = max(1.0, budget // run.isl)
    new = np.array([min(budget, prompts * run.isl)])
    steps = prompts * run.isl / new[0]
    dense = sum(
        float(interpolate(tables.tokens, tables.token_s[1, row], new)[0])
        for row in range(len(COMPONENTS))
    )
    prompt = _one_prompt(run, pool)
    attention = prompt[TIME_PARTS.index("chunk_attention")]
    return dense * steps / prompts + float(attention)


def _one_step(run: MeasuredRun, pool: Pool) -> np.ndarray:
    """A decode step of a worker: with as few workers as hold all sequences, if not stated."""
    context = run.isl + run.osl / 2
    room = max(1, pool.kv_tokens * pool.groups)
    workers = run.workers or ceil(run.concurrency * context / room)
    sequences = max(1, ceil(run.concurrency / workers / pool.groups))
    tables = pool.tables
    at = np.array([float(sequences)])
    sums = [
        float(interpolate(tables.tokens, tables.token_s[0, row], at)[0]) if way == 0 else 0.0
        for row in range(len(COMPONENTS))
        for way in (0, 1)
    ]
    sums.append(float(interpolate(tables.tokens, tables.sampled_s, at)[0]))
    attention = interpolate_plane(
        tables.decode_sequences,
        tables.decode_context,
        tables.decode_attention_s,
        at,
        np.array([context]),
    )
    sums += [float(attention[0]), 0.0]
    sums += [1.0, 0.0, float(sequences), float(sequences), float(tables.kernels[0])]
    return np.array(sums)


def _one_prompt(run: MeasuredRun, pool: Pool) -> np.ndarray:
    """Prefill of one prompt, in chunks of the engine's budget."""
    tables, budget = pool.tables, pool.policy.token_budget
    new = np.array([float(min(budget, run.isl - past)) for past in range(0, run.isl, budget)])
    past = np.arange(len(new)) * float(budget)
    sums = []
    for row in range(len(COMPONENTS)):
        sums += [0.0, float(interpolate(tables.tokens, tables.token_s[1, row], new).sum())]
    sums.append(float(tables.sampled_s[0]))
    chunks = interpolate_plane(
        tables.chunk_tokens, tables.chunk_past, tables.chunk_attention_s, new, past
    )
    sums += [0.0, float(chunks.sum())]
    steps = float(len(new))
    sums += [0.0, steps, steps, float(run.isl), steps * float(tables.kernels[1])]
    return np.array(sums)


def _descriptors(
    run: MeasuredRun, model: ModelSpec, tpot: np.ndarray, ttft: np.ndarray, devices: int
) -> np.ndarray:
    times = dict(zip(TIME_PARTS, tpot[: len(TIME_PARTS)], strict=True))
    total = sum(times.values())
    first = float(ttft[: len(TIME_PARTS)].sum())

    def share(*names: str) -> float:
        return SHARE_SCALE * sum(t for key, t in times.items() if key.startswith(names)) / total

    prefill = [key for key in TIME_PARTS if key.endswith(".prefill")] + ["chunk_attention"]
    bits = {"fp4": 4, "fp8": 8}.get(run.precision, 16)
    values = {
        "log concurrency": log(run.concurrency),
        "log isl": log(run.isl),
        "log osl": log(run.osl),
        "log devices": log(devices),
        "log ep": log(run.layout.ep),
        "attention dp": float(run.layout.dp > 1),
        "log sequences per device": log(run.concurrency / devices),
        "share of prefill": share(*prefill),
        "share of gemm": share("gemm"),
        "share of experts": share("experts"),
        "share of collectives": share("collective", "dispatch"),
        "share of attention": share("decode_attention", "chunk_attention"),
        "share of small kernels": share("small"),
        "log tpot": log(total),
        "bits": bits / 6,
        "dense": float(not model.moe_layers),
        "log ttft over tpot": log(max(first, 1e-4) / total),
        "months": _months(run.date),
        "split": 4.0 * (run.mode == "disagg"),
        "log layers": log(model.layers),
        "log hidden size": log(model.hidden_size),
        "log experts": log(max(1, model.experts)),
        "log expert width": log(max(1, model.expert_width)),
    }
    return np.array([values[name] for name in DESCRIPTORS[:-SPLIT_DESCRIPTORS]])


def _months(date: str) -> float:
    try:
        days = (np.datetime64(date) - np.datetime64("2025-11-01")) / np.timedelta64(1, "D")
    except ValueError:
        return LAST_MONTHS
    return float(days) / 30 if date else LAST_MONTHS
