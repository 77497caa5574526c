"""A system serving requests: time to first token, time between tokens, and what bounds them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.errors import InfeasibleError
from moesim.model import ModelSpec
from moesim.offload.predictors import Quality, measure
from moesim.offload.replay import Replay, replay
from moesim.offload.state import COUNTED, RESOURCES
from moesim.offload.steps import Steps
from moesim.offload.systems import System, make_plan
from moesim.offload.tiers import Formats, Machine
from moesim.units import format_bytes

__all__ = ["Offload", "Phase", "host_slots_that_fit", "simulate", "split_learned"]

HOST_FREE_SHARE = 0.9
"""Of host memory that experts may take; the rest is the system's and the engine's."""


@dataclass(frozen=True)
class Phase:
    """Means over the steps of one kind.

    Attributes:
        steps: How many.
        step_s: Seconds of a step, mean.
        p99_s: 99th percentile.
        busy: Share of the time that each of :data:`~moesim.offload.state.RESOURCES` works.
        bound: The busiest.
        hit_rate: Active experts in GPU memory when their gate was known.
        counts: Per step, by :data:`~moesim.offload.state.COUNTED`.
    """

    steps: int
    step_s: float
    p99_s: float
    busy: dict[str, float]
    bound: str
    hit_rate: float
    counts: dict[str, float]


@dataclass(frozen=True)
class Offload:
    """A system on a machine.

    Attributes:
        system: What was simulated.
        slots: [L] slots per layer.
        batch: Requests at a time.
        prefill: None without prefill steps.
        decode: None without decode steps.
        predictor: Quality of the prediction, measured on the simulated steps; None without one.
        late: Prefetched experts that were needed and still on their way, of those needed.
        link_bytes_per_token: Copied over the link per decoded token.
        plan_steps: What was replayed.
    """

    system: System
    slots: np.ndarray
    batch: int
    prefill: Phase | None
    decode: Phase | None
    predictor: Quality | None
    late: float
    link_bytes_per_token: float
    plan_steps: Replay

    @property
    def tokens_per_s(self) -> float | None:
        """Decoded tokens per second of the whole batch."""
        return None if self.decode is None else self.batch / self.decode.step_s


def split_learned(steps: Steps, share: float = 0.25) -> tuple[Steps, Steps]:
    """The first part to learn popularity and predictors from, and the rest to simulate.

    A group of requests (a prefill step and its decode steps) stays whole. Where there is one group
    alone, both parts are it.
    """
    begins = np.flatnonzero(steps.prefill)
    total = len(steps.tokens)
    if begins.size == 0:
        begins = np.arange(total)
    if begins.size < 2:
        return steps, steps
    at = int(begins[max(1, int(share * begins.size))])
    return steps.part(slice(0, at)), steps.part(slice(at, total))


def simulate(
    model: ModelSpec,
    machine: Machine,
    system: System,
    formats: Formats,
    steps: Steps,
    slots: int,
    *,
    host_slots: int | None = None,
    seed: int = 0,
) -> Offload:
    """Let a system serve steps.

    Args:
        model: Sizes.
        machine: What it runs on.
        system: What it does.
        formats: How experts are stored.
        steps: What is asked for; the first part is learned from.
        slots: C, per layer on average.
        host_slots: Experts of each layer in host memory; all if None.
        seed: Of predictors of stated quality.

    Raises:
        UsageError: If the machine lacks what the system needs.
    """
    learned, served = split_learned(steps)
    plan = make_plan(
        system, served, learned, slots, top_k=model.top_k, host_slots=host_slots, seed=seed
    )
    timing = machine.timing(model, formats, served)
    if system.schedule == "split" and not machine.coefficients:
        from moesim.errors import UsageError

        raise UsageError(
            f"{system.name} computes experts on the CPU, and --hardware {machine.name} names none\n"
            f"fix: write it like {machine.gpu.name}+epyc_9554"
        )
    run = replay(served.tokens, plan, timing)
    quality = None if plan.predicted is None else measure(plan.predicted, served.tokens)
    decode = ~served.prefill
    copied = run.counts[:, [COUNTED.index(name) for name in ("copied", "prefetches")]]
    decoded = max(int(decode.sum()) * served.batch, 1)
    needed = run.total("late") + run.total("prefetched")
    return Offload(
        system=system,
        slots=plan.slots,
        batch=served.batch,
        prefill=_phase(run, served.prefill),
        decode=_phase(run, decode),
        predictor=quality,
        late=run.total("late") / needed if needed else 0.0,
        link_bytes_per_token=float(
            copied[decode].sum() * model.expert_parameters * formats.slots / 8 / decoded
        ),
        plan_steps=run,
    )


def _phase(run: Replay, chosen: np.ndarray) -> Phase | None:
    if not chosen.any():
        return None
    step_s = run.step_s[chosen]
    share = run.busy_s[chosen].sum(axis=0) / step_s.sum()
    counts = run.counts[chosen].mean(axis=0)
    return Phase(
        steps=int(chosen.sum()),
        step_s=float(step_s.mean()),
        p99_s=float(np.quantile(step_s, 0.99)),
        busy=dict(zip(RESOURCES, share.tolist(), strict=True)),
        bound=RESOURCES[int(share.argmax())],
        hit_rate=run.hit_rate(chosen),
        counts=dict(zip(COUNTED, counts.tolist(), strict=True)),
    )


def host_slots_that_fit(model: ModelSpec, machine: Machine, formats: Formats) -> int:
    """Experts of each layer that host memory holds; all of them if its size is not known.

    Raises:
        InfeasibleError: If it does not hold one expert of each layer.
    """
    if machine.cpu is None:
        return model.experts
    room = machine.cpu.memory_bytes * HOST_FREE_SHARE
    expert = model.expert_parameters * formats.host / 8
    fit = int(room // (expert * len(model.moe_layers)))
    if fit < 1:
        raise InfeasibleError(
            f"{machine.cpu.name} has {format_bytes(machine.cpu.memory_bytes)} of memory, and one "
            f"expert of each layer of {model.name} takes "
            f"{format_bytes(expert * len(model.moe_layers))}\nfix: fewer bits per weight, or more "
            "memory"
        )
    return min(fit, model.experts)
