"""Joules of a run on a server, from its mean steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moesim.forward.expert_load import parse_distribution
from moesim.forward.formats import Formats
from moesim.forward.layout import Layout, Sequences, StepLoad
from moesim.forward.machine import Machine
from moesim.forward.simulate import simulate_step
from moesim.model import ModelSpec
from moesim.schema import Evidence, weakest
from moesim.serving.deployment import Pool
from moesim.serving.schedule import Schedule

__all__ = ["PoweredPool", "ServedEnergy", "served_energy"]


@dataclass(frozen=True, eq=False)
class PoweredPool:
    """Workers of one kind: where they are in the schedule, and what they run on."""

    machine: Machine
    layout: Layout
    pool: Pool
    first_worker: int


@dataclass(frozen=True)
class ServedEnergy:
    """Energy of the devices; hosts, switches and cooling are not among them.

    Attributes:
        j_per_token: Per output token.
        lo_j_per_token: Lower end of the 80 % interval.
        hi_j_per_token: Upper end.
        device_w: Mean power of a device.
        evidence: Of the watts.
    """

    j_per_token: float
    lo_j_per_token: float
    hi_j_per_token: float
    device_w: float
    evidence: Evidence


def served_energy(
    model: ModelSpec,
    pools: Sequence[PoweredPool],
    schedule: Schedule,
    formats: Formats,
    routing: str,
    seed: int = 0,
) -> ServedEnergy | None:
    """Energy of all devices over a run.

    Devices draw the power of the mean step of its kind, with and without prompts, as long as such
    steps take, and their idle power in between.

    Args:
        model: That is served.
        pools: All workers.
        schedule: What they did.
        formats: Of weights and cache.
        routing: Distribution of tokens over experts.
        seed: Of that distribution.

    Returns:
        ``None`` where nothing is known of a device's power.
    """
    tokens = float(schedule.output_tokens.sum())
    makespan_s = float((schedule.start_s + schedule.duration_s).max(initial=0.0))
    if tokens == 0 or makespan_s == 0:
        return None
    total = np.zeros(3)
    devices = 0
    evidence = []
    for powered in pools:
        power = powered.machine.power
        if power is None:
            return None
        workers = range(powered.first_worker, powered.first_worker + powered.pool.workers)
        busy_s, each = 0.0, powered.layout.devices
        for kind in (0, 1):
            steps = np.isin(schedule.worker, workers) & (schedule.kind == kind)
            seconds = float(schedule.duration_s[steps].sum())
            if seconds == 0:
                continue
            step = simulate_step(
                model,
                powered.machine,
                powered.layout,
                _mean_load(schedule, steps, powered.pool),
                formats,
                parse_distribution(routing),
                seed=seed,
                check_memory=False,
            ).energy
            if step is None:
                return None
            ends = np.array([step.j_per_token, step.lo_j_per_token, step.hi_j_per_token])
            total += each * seconds * step.device_w * ends / step.j_per_token
            busy_s += seconds
            evidence.append(step.evidence)
        total += each * max(0.0, makespan_s * len(workers) - busy_s) * power.idle_w
        devices += each * len(workers)
    mean, low, high = (total / tokens).tolist()
    return ServedEnergy(mean, low, high, float(total[0]) / makespan_s / devices, weakest(*evidence))


def _mean_load(schedule: Schedule, steps: np.ndarray, pool: Pool) -> StepLoad:
    """The mean over seconds of what steps work on."""
    share = schedule.duration_s[steps] / schedule.duration_s[steps].sum()

    def mean(name: str) -> float:
        return float(getattr(schedule, name)[steps] @ share)

    groups = []
    decoding = mean("all_decode_sequences")
    if decoding >= 0.5:
        context = mean("context") / max(mean("decode_sequences"), 1e-9)
        drafts = pool.draft_tokens
        groups.append(Sequences(round(decoding), 1 + drafts, round(context), drafts))
    new = mean("all_prefill_tokens")
    if new >= 1:
        chunks = max(1, round(mean("chunk_count") * pool.groups))
        each = max(2, round(new / chunks))
        past = float(schedule.chunk_past.mean()) if schedule.chunk_past.size else 0.0
        groups.append(Sequences(max(1, round(new / each)), each, round(past)))
    return StepLoad(tuple(groups) or (Sequences(1, 1, 1),))
