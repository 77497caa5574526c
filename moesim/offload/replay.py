"""Steps and layers one after another: caches, prefetch, and one clock per resource.

A step is one forward pass, an event one expert layer of it. At an event the gate is known, the
experts are divided by a schedule (:mod:`moesim.offload.schedules`), and what was copied is
admitted to the layer's slots, where the expert of least score goes. While the link is idle until
the next gate, experts of the next layers are prefetched; a copy that has begun is not broken off.

Misses are judged against the slots as they were before the event (the event-atomic contract).
Admissions within an event follow one another in the order of expert ids, and each is forced.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.compiled import compiled, compiled_part
from moesim.offload.prefetch import fill, prefetch
from moesim.offload.schedules import (
    COPIED,
    CPU,
    GPU,
    LINK,
    SCHEDULES,
    Answer,
    Costs,
    Work,
    heaviest_first,
    new_answer,
    schedule,
)
from moesim.offload.state import (
    ACTIVE,
    COPIED_ON_DEMAND,
    COUNTED,
    DISK_FREE,
    LATE,
    LINK_FREE,
    NO_SLOT,
    NOW,
    NVME,
    PREFETCHED,
    PREFETCHES,
    READ,
    RESIDENT,
    RESOURCES,
    RUN_ON_CPU,
    Memory,
    Record,
    Rules,
    take,
)

__all__ = ["Plan", "Replay", "Timing", "replay", "time_of_hits"]


@dataclass(frozen=True)
class Timing:
    """Seconds of one expert by place and tokens.

    Attributes:
        gpu_s: [N + 1] on the GPU, with 0 … N tokens.
        cpu_s: [N + 1] on the CPU; ∞ where there is none.
        cpu_first_s: What the first expert of a layer on the CPU takes longer.
        copy_s: Over the link.
        copy_narrow_s: Over the link in the narrow format for unpopular experts.
        read_s: From disk to host memory.
        other_s: [S] everything that is not routed experts, per MoE layer of each step.
    """

    gpu_s: np.ndarray
    cpu_s: np.ndarray
    cpu_first_s: float
    copy_s: float
    copy_narrow_s: float
    read_s: float
    other_s: np.ndarray


@dataclass(frozen=True)
class Plan:
    """What a system does with the experts.

    Attributes:
        schedule: One of :data:`~moesim.offload.schedules.SCHEDULES`.
        scores: [S + 1, L, E] the score by which experts stay in their slots; row 0 before the
            first step, row s + 1 after step s.
        slots: [L] slots per layer in GPU memory.
        resident: [L, E] bool, what is in them at the start; at most ``slots`` per layer.
        admit: Whether copied experts enter the slots; otherwise the start never changes.
        predicted: [S, L, P] experts that are expected at each event, most wanted first; −1 fills
            up. None without prefetch.
        lookahead: How many layers ahead is prefetched.
        impact: Order prefetches by the time that each would save (HybriMoE).
        narrow: [S] bool, steps in which experts with fewer tokens than the mean of the active
            ones travel in the narrow format (Fate); those are not kept.
        fill: Experts that the CPU computed are copied too while the link is idle, if they score
            higher than what they replace (a cache beside a split schedule).
        prefill: [S] bool, steps that take ``prefill_schedule`` instead, if there is one.
        prefill_schedule: See ``prefill``.
        host: [L, E] bool, what is in host memory at the start; everything if None. What is read
            from the disk takes the place of the expert of least score.
    """

    schedule: str
    scores: np.ndarray
    slots: np.ndarray
    resident: np.ndarray
    admit: bool = True
    predicted: np.ndarray | None = None
    lookahead: int = 1
    impact: bool = False
    narrow: np.ndarray | None = None
    fill: bool = False
    prefill: np.ndarray | None = None
    prefill_schedule: str | None = None
    host: np.ndarray | None = None


@dataclass(frozen=True)
class Replay:
    """What happened.

    Attributes:
        step_s: [S] seconds of each step.
        busy_s: [S, 4] work begun in each step on each of :data:`~moesim.offload.state.RESOURCES`.
        counts: [S, 8] by :data:`~moesim.offload.state.COUNTED`.
        place: [S, L, E] uint8 who ran each active expert (see ``schedules``); 255 for the others.
    """

    step_s: np.ndarray
    busy_s: np.ndarray
    counts: np.ndarray
    place: np.ndarray

    def total(self, name: str, steps: slice | np.ndarray = slice(None)) -> int:
        """Sum of one of :data:`~moesim.offload.state.COUNTED` over steps."""
        return int(self.counts[steps, COUNTED.index(name)].sum())

    def hit_rate(self, steps: slice | np.ndarray = slice(None)) -> float:
        """Active experts that were in GPU memory when their gate was known, of all."""
        active = self.total("active", steps)
        there = self.total("resident", steps) + self.total("prefetched", steps)
        return there / active if active else 1.0


def replay(tokens: np.ndarray, plan: Plan, timing: Timing) -> Replay:
    """Walk through the steps.

    Args:
        tokens: [S, L, E] tokens of every expert at every event.
        plan: What the system does.
        timing: What it costs.
    """
    steps, layers, experts = tokens.shape
    predicted = plan.predicted
    if predicted is None:
        predicted = np.full((steps, layers, 1), NO_SLOT, np.int16)
    narrow = np.zeros(steps, bool) if plan.narrow is None else plan.narrow
    host = np.ones((layers, experts), bool) if plan.host is None else plan.host
    step_s, busy_s = np.zeros(steps), np.zeros((steps, len(RESOURCES)))
    counts = np.zeros((steps, len(COUNTED)), np.int64)
    place = np.full(tokens.shape, 255, np.uint8)
    shape = (layers, experts)
    which = np.full(steps, SCHEDULES[plan.schedule])
    if plan.prefill is not None and plan.prefill_schedule is not None:
        which[plan.prefill] = SCHEDULES[plan.prefill_schedule]
    memory = Memory(
        plan.resident.copy(), np.zeros(shape), np.zeros(shape, bool), host.copy(),
        plan.slots.astype(np.int64), host.sum(axis=1), np.zeros(3),
    )  # fmt: skip
    rules = Rules(
        which, plan.admit, plan.fill, plan.lookahead, plan.impact,
        np.ascontiguousarray(plan.scores, np.float64), predicted.astype(np.int64), narrow,
        timing.copy_s, timing.copy_narrow_s, timing.read_s, timing.other_s,
    )  # fmt: skip
    costs = Costs(timing.gpu_s, timing.cpu_s, timing.cpu_first_s)
    record = Record(step_s, busy_s, counts, place)
    _replay(np.ascontiguousarray(tokens, np.int64), rules, costs, memory, record)
    return Replay(step_s, busy_s, counts, place)


def time_of_hits(
    tokens: np.ndarray, there: np.ndarray, schedule: str, timing: Timing
) -> tuple[np.ndarray, np.ndarray]:
    """Time steps of which it is known what was in the slots; nothing is prefetched.

    Args:
        tokens: [S, L, E] tokens of every expert at every event.
        there: [S, L, E] bool, what was in GPU memory when the gate was known.
        schedule: One of :data:`~moesim.offload.schedules.SCHEDULES`.
        timing: What it costs.

    Returns:
        [S] seconds of each step, and [S, 4] work on each of ``state.RESOURCES``.
    """
    step_s, busy_s = np.zeros(len(tokens)), np.zeros((len(tokens), len(RESOURCES)))
    costs = Costs(timing.gpu_s, timing.cpu_s, timing.cpu_first_s)
    _time_hits(
        tokens, there, SCHEDULES[schedule], costs, timing.copy_s, timing.other_s, step_s, busy_s
    )
    return step_s, busy_s


@compiled
def _replay(tokens: np.ndarray, rules: Rules, costs: Costs, memory: Memory, record: Record) -> None:
    steps, layers, experts = tokens.shape
    clocks = memory.clocks
    active_of, load_of = np.empty(experts, np.int64), np.empty(experts, np.int64)
    for step in range(steps):
        begin = clocks[NOW]
        for layer in range(layers):
            clocks[NOW] += rules.other_s[step]
            record.busy_s[step, GPU] += rules.other_s[step]
            size = 0
            for expert in range(experts):
                if tokens[step, layer, expert] > 0:
                    active_of[size] = expert
                    load_of[size] = tokens[step, layer, expert]
                    size += 1
            active, load = active_of[:size], load_of[:size]
            known = clocks[NOW]
            work = _work(step, layer, active, load, rules, memory, record)
            answer = new_answer(size)
            schedule(rules.schedule[step], work, costs, answer)
            record.busy_s[step, :3] += answer.busy
            if answer.busy[LINK] > 0:
                clocks[LINK_FREE] = known + answer.clocks[LINK]
            clocks[NOW] = known + max(answer.clocks[GPU], answer.clocks[CPU])
            _admit(step, layer, active, work, answer, rules, memory, record)
            next_step = min(step + (layer + 1) // layers, steps - 1)
            gate = clocks[NOW] + rules.other_s[next_step]
            begun = prefetch(step, layer, known, gate, tokens, rules, costs, memory, record)
            if rules.fill:
                begun += fill(step, layer, active, answer, known, gate, rules, memory, record)
            record.counts[step, PREFETCHES] += begun
        record.step_s[step] = clocks[NOW] - begin


@compiled_part
def _work(
    step: int,
    layer: int,
    active: np.ndarray,
    load: np.ndarray,
    rules: Rules,
    memory: Memory,
    record: Record,
) -> Work:
    """Where the active experts are; what is on the disk is read, heaviest first."""
    now = memory.clocks[NOW]
    ready, host = np.empty(active.size), np.zeros(active.size)
    for i in heaviest_first(load):
        expert = active[i]
        ready[i] = np.inf
        if memory.resident[layer, expert]:
            ready[i] = max(0.0, memory.landed[layer, expert] - now)
        elif not memory.host[layer, expert]:
            memory.clocks[DISK_FREE] = max(memory.clocks[DISK_FREE], now) + rules.read_s
            record.busy_s[step, NVME] += rules.read_s
            host[i] = memory.clocks[DISK_FREE] - now
    copy_s = np.full(active.size, rules.copy_s)
    if rules.narrow[step]:
        for i in range(active.size):
            if load[i] * active.size < load.sum():
                copy_s[i] = rules.copy_narrow_s
    return Work(load, ready, host, copy_s, max(0.0, memory.clocks[LINK_FREE] - now))


@compiled_part
def _admit(
    step: int,
    layer: int,
    active: np.ndarray,
    work: Work,
    answer: Answer,
    rules: Rules,
    memory: Memory,
    record: Record,
) -> None:
    """Count where each expert was found, and keep what came."""
    score, counts = rules.scores[step + 1, layer], record.counts[step]
    counts[ACTIVE] += active.size
    for i in range(active.size):
        expert = active[i]
        record.place[step, layer, expert] = answer.place[i]
        if not np.isinf(work.ready[i]):
            if not memory.fetched[layer, expert]:
                counts[RESIDENT] += 1
            elif work.ready[i] <= 0:
                counts[PREFETCHED] += 1
            else:
                counts[LATE] += 1
            memory.fetched[layer, expert] = False
        elif answer.place[i] == COPIED:
            counts[COPIED_ON_DEMAND] += 1
        else:
            counts[RUN_ON_CPU] += 1
    for i in range(active.size):
        expert = active[i]
        if np.isinf(work.ready[i]) and not memory.host[layer, expert]:
            counts[READ] += 1
            take(memory.host[layer], memory.host_slots[layer], score, expert)
        # What came in the narrow format is used and dropped.
        kept = answer.place[i] == COPIED and work.copy_s[i] == rules.copy_s
        if rules.admit and kept:
            take(memory.resident[layer], memory.slots[layer], score, expert)
            memory.landed[layer, expert] = 0.0
            memory.fetched[layer, expert] = False


@compiled
def _time_hits(
    tokens: np.ndarray,
    there: np.ndarray,
    which: int,
    costs: Costs,
    copy_s: float,
    other_s: np.ndarray,
    step_s: np.ndarray,
    busy_s: np.ndarray,
) -> None:
    steps, layers, experts = tokens.shape
    load, ready = np.empty(experts, np.int64), np.empty(experts)
    at_host, copies = np.zeros(experts), np.full(experts, copy_s)
    for step in range(steps):
        for layer in range(layers):
            size = 0
            for expert in range(experts):
                if tokens[step, layer, expert] > 0:
                    load[size] = tokens[step, layer, expert]
                    ready[size] = 0.0 if there[step, layer, expert] else np.inf
                    size += 1
            answer = new_answer(size)
            work = Work(load[:size], ready[:size], at_host[:size], copies[:size], 0.0)
            schedule(which, work, costs, answer)
            busy_s[step, :3] += answer.busy
            busy_s[step, GPU] += other_s[step]
            step_s[step] += other_s[step] + max(answer.clocks[GPU], answer.clocks[CPU])
